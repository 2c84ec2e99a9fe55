"""What a layer shows a route, and what the route decides."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention import is_choice


class Features(NamedTuple):
    """What a router may look at before a layer: the prefix of each token, and no more."""

    tokens: Tensor
    """Token ids, [B, T]."""
    state: Tensor
    """The residual stream h entering the layer, [B, T, D]."""
    normed: Tensor
    """The layer's normalised input, norm(h) or norm(h + mu v), projected to q, k, v, [B, T, D]."""
    positions: Tensor
    """Positions 0, 1, ..., [T]: absolute, never divided by the length of the sequence."""

    def detached(self) -> "Features":
        """The same, through which no gradient finds back into the network."""
        return self._replace(state=self.state.detach(), normed=self.normed.detach())


class Decision(NamedTuple):
    """What is decided for the tokens of a layer: how they attend, and whether they run it."""

    route: Tensor
    """Weights of the mechanisms, [B, T, K] or broadcastable; or, if they are hard, choices: the
    index of one mechanism for every token, integers [B, T]."""
    gate: Tensor | None = None
    """The depth gate [B, T]: how far each token runs the block, from 0 (it passes by) to 1; or, if
    it is hard, whether it does, booleans. None: every token runs it."""


Route = Callable[[int, Features], Tensor | Decision]
"""`route(layer, features)` gives a `Decision`; or a tensor, its `route`, and every token runs the
layer."""


def decided(given: Tensor | Decision) -> Decision:
    """What a route gave, as a decision."""
    return given if isinstance(given, Decision) else Decision(given)


def as_weights(route: Tensor, mechanisms: int) -> Tensor:
    """What a route gave, as weights: choices become one-hot, and zero where there is no token."""
    if not is_choice(route):
        return route
    options = torch.arange(mechanisms, device=route.device)
    return (route[..., None] == options).to(torch.get_default_dtype())


def with_open_gates(route: Route) -> Route:
    """The same route, on which every token runs every layer."""

    def opened(layer: int, features: Features) -> Tensor:
        return decided(route(layer, features)).route

    return opened
