"""Distributions on the simplex of routes: entropy, uncertainty, divergence, and single points.

A route alpha is a point of the simplex over K mechanisms; batch shapes are usually [B, T].
"""

import math
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import Dirichlet as PyroDirichlet
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Dirichlet, Distribution, constraints, kl_divergence
from torch.distributions.kl import register_kl


def entropy(weights: Tensor) -> Tensor:
    """H(alpha) = -sum_k alpha_k log alpha_k in nats, over the last dimension."""
    return torch.special.entr(weights).sum(-1)


def as_pair(share: Tensor) -> Tensor:
    """A share [..] and what is left of it, as points [.., 2] of the simplex."""
    return torch.stack([share, 1 - share], -1)


@singledispatch
def expected_entropy(dist: Distribution) -> Tensor:
    """E[H(alpha)] in nats, by batch element: how undecided a draw is on average.

    In closed form where there is one; otherwise the mean over 64 draws. A scalar distribution is of
    one of two shares (see `pyro_meta.distributions.gates`).
    """
    draws = dist.sample(torch.Size([64]))
    return entropy(draws if dist.event_shape else as_pair(draws)).mean(0)


@expected_entropy.register
def _(dist: Dirichlet) -> Tensor:
    """psi(a_0 + 1) - sum_k m_k psi(a_k + 1) (Malinin & Gales 2018, arXiv 1802.10501)."""
    a = dist.concentration
    total = a.sum(-1)
    mean = a / total[..., None]
    return torch.digamma(total + 1) - (mean * torch.digamma(a + 1)).sum(-1)


@singledispatch
def uncertainty(dist: Distribution) -> Tensor:
    """u = E[H(alpha)] / log K, in [0, 1]; 0 where there is a single mechanism.

    K is 2 for a scalar dist. Of a choice, whose draws have no entropy, it is H(E[alpha]) / log K.
    """
    return normalised(expected_entropy(dist), dist.event_shape[-1] if dist.event_shape else 2)


def uncertainty_of_draw(draw: Tensor, event_dim: int) -> Tensor:
    """H(alpha) / log K of routes [.., K] (event_dim 1), or of gates [..] (event_dim 0)."""
    weights = draw if event_dim else as_pair(draw)
    return normalised(entropy(weights), weights.shape[-1])


def normalised(undecided: Tensor, K: int) -> Tensor:
    """Entropies in nats over K mechanisms, as shares of the most that there can be."""
    return undecided / math.log(K) if K > 1 else undecided * 0.0


def vertex(choice: Tensor, like: Tensor) -> Tensor:
    """Choices [..] as one-hot weights [.., K] of the dtype and the K of `like`."""
    return F.one_hot(choice, like.shape[-1]).to(like.dtype)


def straight_through(weights: Tensor, choice: Tensor) -> Tensor:
    """The vertices of choices [..] in value, weights [.., K] in gradient.

    Bengio et al. 2013, arXiv 1308.3432.
    """
    return vertex(choice, weights) + (weights - weights.detach())


def divergence(q: Distribution, p: Distribution, draw: Tensor | None = None) -> Tensor:
    """KL(q || p) by batch element: analytic, or the log ratio of one draw where it is not."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return log_ratio(q, p, q.rsample() if draw is None else draw)


@singledispatch
def log_ratio(q: Distribution, p: Distribution, draw: Tensor) -> Tensor:
    """log q(draw) - log p(draw) by batch element: the KL, estimated by one draw from q."""
    return q.log_prob(draw) - p.log_prob(draw)


class ScoredDirichlet(PyroDirichlet):
    """A Dirichlet whose density is finite also where a route is a vertex, as a hard one is.

    A component below the least number of its precision is scored as that number: draws in single
    precision are held there as well.
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ScoredDirichlet":
        return super().expand(batch_shape, self._get_checked_instance(ScoredDirichlet, _instance))

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.clamp(min=torch.finfo(value.dtype).tiny))


def scored(dist: Distribution) -> Distribution:
    """`dist`, with a finite density at vertices where it is a plain Dirichlet."""
    if isinstance(dist, Dirichlet) and type(dist) in (Dirichlet, PyroDirichlet):
        return ScoredDirichlet(dist.concentration, validate_args=False)
    return dist


class Point(TorchDistribution):
    """All mass on one point of the simplex: a deterministic route.

    It has no density to compare with a prior's, so that its KL from any distribution is taken as 0
    and the prior plays no part: the prior-free router.
    """

    arg_constraints = {"weights": constraints.simplex}
    support: Any = constraints.simplex
    has_rsample = True

    def __init__(self, weights: Tensor, validate_args: bool | None = None) -> None:
        self.weights = weights
        super().__init__(weights.shape[:-1], weights.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Point":
        return Point(self.weights.expand(*batch_shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.weights

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.weights.expand(torch.Size(sample_shape) + self.weights.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[:-1])


@register_kl(Point, Distribution)  # type: ignore[untyped-decorator]
def _kl_point(q: Point, p: Distribution) -> Tensor:
    return q.weights.new_zeros(q.batch_shape)
