"""Models of transformers, wrapped and converted, with all routes full: nothing is lost."""

from typing import Any

import pyro
import pytest
import torch
from pretrained_models import (
    MODELS,
    ROUTED,
    VOCABULARY,
    Written,
    converted,
    each_model,
    logits_of,
    padded,
    require_close,
    require_same_text,
    text,
    tiny,
    to_full,
    wrapped,
)
from torch import Tensor

from pyro_meta import pinned
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.pretrained import convert, is_converted, wrap
from pyro_meta.pretrained.conversion import deployed

EACH_WAY: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "3 beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 5},
}


def all_full(made: Any) -> Any:
    return convert(made, to_full(wrapped(made)))


def require_equal(found: Tensor, wanted: Tensor) -> None:
    assert torch.equal(found, wanted), float((found - wanted).abs().max())


# -- wrapped -------------------------------------------------------------------------------------


@each_model
def test_routes_pinned_to_full_give_the_logits_of_the_model(name: str) -> None:
    made, tokens = MODELS[name](), text()
    plain = logits_of(made, tokens)
    network = wrapped(made)
    require_equal(logits_of(made, tokens), plain)  # nothing routes yet
    with torch.no_grad():
        require_close(network(tokens, pinned(network, "full")), plain)
        require_close(network(tokens, chosen_by_all(network, "full")), plain)
        assert float((network(tokens, pinned(network, "window")) - plain).abs().max()) > 0.1


@each_model
def test_sizes_are_those_of_the_model(name: str) -> None:
    made = MODELS[name]()
    network = wrap(made)
    shape, config = network.shape, made.config
    assert shape.layers == ROUTED[name] == len(network.leading_mechanisms)
    assert (shape.vocabulary, shape.width, shape.heads) == (VOCABULARY, config.hidden_size, 4)
    kv_heads = {"Gemma3": 1, "GPT-NeoX": 4, "GPT-2": 4}.get(name, 2)
    assert shape.kv_heads == kv_heads == shape.groups
    assert shape.head_width == getattr(config, "head_dim", None) or 8
    assert (shape.window, shape.sinks, shape.context) == (128, 4, 128)
    assert network.mechanism_names == ["full", "window"]
    assert not any(weight.requires_grad for weight in made.parameters()) and not made.training


# -- converted -----------------------------------------------------------------------------------


@each_model
def test_all_routes_full_give_the_logits_of_the_model(name: str) -> None:
    made, tokens = MODELS[name](), text()
    plain = logits_of(made, tokens)
    routed = all_full(made)
    assert routed is made and is_converted(made)
    require_equal(logits_of(routed, tokens), plain)
    require_equal(logits_of(routed, tokens, use_cache=True), plain)
    deployed(routed).forced = "full"
    require_equal(logits_of(routed, tokens), plain)
    deployed(routed).forced = "window"
    assert float((logits_of(routed, tokens) - plain).abs().max()) > 0.1


@each_model
def test_all_routes_full_behind_padding(name: str) -> None:
    made, rows = MODELS[name](), padded([text(1, length)[0] for length in (4, 19, 11)])
    with torch.no_grad():
        plain = made(**rows).logits
    with torch.no_grad():
        require_equal(all_full(made)(**rows).logits, plain)


@each_model
@pytest.mark.parametrize("way", EACH_WAY)
def test_all_routes_full_write_the_same_text(name: str, way: str) -> None:
    made, rows = MODELS[name](), padded([text(1, length)[0] for length in (12, 7)])
    tokens, holds = rows["input_ids"], rows["attention_mask"]
    plain = Written(made, tokens, attention_mask=holds, **EACH_WAY[way])
    found = Written(all_full(made), tokens, attention_mask=holds, **EACH_WAY[way])
    require_same_text(found, plain)
    assert torch.equal(found.logits, plain.logits)


@each_model
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_all_routes_full_under_gradient_checkpointing(name: str) -> None:
    """In training mode, with the gradients of all weights."""
    tokens = text()

    def learned(routes_full: bool, checkpoints: bool) -> tuple[Tensor, list[Tensor]]:
        made = MODELS[name]()
        if routes_full:
            made = all_full(made)
        made.requires_grad_(True).train()
        for module in made.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpoints:
            made.gradient_checkpointing_enable({"use_reentrant": False})
        out = made(input_ids=tokens, labels=tokens, use_cache=False)
        out.loss.backward()
        return out.logits, [weight.grad for weight in made.parameters()]

    plain, gradients = learned(False, False)
    for checkpoints in (False, True):
        found, ours = learned(True, checkpoints)
        require_equal(found, plain)
        for one, other in zip(ours, gradients, strict=True):
            require_equal(one, other)


def require_compiled(made: Any, *texts: Tensor, **options: Any) -> None:
    plain = [logits_of(made, tokens) for tokens in texts]
    torch.compiler.reset()
    compiled = torch.compile(made, backend="eager", **options)
    for tokens, wanted in zip(texts, plain, strict=True):
        require_close(logits_of(compiled, tokens), wanted)


@each_model
def test_all_routes_full_compiled_in_one_graph(name: str) -> None:
    """The guide with it, which cannot check its distributions there."""
    with pyro.validation_enabled(False):
        require_compiled(all_full(MODELS[name]()), text(), fullgraph=True)


def test_texts_of_other_lengths_are_compiled_anew() -> None:
    made = all_full(tiny("Llama", num_hidden_layers=1))
    with pyro.validation_enabled(False):
        require_compiled(made, text(), text(3, 13), fullgraph=True)
    deployed(made).forced = "full"  # and no guide is asked
    require_compiled(made, text(), fullgraph=True)


@pytest.mark.xfail(strict=True, reason="dynamo does not trace the checks of a distribution twice")
def test_a_guide_that_checks_its_distributions_is_compiled_again_and_again() -> None:
    for _ in range(2):
        require_compiled(all_full(tiny("Llama", num_hidden_layers=1)), text(), fullgraph=True)


def test_a_routed_model_compiled_in_parts() -> None:
    """As people compile who ask for nothing: whatever cannot be traced runs beside the graphs."""
    require_compiled(converted(tiny("Llama", num_hidden_layers=1)), text())
