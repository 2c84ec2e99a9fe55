"""Distributions on the simplex besides the Dirichlet: softmaxes of independent noise.

    alpha = softmax(z),    z_k = F_k^{-1}(u_k),    u_k ~ Uniform(0, 1) independently

`LogisticNormal` has normal z, `Concrete` has Gumbel z. Densities are taken at log alpha, so that a
component too small for its precision still counts for what it is. Shapes: K mechanisms, batch [..].
"""

import math
from functools import cache, singledispatch
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Dirichlet, Distribution, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import clamp_probs
from torch.quasirandom import SobolEngine

from pyro_meta.distributions.simplex import entropy, expected_entropy, log_ratio
from pyro_meta.errors import UsageError

LEAST_TEMPERATURE = 0.3  # below, draws in float32 pile up on the vertices


class SoftmaxDistribution(TorchDistribution):
    """softmax(z) of independent z_k; subclass it, define `quantile` and `log_density`.

    Its mean has no closed form, and routes follow the mean: it is the average over a fixed set of
    quasi-random points, deterministic and differentiable.
    """

    support = constraints.simplex
    has_rsample = True

    def quantile(self, u: Tensor) -> Tensor:
        """z [.., K] at which each component has probability u [.., K] below it."""
        raise NotImplementedError

    def log_density(self, log_alpha: Tensor) -> Tensor:
        """log p(alpha) [..] at log alpha [.., K]."""
        raise NotImplementedError

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        like = self._noise_like
        u = torch.rand(self._extended_shape(sample_shape), dtype=like.dtype, device=like.device)
        z = self.quantile(clamp_probs(u))
        self._draw, self._log_draw = torch.softmax(z, -1), torch.log_softmax(z, -1)
        return self._draw

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_density(self.log_of(value))

    def log_of(self, value: Tensor) -> Tensor:
        """log alpha; exact for the last draw, even where the draw itself has underflowed."""
        if value is getattr(self, "_draw", None):
            return self._log_draw
        return value.clamp(min=torch.finfo(value.dtype).tiny).log()

    @property
    def mean(self) -> Tensor:
        return self._points().mean(0)

    @property
    def _noise_like(self) -> Tensor:
        """A tensor in the dtype and on the device of the distribution."""
        raise NotImplementedError

    def _points(self) -> Tensor:
        """Quasi-random draws [S, .., K], the same for every distribution of its kind."""
        like = self._noise_like
        u = _quasi_random(self.event_shape[-1], like.dtype, like.device)
        u = u.view(len(u), *(1 for _ in self.batch_shape), -1)
        return torch.softmax(self.quantile(u), -1)


