"""From soft to hard: what runs for a draw of a route or a gate, or for its posterior.

A token whose rank lies below a threshold runs one mechanism alone (or, of a depth gate, runs the
layer or skips it), and all others run as they are; its rank is its uncertainty, unless another
order is asked for. Everything that decides about this stands here; the model, evaluation, read-out
and generation ask the same `Execution`.

Batch shapes are usually [B, T]; K mechanisms.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_meta.distributions.hashing import scramble, uniform
from pyro_meta.distributions.simplex import (
    straight_through,
    uncertainty,
    uncertainty_of_draw,
    vertex,
)


class Place(NamedTuple):
    """Where in the network and in the text something is decided."""

    layer: int
    positions: Tensor
    """Of the tokens, [T], or [B, T] where rows stand at positions of their own."""


class Execution(nn.Module):
    """When a token turns hard, and what it then runs; subclass it and define two methods.

    Attributes
    ----------
    order
        Which tokens turn hard first, as the threshold rises: those of the least uncertainty u
        (`uncertain_last`), those of the most (`reversed`), or `random` ones. Their rank is u, 1 - u
        or a hash of seed, position and layer, which is the same however often it is asked. That all
        turn at once (`all_at_once`) is a threshold that jumps.
    seed
        Of that hash.
    threshold
        A token of a rank below it is hard; 0: none is, 1: all are, whatever rounding does to their
        uncertainty. A buffer, saved with the model.
    price
        Nats by which something must be likelier to be chosen, for each unit by which it costs more.
        A buffer, too.
    """

    event_dim: int
    """Dimensions of a value: 1 of a route, 0 of a gate."""
    threshold: Tensor
    price: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.order, self.seed = "uncertain_last", 0
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("price", torch.zeros(()))

    def decide(self, mean: Tensor) -> Tensor:
        """What a hard token runs, [..], for the mean of its distribution, or for a draw."""
        raise NotImplementedError

    def replace(self, soft: Tensor, decided: Tensor, is_hard: Tensor) -> Tensor:
        """`soft` values with those `decided` on in place where `is_hard` [..], straight through."""
        raise NotImplementedError

    @property
    def is_hard_everywhere(self) -> bool:
        """Whether every token is hard."""
        return float(self.threshold) >= 1

    def is_hard(self, undecided: Tensor, place: Place | None = None) -> Tensor:
        """Which tokens of a given uncertainty [..] are hard, booleans.

        Raises
        ------
        ValueError
            Nobody says where they are, and they turn hard at random places.
        """
        rank = self._rank(undecided, place).expand(undecided.shape)
        return (rank < self.threshold) | (self.threshold >= 1)

    def _rank(self, undecided: Tensor, place: Place | None) -> Tensor:
        """When tokens turn hard, from 0 (first) to 1, [..] or broadcastable to it."""
        if self.order == "reversed":
            return (1 - undecided).clamp(min=0)
        if self.order == "random":
            if place is None:
                raise ValueError("tokens turn hard in random order: their place is needed")
            return self._lots(place)
        return undecided

    def _lots(self, place: Place) -> Tensor:
        """A number from 0 to 1 for each position in a layer, [T], or [B, T]."""
        key = torch.full_like(place.positions, self.seed)
        for part in (place.layer, place.positions):
            key = scramble(key + part)
        return uniform(key)

    def forward(self, draw: Tensor, place: Place | None = None) -> Tensor:
        """What runs for a draw, a value like it: a function of the draw, threshold and price alone.

        So the likelihood of a draw depends on nothing but that draw (and its place, where that says
        when it turns hard). Gradients pass straight through.
        """
        undecided = uncertainty_of_draw(draw, self.event_dim)
        return self.replace(draw, self.decide(draw), self.is_hard(undecided, place))

    def of_draw(self, draw: Tensor, place: Place | None = None) -> Tensor:
        """The same without gradients through it: what is decided [..] where every token is hard."""
        return self.decide(draw) if self.is_hard_everywhere else self(draw, place)

    def of_mean(
        self, dist: Distribution, hard: bool | None = None, place: Place | None = None
    ) -> Tensor:
        """What runs along the mean of `dist`, as evaluation and generation follow it.

        Parameters
        ----------
        dist
            A posterior.
        hard
            True: every token is hard. False: none is. None: those are whose rank by the uncertainty
            of their posterior is below the threshold.
        place
            Where the tokens are.

        Returns
        -------
        Tensor
            Where every token is hard, what is decided [..]; else values like the mean.
        """
        mean: Tensor = dist.mean
        if hard is False:
            return mean
        if hard or self.is_hard_everywhere:
            return self.decide(mean)
        return self.straight_through_mean(dist, place)

    def straight_through_mean(self, dist: Distribution, place: Place | None = None) -> Tensor:
        """What runs along the mean of `dist`, a value like it; gradients pass straight through."""
        mean: Tensor = dist.mean
        return self.replace(mean, self.decide(mean), self.is_hard(uncertainty(dist), place))


class RouteExecution(Execution):
    """Routes: a hard token runs argmax_k (log m_k - price c_k), one mechanism alone.

    Parameters
    ----------
    costs
        c [K], MACs averaged over the context, where a layer of full attention is 1.
    groups
        G: where it is above 1, routes are [.., T, G, K], and all groups of a token turn hard
        together where the order is random.
    """

    event_dim = 1
    costs: Tensor

    def __init__(self, costs: Tensor, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.register_buffer("costs", costs, persistent=False)

    def _lots(self, place: Place) -> Tensor:
        lots = super()._lots(place)
        return lots if self.groups == 1 else lots[..., None]

    def decide(self, mean: Tensor) -> Tensor:
        """Mechanisms [..] for weights [.., K]: who hardly cares does not pay for a dear one."""
        return (mean.log() - self.charged).argmax(-1)

    @property
    def charged(self) -> Tensor:
        """price c [K], above that of the cheapest, which never underflows."""
        return self.price * (self.costs - self.costs.min())

    def replace(self, soft: Tensor, decided: Tensor, is_hard: Tensor) -> Tensor:
        return torch.where(is_hard[..., None], straight_through(soft, decided), soft)

    def shares(self, mean: Tensor) -> Tensor:
        """What runs once everything is hard, as weights [.., K]: one mechanism."""
        return vertex(self.decide(mean), mean)


class GateExecution(Execution):
    """Depth gates: a hard token runs the layer where logit(mean) > price, and else skips it."""

    event_dim = 0

    def decide(self, mean: Tensor) -> Tensor:
        """Whether hard tokens run the layer, booleans [..]."""
        return torch.logit(mean) > self.price

    def replace(self, soft: Tensor, decided: Tensor, is_hard: Tensor) -> Tensor:
        hard = decided.to(soft.dtype) + (soft - soft.detach())
        return torch.where(is_hard, hard, soft)
