"""From soft to hard: what runs for a draw of a route or a gate, or for its posterior.

A token whose uncertainty lies below a threshold runs one mechanism alone (or, of a depth gate, runs
the layer or skips it), and all others run as they are. Everything that decides about this stands
here; the model, evaluation, read-out and generation ask the same `Execution`.

Batch shapes are usually [B, T]; K mechanisms.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_meta.distributions.simplex import (
    straight_through,
    uncertainty,
    uncertainty_of_draw,
    vertex,
)


class Execution(nn.Module):
    """When a token turns hard, and what it then runs; subclass it and define two methods.

    Attributes
    ----------
    threshold
        A token of an uncertainty below it is hard; 0: none is, 1: all are, whatever rounding does
        to their uncertainty. A buffer, saved with the model.
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

    def is_hard(self, undecided: Tensor) -> Tensor:
        """Which tokens of a given uncertainty [..] are hard, booleans."""
        return (undecided < self.threshold) | (self.threshold >= 1)

    def forward(self, draw: Tensor) -> Tensor:
        """What runs for a draw, a value like it: a function of the draw, threshold and price alone.

        So the likelihood of a draw depends on nothing but that draw. Gradients pass straight
        through.
        """
        undecided = uncertainty_of_draw(draw, self.event_dim)
        return self.replace(draw, self.decide(draw), self.is_hard(undecided))

    def of_draw(self, draw: Tensor) -> Tensor:
        """The same without gradients through it: what is decided [..] where every token is hard."""
        return self.decide(draw) if self.is_hard_everywhere else self(draw)

    def of_mean(self, dist: Distribution, hard: bool | None = None) -> Tensor:
        """What runs along the mean of `dist`, as evaluation and generation follow it.

        Parameters
        ----------
        dist
            A posterior.
        hard
            True: every token is hard. False: none is. None: those are whose posterior is less
            uncertain than the threshold.

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
        return self.straight_through_mean(dist)

    def straight_through_mean(self, dist: Distribution) -> Tensor:
        """What runs along the mean of `dist`, a value like it; gradients pass straight through."""
        mean: Tensor = dist.mean
        return self.replace(mean, self.decide(mean), self.is_hard(uncertainty(dist)))


class RouteExecution(Execution):
    """Routes: a hard token runs argmax_k (log m_k - price c_k), one mechanism alone.

    Parameters
    ----------
    costs
        c [K], MACs averaged over the context, where a layer of full attention is 1.
    """

    event_dim = 1
    costs: Tensor

    def __init__(self, costs: Tensor) -> None:
        super().__init__()
        self.register_buffer("costs", costs, persistent=False)

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