class LogisticNormal(SoftmaxDistribution):
    """alpha = softmax(z), z_k ~ N(loc_k, scale_k^2): the logistic-normal of all K components.

    The log-ratios log(alpha_k / alpha_K) are normal with covariance diag(s_k^2) + s_K^2; written
    without a reference component, with r = log alpha - loc, w = scale^-2 and r' the w-mean of r,

        log p(alpha) = -1/2 sum_k w_k (r_k - r')^2 - sum_k log(scale_k alpha_k)
                       - 1/2 log sum_k w_k - (K - 1)/2 log 2 pi

    (Aitchison & Shen 1980, doi:10.1093/biomet/67.2.261).

    Parameters
    ----------
    loc
        Means of z, [.., K]; a constant added to all of them changes nothing.
    scale
        Standard deviations of z, [.., K].
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogisticNormal":
        shape = (*batch_shape, -1)
        return LogisticNormal(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    def quantile(self, u: Tensor) -> Tensor:
        return self.loc + self.scale * torch.special.ndtri(u)

    def log_density(self, log_alpha: Tensor) -> Tensor:
        return self.expected_log_density(log_alpha, torch.zeros_like(log_alpha), log_alpha.sum(-1))

    def expected_log_density(self, mean: Tensor, variance: Tensor, log_sum: Tensor) -> Tensor:
        """E[log p(alpha)] under a distribution of log alpha that is known by its moments.

        Parameters
        ----------
        mean, variance
            Of x [.., K], independent components that are log alpha up to a constant.
        log_sum
            E[sum_k log alpha_k], of shape [..].
        """
        K = self.event_shape[-1]
        w = self.scale**-2
        total = w.sum(-1, keepdim=True)
        r = mean - self.loc
        r = r - (w * r).sum(-1, keepdim=True) / total
        quadratic = (w * (r**2 + (1 - w / total) * variance)).sum(-1)
        constant = (total[..., 0].log() + (K - 1) * math.log(2 * math.pi)) / 2
        return -quadratic / 2 - self.scale.log().sum(-1) - constant - log_sum

    @property
    def _noise_like(self) -> Tensor:
        return self.loc


class Concrete(SoftmaxDistribution):
    """alpha = softmax((logits + Gumbel) / temperature), a relaxed categorical choice.

        log p(alpha) = log (K - 1)! + (K - 1) log tau + sum_k (logits_k - (tau + 1) log alpha_k)
                       - K log sum_k exp(logits_k - tau log alpha_k)

    (Maddison et al. 2017, arXiv 1611.00712; Jang et al. 2017, arXiv 1611.01144).

    Parameters
    ----------
    temperature
        tau, at least 0.3: below, draws in float32 pile up on the vertices.
    logits
        Log probabilities of the relaxed choice, up to a constant, [.., K].

    Raises
    ------
    UsageError
        The temperature is too low.
    """

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(
        self, temperature: float, logits: Tensor, validate_args: bool | None = None
    ) -> None:
        if not temperature >= LEAST_TEMPERATURE:
            raise UsageError(
                f"temperature: {temperature} given; at least {LEAST_TEMPERATURE} is allowed"
            )
        self.temperature, self.logits = temperature, logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Concrete":
        logits = self.logits.expand(*batch_shape, -1)
        return Concrete(self.temperature, logits, validate_args=False)

    def quantile(self, u: Tensor) -> Tensor:
        return (self.logits - torch.log(-torch.log(u))) / self.temperature

    def log_density(self, log_alpha: Tensor) -> Tensor:
        K, tau = self.event_shape[-1], self.temperature
        score = self.logits - tau * log_alpha
        constant = math.lgamma(K) + (K - 1) * math.log(tau)
        return constant + (score - log_alpha).sum(-1) - K * torch.logsumexp(score, -1)

    @property
    def _noise_like(self) -> Tensor:
        return self.logits


@cache
def _quasi_random(K: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Points u [32 K, K] of the unit cube: Sobol points in all K rotations of the axes.

    The rotations treat all components alike. With three components and logits of deviation 2, a
    mean is off by .002 (logistic-normal) and .004 (Concrete at .5) on average.
    """
    with torch.inference_mode(False):
        u = SobolEngine(K, scramble=True, seed=0).draw(32, dtype=torch.float64)
        u = torch.cat([u.roll(shift, -1) for shift in range(K)])
        return clamp_probs(u).to(device=device, dtype=dtype)


@expected_entropy.register
def _(dist: SoftmaxDistribution) -> Tensor:
    return entropy(dist._points()).mean(0)


@singledispatch
def log_density(dist: Distribution, log_alpha: Tensor) -> Tensor:
    """log p(alpha) [..] of any distribution on the simplex, at log alpha [.., K]."""
    return dist.log_prob(log_alpha.exp())


@log_density.register
def _(dist: SoftmaxDistribution, log_alpha: Tensor) -> Tensor:
    return dist.log_density(log_alpha)


@log_density.register
def _(dist: Dirichlet, log_alpha: Tensor) -> Tensor:
    a = dist.concentration
    return ((a - 1) * log_alpha - torch.lgamma(a)).sum(-1) + torch.lgamma(a.sum(-1))


@log_ratio.register
def _(q: SoftmaxDistribution, p: Distribution, draw: Tensor) -> Tensor:
    log_alpha = q.log_of(draw)
    return q.log_density(log_alpha) - log_density(p, log_alpha)


@register_kl(LogisticNormal, LogisticNormal)  # type: ignore[untyped-decorator]
def _kl_logistic_normals(q: LogisticNormal, p: LogisticNormal) -> Tensor:
    """That of their normal log-ratios; the Jacobians are the same and cancel."""
    z, variance, nothing = q.loc, q.scale**2, torch.zeros_like(q.loc[..., 0])
    return q.expected_log_density(z, variance, nothing) - p.expected_log_density(
        z, variance, nothing
    )


@register_kl(Dirichlet, LogisticNormal)  # type: ignore[untyped-decorator]
def _kl_dirichlet_logistic_normal(q: Dirichlet, p: LogisticNormal) -> Tensor:
    """log alpha_k is log g_k up to a constant, for independent g_k ~ Gamma(a_k, 1).

    log g_k has mean psi(a_k) and variance psi'(a_k).
    """
    a = q.concentration
    mean = torch.digamma(a)
    log_sum = mean.sum(-1) - a.shape[-1] * torch.digamma(a.sum(-1))
    return -q.entropy() - p.expected_log_density(mean, torch.polygamma(1, a), log_sum)
