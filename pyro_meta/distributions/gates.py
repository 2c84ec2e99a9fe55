"""Distributions of a depth gate: how far a token runs a block, a number g between 0 and 1.

A gate is the first of two shares, g and 1 - g, and so a Beta is a Dirichlet of two components: what
`pyro_meta.distributions.simplex` says of routes holds here. Batch shapes are usually [B, T], events
[].
"""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Beta, Dirichlet, constraints

from pyro_meta.distributions.simplex import (
    Point,
    as_pair,
    entropy,
    expected_entropy,
)


@expected_entropy.register
def _(dist: Beta) -> Tensor:
    """psi(s + 1) - m psi(a + 1) - (1 - m) psi(b + 1) with s = a + b, m = a / s."""
    both = torch.stack([dist.concentration1, dist.concentration0], -1)
    return expected_entropy(Dirichlet(both, validate_args=False))


class PointGate(Point):
    """All mass on one value of the gate: deterministic, and its KL from any distribution is 0."""

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
def _(dist: PointGate) -> Tensor:
    return entropy(as_pair(dist.weights))


def open_gate(like: Tensor) -> PointGate:
    """The gate of a layer that every token runs: all mass on 1, for each of `like` [..]."""
    return PointGate(torch.ones(like.shape, device=like.device), validate_args=False)
