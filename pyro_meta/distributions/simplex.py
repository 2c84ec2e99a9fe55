"""Laws on the simplex of routes: points, hardened laws, and how certain each is.

A route alpha is a point of the simplex over K mechanisms; batch shapes are usually [B, T].
"""

import math
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
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
def expected_entropy(law: Distribution) -> Tensor:
    """E[H(alpha)] in nats, by batch element: how undecided a draw is on average.

    In closed form where there is one; otherwise the mean over 64 draws. A scalar law is of one of
    two shares (see `pyro_meta.distributions.gates`).
    """
    draws = law.sample(torch.Size([64]))
    return entropy(draws if law.event_shape else as_pair(draws)).mean(0)


@expected_entropy.register
def _(law: Dirichlet) -> Tensor:
    """psi(a_0 + 1) - sum_k m_k psi(a_k + 1) (Malinin & Gales 2018, arXiv 1802.10501)."""
    a = law.concentration
    total = a.sum(-1)
    mean = a / total[..., None]
    return torch.digamma(total + 1) - (mean * torch.digamma(a + 1)).sum(-1)


def uncertainty(law: Distribution) -> Tensor:
    """u = E[H(alpha)] / log K, in [0, 1]; 0 where there is a single mechanism.

    K is 2 for a scalar law.
    """
    K = law.event_shape[-1] if law.event_shape else 2
    undecided = expected_entropy(law)
    return undecided / math.log(K) if K > 1 else undecided * 0.0


def decide(mean: Tensor, discount: Tensor | None = None) -> Tensor:
    """argmax_k d_k m_k: [..] for points [.., K] and discounts above 0 that broadcast to them.

    The likeliest mechanism, unless one of a smaller discount is nearly as likely.
    """
    return (mean if discount is None else mean * discount).argmax(-1)


def vertex(choice: Tensor, like: Tensor) -> Tensor:
    """Choices [..] as one-hot weights [.., K] of the dtype and the K of `like`."""
    return F.one_hot(choice, like.shape[-1]).to(like.dtype)


def one_hot(weights: Tensor) -> Tensor:
    """The vertex nearest to each point, in the dtype of `weights`."""
    return vertex(decide(weights), weights)


def straight_through(weights: Tensor, choice: Tensor | None = None) -> Tensor:
    """The vertex of `choice` (by default the nearest) in value, identity in gradient.

    Bengio et al. 2013, arXiv 1308.3432.
    """
    hard = one_hot(weights) if choice is None else vertex(choice, weights)
    return hard + (weights - weights.detach())


def is_hard(undecided: Tensor, threshold: Tensor | float) -> Tensor:
    """Which tokens are executed hard: those whose uncertainty is below the threshold.

    A threshold of 1 or more hardens every token, whatever rounding does to its uncertainty.
    """
    threshold = torch.as_tensor(threshold, device=undecided.device)
    return (undecided < threshold) | (threshold >= 1)


def harden(
    weights: Tensor,
    undecided: Tensor,
    threshold: Tensor | float,
    choice: Tensor | None = None,
) -> Tensor:
    """Make weights [.., K] one-hot, straight through, where `undecided` [..] < threshold.

    They become the vertex of `choice` [..], by default the nearest.
    """
    hard = straight_through(weights, choice)
    return torch.where(is_hard(undecided, threshold)[..., None], hard, weights)


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


class Point(TorchDistribution):
    """All mass on one point of the simplex: a deterministic route.

    It has no density to compare with a prior's, so that its KL from any law is taken as 0 and the
    prior plays no part: the prior-free router.
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


class Hardened(TorchDistribution):
    """A posterior as it is executed: where it is certain enough, one mechanism runs.

    Draws alpha from `base`; where uncertainty(base) < threshold the draw is replaced, straight
    through, by what is decided from the mean (`decide`, with `discount`): that is what evaluation
    and generation run, too. The KL is that of `base`, whose law of alpha is what is inferred;
    deciding is part of how the network executes it.
    """

    arg_constraints = {}
    support: Any = constraints.simplex
    has_rsample = True

    def __init__(
        self, base: Distribution, threshold: Tensor | float, discount: Tensor | None = None
    ) -> None:
        self.base, self.threshold, self.discount = base, threshold, discount
        self.draw: Tensor | None = None
        self._executed: Tensor | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Hardened":
        return Hardened(self.base.expand(batch_shape), self.threshold, self.discount)

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        self.draw = self.base.rsample(torch.Size(sample_shape))
        self._executed = self.execute(self.draw)
        return self._executed

    def execute(self, draw: Tensor) -> Tensor:
        """What runs for a draw from `base`."""
        choice = decide(self.base.mean, self.discount).expand(draw.shape[:-1])
        return harden(draw, uncertainty(self.base), self.threshold, choice)

    def log_prob(self, value: Tensor) -> Tensor:
        """Density of `base`, at the soft draw behind `value` if `value` was drawn here."""
        soft = self.draw if value is self._executed and self.draw is not None else value
        return self.base.log_prob(soft)


@register_kl(Point, Distribution)  # type: ignore[untyped-decorator]
def _kl_point(q: Point, p: Distribution) -> Tensor:
    return q.weights.new_zeros(q.batch_shape)


@register_kl(Hardened, Distribution)  # type: ignore[untyped-decorator]
def _kl_hardened(q: Hardened, p: Distribution) -> Tensor:
    return divergence(q.base, p, q.draw)
