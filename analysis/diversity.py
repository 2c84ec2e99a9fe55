"""How many mechanisms a router uses, and how much its choice depends on the token.

Numerics on numpy arrays; axes are named in each docstring. L layers, N tokens, K mechanisms, G
groups. Entropies in nats.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Choices = NDArray[np.integer]
Mask = NDArray[np.bool_]

PAIRS = 20_000
"""Random pairs of tokens whose divergence is averaged."""


def entropy(weights: Array, axis: int = -1) -> Array:
    """H(m) = -sum_k m_k log m_k along `axis`, with 0 log 0 = 0."""
    positive = np.where(weights > 0, weights, 1.0)
    return -(weights * np.log(positive)).sum(axis)


def effective_number(weights: Array) -> Array:
    """exp H(m), over the last axis: how many mechanisms an even choice would need (Hill 1973)."""
    return np.exp(entropy(weights))


def shares_of(choice: Choices, means: Array) -> Array:
    """Shares of tokens that run each mechanism: choice [..., N], means [..., N, K] -> [..., K].

    Where a mixture runs (choice -1) it is the mean of the weights, as every token runs all of them.
    """
    K = means.shape[-1]
    if (choice < 0).any():
        return means.mean(-2, dtype=float)
    return np.stack([(choice == k).mean(-1) for k in range(K)], -1)


def routing_information(means: Array) -> Array:
    """I = H(E_t m_t) - E_t H(m_t), in [0, log K]: means [..., N, K] -> [...].

    The generalised Jensen-Shannon divergence of the tokens' posterior means (Lin 1991); 0 for a
    router that treats every token alike.
    """
    return entropy(means.mean(-2, dtype=float)) - entropy(means).mean(-1, dtype=float)


def spread(means: Array) -> Array:
    """Variance over tokens of the posterior mean, summed over mechanisms: [..., N, K] -> [...]."""
    return means.var(-2, dtype=float).sum(-1)


def spread_between(means: Array, groups: Mapping[str, Mask]) -> float:
    """Share of the spread of means [N, K] that lies between disjoint groups of tokens.

    eta^2 = sum_g n_g |m_g - m|^2 / sum_t |m_t - m|^2: 0 where groups are routed alike, 1 where the
    group alone decides. Tokens of no group are left out; 0 where nothing varies.
    """
    kept = [means[mask] for mask in groups.values() if mask.any()]
    if not kept:
        return 0.0
    all_of_them = np.concatenate(kept)
    centre = all_of_them.mean(0, dtype=float)
    within_all = ((all_of_them - centre) ** 2).sum()
    between = sum(len(part) * ((part.mean(0, dtype=float) - centre) ** 2).sum() for part in kept)
    return float(between / within_all) if within_all > 1e-12 else 0.0


def jensen_shannon(p: Array, q: Array) -> Array:
    """H((p + q) / 2) - (H(p) + H(q)) / 2, in [0, log 2], over the last axis (Lin 1991)."""
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def mean_pairwise_divergence(weights: Array, pairs: int = PAIRS) -> float:
    """Mean Jensen-Shannon divergence of two different rows of weights [N, K].

    Over all pairs where there are at most `pairs` of them, else over random ones, always the same.
    """
    N = len(weights)
    if N < 2:
        return 0.0
    if pairs >= N * (N - 1) // 2:
        left, right = np.triu_indices(N, 1)
    else:
        rng = np.random.default_rng(0)
        left = rng.integers(N, size=pairs)
        right = (left + rng.integers(1, N, size=pairs)) % N
    return float(jensen_shannon(weights[left], weights[right]).mean(dtype=float))


def draws_differ(draws: Array) -> Array:
    """Mean total variation of two draws of a token, |a - b|_1 / 2: draws [S, ..., K] -> [...]."""
    half = len(draws) // 2
    return np.abs(draws[:half] - draws[half : 2 * half]).sum(-1).mean(0) / 2


def quarters(position: Choices) -> dict[str, Mask]:
    """Four equal stretches of the context, by name: position [N] -> name -> which tokens."""
    length = int(position.max()) + 1
    quarter = position * 4 // length
    names = ("first", "second", "third", "last")
    return {f"{name} quarter": quarter == number for number, name in enumerate(names)}
