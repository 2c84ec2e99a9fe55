"""What a posterior over routes says: diversity, entropy, and three kinds of collapse.

Numerics on numpy arrays; axes are named in each docstring. L layers, N tokens, K mechanisms, S
draws. Entropies in nats.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

PRIOR_KL = 0.01
BLIND_SPREAD = 1e-3
DOMINANT_LOAD = 0.95


def entropy(weights: Array, axis: int = -1) -> Array:
    """H(m) = -sum_k m_k log m_k along `axis`, with 0 log 0 = 0."""
    positive = np.where(weights > 0, weights, 1.0)
    return -(weights * np.log(positive)).sum(axis)


def effective_number(weights: Array) -> Array:
    """exp H(m), over the last axis: how many mechanisms an even choice would need."""
    return np.exp(entropy(weights))


def load(means: Array) -> Array:
    """Share of tokens whose likeliest mechanism is k: means [..., N, K] -> [..., K]."""
    K = means.shape[-1]
    return np.eye(K)[means.argmax(-1)].mean(-2)


def routing_information(means: Array) -> Array:
    """I = H(E_t m_t) - E_t H(m_t), in [0, log K]: means [..., N, K] -> [...].

    The generalised Jensen-Shannon divergence of the tokens' posterior means; 0 for a router that
    treats every token alike.
    """
    return entropy(means.mean(-2)) - entropy(means).mean(-1)


def spread(means: Array) -> Array:
    """Variance over tokens of the posterior mean, summed over mechanisms: [..., N, K] -> [...]."""
    return means.var(-2).sum(-1)


@dataclass(frozen=True)
class Uncertainty:
    """Entropies of the route of each token, [...] each, in nats."""

    total: Array
    """H(E alpha): of the mean route."""
    expected: Array
    """E H(alpha): what stays undecided however well alpha is known (aleatoric)."""
    epistemic: Array
    """total - expected: what knowing alpha would settle."""


def uncertainty_from_draws(draws: Array) -> Uncertainty:
    """Total, expected and epistemic entropy of draws [S, ..., K] (Malinin & Gales 2018)."""
    total = entropy(draws.mean(0))
    expected = entropy(draws).mean(0)
    return Uncertainty(total, expected, total - expected)


@dataclass(frozen=True)
class Verdict:
    """Whether a posterior has collapsed in one way, with the number and the threshold."""

    name: str
    question: str
    measure: str
    value: float
    threshold: float
    collapses_above: bool

    @property
    def is_collapsed(self) -> bool:
        if self.collapses_above:
            return self.value > self.threshold
        return self.value < self.threshold

    def __str__(self) -> str:
        side = "above" if self.collapses_above else "below"
        return f"{self.measure} is {self.value:.3g} (collapsed {side} {self.threshold:g})"


def collapse_verdicts(means: Array, kl: Array) -> list[Verdict]:
    """The three collapses, each judged apart.

    Parameters
    ----------
    means
        Posterior means, [L, N, K].
    kl
        KL(q || p) of each layer and token, [L, N].

    Returns
    -------
    list of Verdict
        `prior`: mean KL below .01 nats per layer (after Lucas et al. 2019, arXiv 1911.02469).
        `token-blind`: spread of the means over tokens below .001 in every layer.
        `one mechanism`: one mechanism is the choice of over 95% of tokens in every layer.
    """
    return [
        Verdict(
            name="prior",
            question="Is q = p?",
            measure="mean KL(q||p) per layer and token, in nats,",
            value=float(kl.mean()),
            threshold=PRIOR_KL,
            collapses_above=False,
        ),
        Verdict(
            name="token-blind",
            question="Is q the same for every token?",
            measure="variance of posterior means over tokens, in the layer where it is widest,",
            value=float(spread(means).max()),
            threshold=BLIND_SPREAD,
            collapses_above=False,
        ),
        Verdict(
            name="one mechanism",
            question="Does one mechanism take everything?",
            measure="load of the leading mechanism, in the layer where it leads least,",
            value=float(load(means).max(-1).min()),
            threshold=DOMINANT_LOAD,
            collapses_above=True,
        ),
    ]
