"""Which of several trained routers is better, and how sure that is: numpy on per-sequence losses.

ArviZ's `compare` is not used: its leave-one-out estimate corrects draws of a posterior that has
seen the data, and a guide never sees the targets, so that losses on held-out sequences need no
correction at all. Sequences are exchangeable, tokens are not: intervals are over sequences.

Losses in nats per token. Shapes: S seeds, N validation sequences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.floating]
Interval = tuple[float, float]
RESAMPLES = 4000


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, sample standard deviation and standard error of the mean.

    The last two are NaN for a single seed.
    """

    mean: float
    deviation: float
    error: float
    seeds: int


def spread(values: ArrayLike) -> Spread:
    """Mean and spread of one figure over seeds [S]."""
    given = np.asarray(values, dtype=float)
    deviation = float(given.std(ddof=1)) if len(given) > 1 else float("nan")
    return Spread(float(given.mean()), deviation, deviation / np.sqrt(len(given)), len(given))


@dataclass(frozen=True)
class Difference:
    """Mean of ours - theirs, in nats per token; below 0 means that ours is better.

    Attributes
    ----------
    mean
        Over seeds and sequences.
    interval
        95% interval for other seeds *and* other sequences; with one seed, that over sequences.
    seeds, sequences
        How many of each.
    over_seeds
        95% t-interval for other seeds on these sequences; None for one seed.
    over_sequences
        95% bootstrap interval for other sequences with these trained models.
    by_seed
        Mean difference of each seed's pair.
    """

    mean: float
    interval: Interval
    seeds: int
    sequences: int
    over_seeds: Interval | None
    over_sequences: Interval
    by_seed: dict[int, float]

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval[0] > 0 or self.interval[1] < 0


def paired_difference(
    ours: Mapping[int, ArrayLike], theirs: Mapping[int, ArrayLike]
) -> Difference | None:
    r"""Compare two settings on the same sequences, pairing runs of the same seed.

    With :math:`d_{si}` the difference of seed s on sequence i,

    .. math::

        d_{si} = \mu + a_s + b_i + e_{si}, \qquad
        \hat\mu = \bar d, \qquad
        \widehat{\mathrm{Var}}(\hat\mu) = \frac{v_S}{S} + \frac{v_N}{N} - \frac{v_{SN}}{S N},

    where :math:`v_S` is the sample variance of the seeds' means :math:`\bar d_{s\cdot}`,
    :math:`v_N` that of the sequences' means :math:`\bar d_{\cdot i}`, and :math:`v_{SN}` the mean
    square of the residuals, which both of the former contain. This is the variance by two crossed
    clusters (Cameron, Gelbach and Miller 2011). The interval is
    :math:`\hat\mu \pm t_{S-1,\,.975} \sqrt{\mathrm{Var}}`: wide with few seeds, as it should be.

    Parameters
    ----------
    ours, theirs
        Seed -> losses [N]. Seeds that only one of them has are left out.

    Returns
    -------
    Difference or None
        None where no seed is shared.

    Raises
    ------
    ValueError
        The losses are of different numbers of sequences.
    """
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return None
    left, right = ([np.asarray(side[seed], float) for seed in shared] for side in (ours, theirs))
    if len({len(losses) for losses in [*left, *right]}) != 1:
        raise ValueError("losses of different numbers of sequences cannot be paired")
    d = np.stack(left) - np.stack(right)  # [S, N]
    S, N = d.shape
    by_seed, by_sequence, mean = d.mean(1), d.mean(0), float(d.mean())
    over_sequences = bootstrap_interval(by_sequence)
    over_seeds, interval = None, over_sequences
    if S > 1:
        t = float(stats.t.ppf(0.975, S - 1))
        of_seeds = by_seed.var(ddof=1) / S
        over_seeds = _around(mean, t * np.sqrt(of_seeds))
        of_sequences = by_sequence.var(ddof=1) / N if N > 1 else 0.0
        residual = d - by_seed[:, None] - by_sequence + mean
        of_both = (residual**2).sum() / max(1, (S - 1) * (N - 1)) / (S * N)
        variance = max(of_seeds + of_sequences - of_both, of_seeds, of_sequences)
        interval = _around(mean, t * np.sqrt(variance))
    return Difference(
        mean, interval, S, N, over_seeds, over_sequences,
        dict(zip(shared, by_seed.tolist(), strict=True)),
    )  # fmt: skip


def difference_on_shared_text(
    ours: Mapping[int, Mapping[str, Any]],
    theirs: Mapping[int, Mapping[str, Any]],
    routes: Literal["hard", "soft"] = "hard",
) -> Difference | None:
    """`paired_difference` of losses over the seeds whose runs read the same sequences.

    Parameters
    ----------
    ours, theirs
        Seed -> sequences.json, whose `windows` say which sequences they are.
    routes
        Along which routes the losses are.

    Returns
    -------
    Difference or None
        None where no seed is shared on the same sequences, or seeds read different ones.
    """
    shared = [
        seed
        for seed, losses in ours.items()
        if seed in theirs
        and theirs[seed]["windows"] == losses["windows"]
        and len(theirs[seed][routes]) == len(losses[routes])
    ]
    left, right = ({seed: side[seed][routes] for seed in shared} for side in (ours, theirs))
    if len({len(losses) for losses in left.values()}) > 1:
        return None
    return paired_difference(left, right)


def bootstrap_interval(values: Array, resamples: int = RESAMPLES) -> Interval:
    """95% percentile interval of the mean of values [N], by resampling them; always the same."""
    N = len(values)
    counts = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N), size=resamples)
    low, high = np.percentile(counts @ values / N, [2.5, 97.5])
    return float(low), float(high)


def _around(mean: float, half: float) -> Interval:
    return mean - float(half), mean + float(half)


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> NDArray[np.bool_]:
    """Which settings no other one beats: none has both cost and loss as low and one lower."""
    cost, loss = np.asarray(costs, float), np.asarray(losses, float)
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # [other, one]
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return np.logical_not((no_worse & better).any(axis=0))


def best_at_most(costs: Sequence[float], losses: Sequence[float], cost: float) -> int | None:
    """Index of the least loss among those that cost no more than `cost` (to rounding), or None."""
    allowed = [index for index, other in enumerate(costs) if other <= cost + 1e-6]
    return min(allowed, key=lambda index: losses[index], default=None)
