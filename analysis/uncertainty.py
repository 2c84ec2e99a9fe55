"""How uncertain a route is, and of which kind.

    total        H(E alpha)          of the mean route
    expected     E H(alpha)          what stays undecided however well alpha is known (aleatoric)
    epistemic    total - expected    what knowing alpha would settle: I(choice; alpha)

(Malinin & Gales 2018, arXiv 1802.10501.) Nats; K mechanisms, S draws.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import digamma

from pyro_meta.analysis.diversity import Array, entropy


@dataclass(frozen=True)
class Uncertainty:
    """Entropies of the route of each token, [...] each, in nats."""

    total: Array
    expected: Array
    epistemic: Array


def uncertainty_of_dirichlet(concentration: Array) -> Uncertainty:
    """In closed form, of Dirichlet(a) with a [..., K] and m = a / a_0.

    E H(alpha) = psi(a_0 + 1) - sum_k m_k psi(a_k + 1).
    """
    total_concentration = concentration.sum(-1)
    mean = concentration / total_concentration[..., None]
    total = entropy(mean)
    expected = digamma(total_concentration + 1) - (mean * digamma(concentration + 1)).sum(-1)
    return Uncertainty(total, expected, total - expected)


def uncertainty_from_draws(draws: Array) -> Uncertainty:
    """The same estimated from draws [S, ..., K]; the total is biased low by about K / 2S."""
    total = entropy(draws.mean(0))
    expected = entropy(draws).mean(0)
    return Uncertainty(total, expected, total - expected)


def draws_differ(draws: Array) -> Array:
    """Mean total variation of two draws of a token, |a - b|_1 / 2: draws [S, ..., K] -> [...]."""
    half = len(draws) // 2
    return np.abs(draws[:half] - draws[half : 2 * half]).sum(-1).mean(0) / 2
