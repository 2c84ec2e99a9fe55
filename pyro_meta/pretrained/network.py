"""A causal language model of transformers, kept whole, behind the network protocol.

    h'  = h  + W_o sum_k alpha_k A_k(q, k, v)        q, k, v of the model's own projections
    h'' = whatever the model does with it

With every route pinned to `full` the logits are the model's own. Its weights are frozen, and are
not among those that this module saves: they are known by name and hash. Local layers of the model
stay as they are and are not routed.

Shapes: B sequences, T tokens, S new ones, L routed layers, H query heads, G key-value heads, d head
width, D width, V vocabulary, K mechanisms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyro_meta.attention import (
    NO_TOKEN,
    Cache,
    Inputs,
    Mechanism,
    Span,
    Window,
    build_mechanisms,
    carries,
    is_choice,
)
from pyro_meta.attention.mechanisms import attend_all
from pyro_meta.attention.mixing import mixed_attention
from pyro_meta.errors import UsageError
from pyro_meta.network.asking import asked, asked_of_new, require_call
from pyro_meta.network.route import Decision, Features, Near, Raised, Route
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.pretrained.fingerprint import fingerprint
from pyro_meta.pretrained.hooking import Anatomy, hooked, probe
from pyro_meta.pretrained.interface import Call, Pass, Routing, Site, routing_of

ROUNDING = 1e-5
"""By how much logits may differ, as a share of the largest, in float32; in others, their own."""
WINDOW, SINKS, CONTEXT = 128, 4, 1024
"""What `wrap` takes where nothing is said."""


class PretrainedNetwork(nn.Module):
    """The layers of a model of transformers, each of which asks a route how its tokens attend.

    Parameters
    ----------
    hf_model
        The model. It is hooked into, frozen, and set to evaluation mode, in which it stays.
    mechanisms
        Names of built-in mechanisms, or import paths of a user's own. They read queries and keys
        as the model rotates them.
    window, sinks
        W and the first tokens that `window` sees as well.
    context
        Tokens in a training sequence: costs are averaged over that many positions, and generation
        reads the last that many. By default 1024, or as many as the model knows.
    groups
        `kv`: every key-value head has a route of its own; 1: one route for all heads.

    Raises
    ------
    UsageError
        The model is none that can be routed, or an argument is out of range.
    """

    gain: Tensor

    def __init__(
        self,
        hf_model: PreTrainedModel,
        mechanisms: Sequence[str] = ("full", "window"),
        window: int = WINDOW,
        sinks: int = SINKS,
        context: int | None = None,
        groups: int | str = "kv",
    ) -> None:
        super().__init__()
        with hooked(hf_model) as found:
            self.shape = _shape(hf_model, found, window, sinks, context, groups)
            sizes = self.shape.of_mechanisms
            self.attentions = nn.ModuleList(
                build_mechanisms(mechanisms, sizes) for _ in range(self.shape.layers)
            ).to(hf_model.device)
            for one in self.mechanisms:
                if carries(one) or one.reads_separators:
                    raise UsageError(
                        f"mechanisms: {one.name} given; a pretrained model has nothing for it to "
                        "read"
                    )
        self.hf_model = hf_model
        self.trained_in: torch.dtype = hf_model.dtype
        self.arguments = {
            "mechanisms": list(mechanisms),
            "window": window,
            "sinks": sinks,
            "context": self.shape.context,
            "groups": groups,
        }
        ones = torch.ones(len(mechanisms), found.heads * found.head_width)
        self.register_buffer("gain", ones.to(hf_model.device), persistent=False)
        hf_model.requires_grad_(False)
        self.train()
        self._reads_states = _is_read_out_of_states(hf_model)
        self._can_be_resumed: bool | None = None
        self.register_state_dict_post_hook(_leave_out_model)
        self.register_load_state_dict_post_hook(_do_without_model)

    @property
    def mechanisms(self) -> list[Mechanism]:
        """The mechanisms in the order of the weights (those of the first layer)."""
        return self.mechanisms_of(0)

    def mechanisms_of(self, layer: int) -> list[Mechanism]:
        """Those of one layer."""
        return [cast(Mechanism, one) for one in cast(nn.ModuleList, self.attentions[layer])]

    @property
    def mechanism_names(self) -> list[str]:
        return [mechanism.name for mechanism in self.mechanisms]

    @property
    def window_index(self) -> int:
        """Of `window` among the mechanisms."""
        return self.mechanism_names.index("window")

    @property
    def layers(self) -> list[nn.Module]:
        """The model's own layers, those that are routed."""
        return [site.around for site in self.routing.sites if site.layer is not None]

    @property
    def leading_mechanisms(self) -> list[tuple[str, ...]]:
        """With `full` in every layer: so the model was trained."""
        return [("full",)] * self.shape.layers

    @property
    def shows_near(self) -> bool:
        """If `window` is among its mechanisms."""
        return "window" in self.mechanism_names

    @property
    def device(self) -> torch.device:
        return self.hf_model.device

    @property
    def routing(self) -> Routing:
        """What its layers share."""
        routing = routing_of(self.hf_model)
        if routing is None:
            raise UsageError("pretrained: the model was unhooked; wrap it anew")
        return routing

    def describe(self) -> dict[str, Any]:
        """What has to agree for routes to mean the same: mechanisms, sizes, the model's weights."""
        return {
            "mechanisms": self.mechanism_names,
            "model": fingerprint(self.hf_model),
            "shape": asdict(self.shape),
        }

    def dense_macs(self, skipped: float = 0.0) -> float:
        """MACs of one token outside attention and router: one for each weight of a matrix."""
        known = {id(one.weight) for one in self.hf_model.modules() if isinstance(one, nn.Embedding)}
        head = self.hf_model.get_output_embeddings().weight
        matrices = {
            id(one): one.numel()
            for one in self.hf_model.parameters()
            if one.dim() == 2 and (id(one) not in known or one is head)
        }
        return float(sum(matrices.values()))

    def compile_blocks(self) -> None:
        """Compile the layers of the model in place; the routes stay outside."""
        for site in self.routing.sites:
            site.around.compile(dynamic=False)

    def train(self, mode: bool = True) -> "PretrainedNetwork":
        """Set the mode of the mechanisms; the model itself stays in evaluation mode.

        So does this module: Pyro warns of every frozen weight of one that is in training.
        """
        super().train(mode)
        self.training = False
        self.hf_model.eval()
        return self

    def new_cache(self, rows: int, keeps_features: bool = True) -> Cache:
        """An empty cache for texts in `rows` rows; see `Transformer.new_cache`.

        Raises
        ------
        UsageError
            The model has layers that are local in a way that the cache does not know, or that
            remember more of a text than its keys and values.
        """
        if self._can_be_resumed is None:
            self._can_be_resumed = self._resumes()
        if not self._can_be_resumed:
            raise UsageError(
                "pretrained: the model remembers more of a text than keys and values; read its "
                "texts without a cache"
            )
        return self._new_cache(rows, keeps_features)

    def _new_cache(self, rows: int, keeps_features: bool) -> Cache:
        return Cache(list(self._kept()), rows, keeps_features, self.shape.groups)

    def _resumes(self) -> bool:
        """Whether a short text that is read in two pieces gets the states of the whole."""
        tokens, cache = probe(self.hf_model), self._new_cache(1, False)
        route = chosen_by_all(self, self.mechanism_names[0])
        with torch.no_grad():
            whole = self.states(tokens, route)
            pieces = [self.states(piece, route, cache) for piece in tokens.chunk(2, 1)]
        return is_rounding(torch.cat(pieces, 1), whole)

    def _kept(self) -> Iterator[list[Mechanism]]:
        for site in self.routing.sites:
            if site.layer is not None:
                yield self.mechanisms_of(site.layer)
            elif site.window is not None and site.window > 0:
                yield [Window(self.shape.head_width, site.window)]
            else:
                raise UsageError(
                    "pretrained: the model has local layers that are no windows; read its texts "
                    "without a cache"
                )

    def forward(
        self,
        tokens: Tensor,
        route: Route,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of the next token, [B, T, V], for tokens [B, T]; see `Transformer.forward`."""
        return self.readout(self.states(tokens, route, cache, lengths))

    def readout(self, states: Tensor) -> Tensor:
        """Logits [.., V] of `states`."""
        if not self._reads_states:
            return states
        return cast(Tensor, self.hf_model.get_output_embeddings()(states))

    def states(
        self,
        tokens: Tensor,
        route: Route,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """What `readout` turns into logits: [B, T, D], or logits where a model does more there."""
        require_call(tokens, cache, lengths)
        if cache is not None:
            with torch.no_grad():
                return self._extended(tokens, route, cache, lengths)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self._run(tokens, positions, _Whole(self, tokens, positions, route))

    def _extended(
        self, tokens: Tensor, route: Route, cache: Cache, lengths: Sequence[int] | None
    ) -> Tensor:
        span = cache.span(tokens.shape[1], lengths)
        if not span.rows:  # nothing but padding
            width = self.shape.width if self._reads_states else self.shape.vocabulary
            return torch.zeros(*tokens.shape, width, device=tokens.device)
        positions = span.positions(tokens.device)
        states = self._run(
            tokens, positions, _Following(self, tokens, positions, route, cache, span)
        )
        cache.commit(span)
        return states

    def _run(self, tokens: Tensor, positions: Tensor, passing: Pass) -> Tensor:
        """One forward pass of the model; positions [T] or [B, T]."""
        model = self.hf_model.base_model if self._reads_states else self.hf_model
        with self.routing.within(passing):
            out = model(
                input_ids=tokens, position_ids=positions.expand(tokens.shape), use_cache=False
            )
        return cast(Tensor, out.last_hidden_state if self._reads_states else out.logits)


@dataclass
class _Whole:
    """Every layer asks the route about the whole text."""

    network: PretrainedNetwork
    tokens: Tensor
    positions: Tensor
    route: Route

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, site: Site, call: Call) -> Tensor:
        if site.layer is None:
            return call.plain()[0]
        inputs = inputs_of(call)
        near = self.near(site.layer, inputs) if self.network.shows_near else None
        features = features_of(site, self.tokens, self.positions, near)
        decision = asked(self.route, site.layer, features, self.network.shape.of_groups)
        route = without_gate(decision)
        out = mixed_attention(
            self.network.mechanisms_of(site.layer),
            self.network.gain.to(inputs.v.dtype),
            route,
            inputs,
            self.network.shape.groups,
        )
        return out.unflatten(-1, (self.network.shape.heads, -1)).to(call.value.dtype)

    def near(self, layer: int, inputs: Inputs) -> Near:
        return lambda: near_of_text(self.network, layer, inputs)


@dataclass
class _Following:
    """Every layer asks the route about tokens that follow those in a cache."""

    network: PretrainedNetwork
    tokens: Tensor
    positions: Tensor
    route: Route
    cache: Cache
    span: Span

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, site: Site, call: Call) -> Tensor:
        shape, inputs = self.network.shape, inputs_of(call)
        if site.layer is None:
            mechanisms = self.cache.layers[site.index].mechanisms
            chosen = self.tokens.new_zeros(*self.tokens.shape, *shape.of_groups)
        else:
            mechanisms = self.network.mechanisms_of(site.layer)
            near = self.near(site, inputs) if self.network.shows_near else None
            features = features_of(site, self.tokens, self.positions, near)
            chosen = without_gate(
                asked_of_new(
                    self.route, site.layer, features, self.cache, self.span, shape.of_groups
                )
            )
        is_token = self.span.is_token(self.tokens.device)
        if is_token is not None and is_choice(chosen):
            is_here = is_token if chosen.dim() == 2 else is_token[..., None]
            chosen = chosen.masked_fill(~is_here, NO_TOKEN)
        gain = self.network.gain.to(inputs.v.dtype)[: len(mechanisms)]

        def begin(inputs: Inputs) -> Tensor:
            return mixed_attention(mechanisms, gain, chosen, inputs, shape.groups)

        layer = self.cache.layers[site.index]
        out = layer.extend(gain, chosen, inputs, self.span, begin)
        return out.unflatten(-1, (shape.heads, -1)).to(call.value.dtype)

    def near(self, site: Site, inputs: Inputs) -> Near:
        index, layer = self.network.window_index, self.cache.layers[site.index]

        def ask() -> Tensor:
            with torch.no_grad():
                return layer.shown(index, inputs, self.span)

        return ask


def features_of(
    site: Site, tokens: Tensor, positions: Tensor, near: Near | None = None
) -> Features:
    """What a router may look at before an attention module."""
    assert site.normed is not None
    state = site.normed if site.state is None else site.state
    return Raised(tokens, state, site.normed, positions, near)


def near_of_text(network: PretrainedNetwork, layer: int, inputs: Inputs) -> Tensor:
    """What window attention gives the tokens of a whole text, [B, T, H d]."""
    window = network.mechanisms_of(layer)[network.window_index]
    with torch.no_grad():
        return attend_all(window, *inputs.read_by(window)).transpose(1, 2).flatten(2)


def without_gate(decision: Decision) -> Tensor:
    """The route of a decision; a model that is kept whole skips no layer."""
    if decision.gate is not None:
        raise UsageError("depth: a pretrained model has no depth gates")
    return decision.route


def inputs_of(call: Call) -> Inputs:
    """Queries, keys and values of a call, scaled so that scores are as the model wants them."""
    q, k, v = call.query, call.key, call.value
    usual = q.shape[-1] ** -0.5
    if call.scaling != usual:
        q = q * (call.scaling / usual)
    return Inputs(q, k, v, q, k)


def is_rounding(found: Tensor, wanted: Tensor) -> bool:
    """Whether two ways of computing the same differ by no more than rounding."""
    return float((found - wanted).abs().max()) <= most_rounding(wanted)


def most_rounding(wanted: Tensor) -> float:
    """By how much what is computed in another way may differ."""
    share = max(ROUNDING, 8 * torch.finfo(wanted.dtype).eps)
    return share * float(wanted.abs().max().clamp(min=1))


def _shape(
    hf_model: PreTrainedModel,
    found: Anatomy,
    window: int,
    sinks: int,
    context: int | None,
    groups: int | str,
) -> Shape:
    config = hf_model.config.get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None) or CONTEXT
    if context is not None and context > longest:
        raise UsageError(f"context: {context} given; the model knows {longest} positions")
    if groups not in (1, "kv", found.kv_heads):
        raise UsageError(
            f"groups: {groups!r} given; 1 or kv (each of {found.kv_heads} key-value heads) is "
            "allowed"
        )
    return Shape(
        vocabulary=hf_model.get_output_embeddings().weight.shape[0],
        context=min(CONTEXT, longest) if context is None else context,
        width=config.hidden_size,
        layers=len(found.modules),
        heads=found.heads,
        kv_heads=found.kv_heads,
        window=window,
        sinks=sinks,
        head=found.head_width,
        groups=1 if groups == 1 else found.kv_heads,
    )


def _is_read_out_of_states(hf_model: PreTrainedModel) -> bool:
    """Whether logits are the output embedding of the last state, and nothing else."""
    if hf_model.base_model is hf_model:
        return False
    tokens = probe(hf_model)
    with torch.no_grad():
        states = hf_model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = hf_model(input_ids=tokens, use_cache=False).logits
        return torch.equal(hf_model.get_output_embeddings()(states), logits)


def _leave_out_model(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """The model's own weights are not saved with its routes."""
    for name in [name for name in state if name.startswith(f"{prefix}hf_model.")]:
        del state[name]


def _do_without_model(module: nn.Module, incompatible: Any) -> None:
    """Nor are they missed when routes are loaded."""
    missing: list[str] = incompatible.missing_keys
    missing[:] = [name for name in missing if "hf_model." not in name]
