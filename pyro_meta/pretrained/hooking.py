"""Finding the attention of a model by running it, and hooking into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyro_meta.errors import UsageError
from pyro_meta.own_classes import said
from pyro_meta.pretrained import interface
from pyro_meta.pretrained.interface import (
    NAME,
    ROUTING,
    SITE,
    Call,
    Routing,
    SeeNormed,
    SeeState,
    Site,
)

PROBED = 4  # tokens of the text that a model is asked for
UNKNOWN = ("s_aux", "softcap", "position_bias")
"""Options of an attention function that scores differently than ours can."""


@dataclass(frozen=True)
class Anatomy:
    """The attention of a model, as a forward pass shows it."""

    modules: list[nn.Module]
    """Those that are routed, in order."""
    heads: int
    """Query heads H."""
    kv_heads: int
    """Key-value heads G."""
    head_width: int
    """d."""


@contextmanager
def hooked(hf_model: PreTrainedModel) -> Iterator[Anatomy]:
    """Have every layer of a model ask `interface.attention`; what it gives stays the same.

    A model that is hooked already is left as it is; and so is another, if what follows raises.

    Raises
    ------
    UsageError
        The model is none that can be routed.
    """
    if interface.routing_of(hf_model) is not None:
        yield anatomy(hf_model)
        return
    _require_causal(hf_model)
    before = hf_model.config._attn_implementation
    interface.register()
    hf_model.set_attn_implementation(NAME)
    try:
        _install(hf_model, _calls_of_a_pass(hf_model), before)
        yield anatomy(hf_model)
    except BaseException:
        unhook(hf_model)
        hf_model.set_attn_implementation(before)
        raise


def unhook(hf_model: PreTrainedModel) -> None:
    """Leave a model as it was before it was hooked."""
    routing = interface.routing_of(hf_model)
    if routing is None:
        return
    for site in routing.sites:
        delattr(site.module, SITE)
        drop_hooks(site.module, SeeNormed)
        drop_hooks(site.around, SeeState)
    hf_model.set_attn_implementation(routing.implementation)
    delattr(hf_model, ROUTING)


def probe(hf_model: PreTrainedModel) -> Tensor:
    """A short text, [1, T]."""
    vocabulary = hf_model.config.get_text_config(decoder=True).vocab_size
    return torch.arange(PROBED, device=hf_model.device)[None] % vocabulary


def drop_hooks(module: nn.Module, kind: type) -> None:
    """Remove the pre-hooks of a class from a module."""
    for key, found in list(module._forward_pre_hooks.items()):
        if isinstance(found, kind):
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def anatomy(hf_model: PreTrainedModel) -> Anatomy:
    """The attention of a model that is hooked."""
    routing = interface.routing_of(hf_model)
    assert routing is not None
    return Anatomy([one.module for one in routing.sites if one.layer is not None], *routing.sizes)


@contextmanager
def _recording() -> Iterator[list[Call]]:
    """The calls of attention meanwhile."""
    calls: list[Call] = []
    token = interface.recorded.set(calls)
    try:
        yield calls
    finally:
        interface.recorded.reset(token)


def _calls_of_a_pass(hf_model: PreTrainedModel) -> list[Call]:
    """What the layers of a model hand to their attention function."""
    name, was_training = type(hf_model).__name__, hf_model.training
    hf_model.eval()
    with torch.no_grad(), _recording() as calls:
        try:
            hf_model(input_ids=probe(hf_model), use_cache=False)
        except Exception as error:
            _require_known(name, calls)
            raise _refused(
                name, f"it cannot read a text of {PROBED} tokens: {said(error)}"
            ) from error
        finally:
            hf_model.train(was_training)
    _require_known(name, calls)
    return calls


def _require_known(name: str, calls: list[Call]) -> None:
    """Raise `UsageError` if a layer scores otherwise than ours can."""
    for call in calls:
        if odd := [key for key in UNKNOWN if call.options.get(key) is not None]:
            raise _refused(name, f"its attention asks for {odd[0]}")


def _install(hf_model: PreTrainedModel, calls: list[Call], before: str) -> None:
    name = type(hf_model).__name__
    if not calls:
        raise _refused(name, "its layers do not go through the attention interface")
    kinds = _kinds(hf_model, calls)
    routed = [call for call, kind in zip(calls, kinds, strict=True) if kind is None]
    if not routed:
        raise _refused(name, "the model makes all of its layers local; there is nothing to route")
    if not all(map(_is_causal, routed)):
        raise _refused(name, "its attention is more or less than causal")
    sizes = {_sizes(call) for call in routed}
    if len(sizes) > 1:
        raise _refused(name, f"its layers differ in heads, key-value heads, widths: {sizes}")
    ((H, G, d, of_values),) = sizes
    if d != of_values:
        raise _refused(name, f"its keys are {d} wide and its values {of_values}")
    if len({id(call.module) for call in calls}) < len(calls):
        raise _refused(name, "it runs one attention module in several layers")
    routing = Routing(before, (H, G, d))
    around = _parents(hf_model)
    layer = 0
    for index, (call, kind) in enumerate(zip(calls, kinds, strict=True)):
        of_route = layer if kind is None else None
        site = Site(index, of_route, kind, routing, call.module, around[call.module])
        layer += kind is None
        routing.sites.append(site)
        setattr(site.module, SITE, site)
        site.module.register_forward_pre_hook(SeeNormed(), with_kwargs=True)
        site.around.register_forward_pre_hook(SeeState(site), with_kwargs=True)
    setattr(hf_model, ROUTING, routing)


def _kinds(hf_model: PreTrainedModel, calls: list[Call]) -> list[int | None]:
    """The window of each layer that the model itself makes local; None: it sees everything.

    -1 stands for a layer that is local in another way than by a window.
    """
    config = hf_model.config.get_text_config(decoder=True)
    layer_types = getattr(config, "layer_types", None)
    kinds: list[int | None] = []
    for call in calls:
        window = call.options.get("sliding_window")
        index = getattr(call.module, "layer_idx", None)
        named = None
        if layer_types is not None and index is not None and index < len(layer_types):
            named = layer_types[index]
        if window is not None:
            kinds.append(int(window))
        elif named in (None, "full_attention"):
            kinds.append(None)
        else:
            kinds.append(-1)
    return kinds


def _is_causal(call: Call) -> bool:
    """Whether every token sees itself and those before it, alike, and no others."""
    if call.mask is None:
        given = call.options.get("is_causal")
        return bool(getattr(call.module, "is_causal", True) if given is None else given)
    seen = call.mask if call.mask.dtype == torch.bool else call.mask == 0
    T, S = call.query.shape[2], call.key.shape[2]
    return seen.shape[1:] == (1, T, S) and bool((seen == torch.ones_like(seen).tril()).all())


def _sizes(call: Call) -> tuple[int, int, int, int]:
    q, k, v = call.query, call.key, call.value
    return q.shape[1], k.shape[1], q.shape[3], v.shape[3]


def _parents(hf_model: PreTrainedModel) -> dict[nn.Module, nn.Module]:
    return {child: parent for parent in hf_model.modules() for child in parent.children()}


def _require_causal(hf_model: Any) -> None:
    if not isinstance(hf_model, PreTrainedModel):
        raise UsageError(
            f"pretrained: {type(hf_model).__name__} given; a causal language model of transformers "
            "is allowed"
        )
    name, config = type(hf_model).__name__, hf_model.config
    if not hf_model._supports_attention_backend:
        raise _refused(name, "its layers do not go through the attention interface")
    if config.is_encoder_decoder or hf_model.get_output_embeddings() is None:
        raise _refused(name, "it is no causal language model")
    if getattr(hf_model, "is_quantized", False) or getattr(config, "quantization_config", None):
        raise _refused(name, "its weights are quantised; load it dequantised")
    if str(config._attn_implementation).startswith("paged"):
        raise _refused(name, f"its attention is {config._attn_implementation}")


def _refused(name: str, why: str) -> UsageError:
    return UsageError(f"pretrained: {name} cannot be routed: {why}")
