"""Laws of a depth gate: how far a token runs a block, a number g between 0 and 1.

A gate is the first of two shares, g and 1 - g, and so a Beta is a Dirichlet of two components: what
`pyro_meta.distributions.simplex` says of routes holds here. Batch shapes are usually [B, T], events
[].
"""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Distribution, constraints

from pyro_meta.distributions.simplex import (
    Hardened,
    Point,
    as_pair,
    entropy,
    expected_entropy,
    is_hard,
    uncertainty,
)


@expected_entropy.register
def _(law: Beta) -> Tensor:
    """psi(s + 1) - m psi(a + 1) - (1 - m) psi(b + 1) with s = a + b, m = a / s."""
    both = torch.stack([law.concentration1, law.concentration0], -1)
    return expected_entropy(Dirichlet(both, validate_args=False))


def runs(mean: Tensor, price: Tensor | float = 0.0) -> Tensor:
    """Whether a hard token runs the block, booleans: logit(mean) > price."""
    return torch.logit(mean) > price


def harden_gate(
    gate: Tensor, undecided: Tensor, threshold: Tensor | float, decided: Tensor
) -> Tensor:
    """Gates [..] that are exactly what is `decided`, 1 or 0, where `undecided` < threshold.

    Straight through: the gradient is that of `gate`.
    """
    hard = decided.to(gate.dtype) + (gate - gate.detach())
    return torch.where(is_hard(undecided, threshold), hard, gate)


class PointGate(Point):
    """All mass on one value of the gate: a deterministic one, whose KL from any law is 0."""

    arg_constraints = {"weights": constraints.unit_interval}
    support: Any = constraints.unit_interval

    def __init__(self, gate: Tensor, validate_args: bool | None = None) -> None:
        self.weights = gate
        TorchDistribution.__init__(self, gate.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PointGate":
        return PointGate(self.weights.expand(torch.Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


@expected_entropy.register
def _(law: PointGate) -> Tensor:
    return entropy(as_pair(law.weights))


class HardenedGate(Hardened):
    """A posterior of gates as it is executed: who is certain enough runs the block, or does not.

    Draws g from `base`; where uncertainty(base) < threshold the draw is replaced, straight through,
    by 1 or 0, whichever is decided from the mean (`runs`). The KL is that of `base`.
    """

    support: Any = constraints.unit_interval

    def __init__(
        self, base: Distribution, threshold: Tensor | float, price: Tensor | float = 0.0
    ) -> None:
        super().__init__(base, threshold)
        self.price = price

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HardenedGate":
        return HardenedGate(self.base.expand(batch_shape), self.threshold, self.price)

    def execute(self, draw: Tensor) -> Tensor:
        decided = runs(self.base.mean, self.price).expand(draw.shape)
        return harden_gate(draw, uncertainty(self.base), self.threshold, decided)
