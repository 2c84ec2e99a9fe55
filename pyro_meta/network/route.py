"""What a layer shows a route, and what the route decides."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention import is_choice

Near = Callable[[], Tensor]
"""Asks for what window attention gives each token of a layer, [B, T, H d], without gradients."""


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
    near: Near | None = None
    """What window attention gives, which is computed only if somebody asks; None where the network
    does not know yet (see `Network.shows_near`)."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, state, normed and positions."""
        return self.tokens, self.state, self.normed, self.positions

    def detached(self) -> "Features":
        """The same, through which no gradient finds back into the network."""
        return self._replace(state=self.state.detach(), normed=self.normed.detach())

    def unfolded(self, leading: torch.Size) -> "Features":
        """The same, with the sequences in `leading` dimensions as well: [.., B, T]."""
        if not leading:
            return self

        def unfold(x: Tensor) -> Tensor:
            return x.unflatten(0, (*leading, -1))

        ask = self.near
        near = None if ask is None else lambda: unfold(ask())
        tokens, state, normed = map(unfold, (self.tokens, self.state, self.normed))
        return Features(tokens, state, normed, self.positions, near)

    def kept(self, with_near: bool) -> "Features":
        """The same to be kept for later, detached: with what is near, which is asked for now."""
        if not with_near or self.near is None:
            return self.detached()._replace(near=None)
        found = self.near()
        return self.detached()._replace(near=lambda: found)


class Raised(Features):
    """Features of a network of another precision, in the default one where they are read.

    In that a guide computes; what it does not read costs nothing.
    """

    def detached(self) -> "Features":
        return Raised(self[0], self[1].detach(), self[2].detach(), self[3], self[4])

    @property
    def state(self) -> Tensor:
        return self[1].to(torch.get_default_dtype())

    @property
    def normed(self) -> Tensor:
        return self[2].to(torch.get_default_dtype())


class Decision(NamedTuple):
    """What is decided for the tokens of a layer: how they attend, and whether they run it."""

    route: Tensor
    """Weights of the mechanisms, [B, T, K] or broadcastable; or, if they are hard, choices: the
    index of one mechanism for every token, integers [B, T]. Where each of G groups of heads has a
    route of its own, [B, T, G, K] and [B, T, G]."""
    gate: Tensor | None = None
    """The depth gate [B, T]: how far each token runs the block, from 0 (it skips the layer) to 1;
    or, if it is hard, whether it does, booleans. None: every token runs it."""

    def with_open_gate(self) -> "Decision":
        """The same, and every token runs the layer."""
        return Decision(self.route)

    def folded(self, tokens: Tensor, leading: torch.Size, groups: int) -> "Decision":
        """The same for `tokens` [N, T], whose sequences came in `leading` dimensions."""
        if not leading:
            return self
        route, gate = self
        wide = (*leading, len(tokens) // leading.numel(), tokens.shape[1])
        behind = int(groups > 1) + int(not is_choice(route))  # dimensions of groups, of weights
        route = route.expand(*wide, *route.shape[route.dim() - behind :])
        gate = None if gate is None else gate.expand(wide).flatten(0, len(leading))
        return Decision(route.flatten(0, len(leading)), gate)


Route = Callable[[int, Features], Decision]
"""`route(layer, features)` decides for the tokens of a layer."""


def as_weights(route: Tensor, mechanisms: int) -> Tensor:
    """What a route gave, as weights: choices become one-hot, and zero where there is no token."""
    if not is_choice(route):
        return route
    options = torch.arange(mechanisms, device=route.device)
    return (route[..., None] == options).to(torch.get_default_dtype())
