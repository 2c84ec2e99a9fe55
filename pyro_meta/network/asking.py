"""How a network asks a route in one layer, and what it accepts.

Shapes: B sequences, T tokens, S new ones, K mechanisms.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_meta.attention import Cache, Span, is_choice
from pyro_meta.attention.ops.precision import at_least_float32, without_autocast
from pyro_meta.network.route import Decision, Features, Route


def require_call(tokens: Tensor, cache: Cache | None, lengths: Sequence[int] | None) -> None:
    """Raise `ValueError` unless tokens are [B, T], fit the cache, and lengths come with one."""
    if tokens.dim() != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens must be [B, T] with T >= 1, not {list(tokens.shape)}")
    if cache is None and lengths is not None:
        raise ValueError("lengths are given, and no cache")
    if cache is not None and len(tokens) != len(cache.lengths):
        raise ValueError(f"tokens have {len(tokens)} rows, and the cache {len(cache.lengths)}")


def asked(route: Route, layer: int, features: Features, of_groups: tuple[int, ...]) -> Decision:
    """What `route` decides, checked."""
    tokens, state, normed, positions, near = features
    with without_autocast(tokens.device):
        wide = Features(tokens, at_least_float32(state), at_least_float32(normed), positions, near)
        decision = route(layer, wide)
    if not isinstance(decision, Decision):
        raise TypeError(
            f"route of layer {layer} gave {type(decision).__name__}; a Decision is needed"
        )
    chosen, gate = decision
    size = (*tokens.shape, *of_groups)
    if is_choice(chosen):
        if chosen.shape != size:
            raise ValueError(
                f"route of layer {layer} is {list(chosen.shape)} of {chosen.dtype}; choices "
                f"must be {list(size)}, one for every token"
            )
    elif chosen.dim() > len(size) + 1 or 2 < chosen.dim() <= len(size):
        raise ValueError(
            f"route of layer {layer} is {list(chosen.shape)}; weights must be {[*size, 'K']} or "
            "broadcastable, and leading dimensions of particles are folded by `LanguageModel.run`"
        )
    elif of_groups and (chosen.dim() < 2 or chosen.shape[-2] not in (1, *of_groups)):
        raise ValueError(
            f"route of layer {layer} is {list(chosen.shape)}; weights must be "
            f"{[*size, 'K']} or broadcastable"
        )
    if gate is not None and gate.shape != tokens.shape:
        raise ValueError(
            f"gate of layer {layer} is {list(gate.shape)}; it must be {list(tokens.shape)}, "
            "one number for every token"
        )
    return decision


def asked_of_new(
    route: Route,
    layer: int,
    features: Features,
    cache: Cache,
    span: Span,
    of_groups: tuple[int, ...],
) -> Decision:
    """What `route` decides for the new tokens of a span."""
    tokens, state, normed, positions, near = features
    if cache.keeps_features:  # what was near to earlier tokens is not kept
        whole = cache.remember(layer, tokens, state, normed, span)
        features = Features(*whole, torch.arange(span.end, device=tokens.device))
    elif not span.is_aligned:  # side by side, as one row of tokens, each at its own position
        tokens, state, normed = (x.flatten(0, 1)[None] for x in (tokens, state, normed))
        beside = None if near is None else lambda: near().flatten(0, 1)[None]
        features = Features(tokens, state, normed, positions.flatten(), beside)
    chosen, gate = asked(route, layer, features, of_groups)
    if not is_choice(chosen):
        behind = (*of_groups, chosen.shape[-1])
        size = features.tokens.shape
        has_rows = chosen.dim() == 2 + len(behind) and len(chosen) == len(span.counts)
        if has_rows and not cache.keeps_features:
            size = torch.Size([len(chosen), span.size])  # weights of each row, also side by side
        chosen = chosen.expand(*size, *behind)

    def of_new(x: Tensor) -> Tensor:
        return span.newest(x) if cache.keeps_features else x.reshape(-1, span.size, *x.shape[2:])

    return Decision(of_new(chosen), None if gate is None else of_new(gate))
