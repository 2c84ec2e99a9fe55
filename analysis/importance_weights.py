"""Whether draws from the guide could stand for the posterior: Pareto-smoothed importance sampling.

The tempered posterior p_w(alpha | x, y), proportional to p(alpha) p(y | alpha)^(1/w), is what
training with KL weight w aims at (see `pyro_meta.posterior`). Draws of a block of tokens have
weights

    log r = log p(y | alpha) / w + log p(alpha) - log q(alpha | x) + constant.

S draws, R blocks, K mechanisms; nats.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from pyro_meta.analysis import arviz_versions
from pyro_meta.analysis.diversity import Array

GOOD, USABLE = 0.5, 0.7
WANTED = 0.95
"""Share of blocks whose k-hat should be usable."""
NO_TAIL = 1e-6
"""Log weights that differ by less are constant, to rounding."""


@dataclass(frozen=True)
class Weights:
    """What importance weights say of R blocks, for one tempering w."""

    kl_weight: float
    """w."""
    k_hat: Array
    """Shape of the generalised Pareto tail of the weights, [R]."""
    efficiency: Array
    """Effective share of draws, 1 / (S sum_s r_s^2) of normalised weights, [R], in (0, 1]."""
    gap: Array
    """w (log mean r - mean log r), [R], nats per block: how far the guide's objective is from its
    optimum, at least. Unbiased-from-below: the bound of Burda et al. 2016 falls short of log p."""

    @property
    def usable(self) -> float:
        """Share of blocks with k-hat below .7."""
        return float((self.k_hat < USABLE).mean()) if len(self.k_hat) else float("nan")

    @property
    def good(self) -> float:
        """Share of blocks with k-hat below .5."""
        return float((self.k_hat < GOOD).mean()) if len(self.k_hat) else float("nan")


def weigh(log_likelihood: Array, log_ratio: Array, kl_weight: float) -> Weights:
    """Importance weights of blocks from their terms, [S, R] each.

    k-hat: Vehtari et al. 2024 (JMLR 25(72)), as a check of variational inference Yao et al. 2018
    (arXiv 1802.02538). Below .5 is good, up to .7 usable. It is 0 where weights are constant.
    """
    log_weights = log_likelihood / kl_weight + log_ratio
    S = len(log_weights)
    log_mean = logsumexp(log_weights, 0) - np.log(S)
    normalised = np.exp(log_weights - log_mean) / S
    return Weights(
        kl_weight=kl_weight,
        k_hat=np.array([k_hat(column) for column in log_weights.T]),
        efficiency=1 / (S * (normalised**2).sum(0)),
        gap=kl_weight * (log_mean - log_weights.mean(0)),
    )


def k_hat(log_weights: Array) -> float:
    """Shape of the tail of weights [S]; 0 where they are constant and have none."""
    if np.ptp(log_weights) < NO_TAIL:
        return 0.0
    return arviz_versions.pareto_k(log_weights)


def reliable_below(draws: int) -> float:
    """min(1 - 1 / log10 S, .7): from which k-hat on S draws are too few (Vehtari et al. 2024)."""
    return min(1 - 1 / np.log10(draws), USABLE)


def shape_alone(concentration: Array, prior_concentration: Array) -> Array:
    """Tail index of p / q for two Dirichlets, [..., K] each -> [...]: 1 - min_k b_k / a_k.

    Near the face alpha_k = 0, q has mass of order alpha_k^a_k and p / q grows like
    alpha_k^(b_k - a_k): so P(p / q > t) is of order t^(-a_k / (a_k - b_k)). Likelihoods of hard
    routes are bounded there and change nothing. A guide that is surer than its prior in every
    component has heavy weights whatever the text says; with enough draws k-hat comes to this.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a component may have run down to 0
        return np.maximum(1 - (prior_concentration / concentration).min(-1), 0.0)
