"""Numbers that come with an interval, and what may be said of them: yes, no, or undecided."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.floating]
CONFIDENCE = 0.95
RESAMPLES = 1000


class State(StrEnum):
    """Whether something holds."""

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"
    """The interval straddles the threshold: what was read cannot tell."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval for other texts.

    Of a single text nothing is known of others: its interval is infinite.
    """

    value: float
    interval: tuple[float, float]

    def at_most(self, threshold: float) -> State:
        """Whether it is no more than a threshold."""
        low, high = self.interval
        if high <= threshold:
            return State.YES
        return State.NO if low > threshold else State.UNDECIDED

    def at_least(self, threshold: float) -> State:
        """Whether it is no less than a threshold."""
        low, high = self.interval
        if low >= threshold:
            return State.YES
        return State.NO if high < threshold else State.UNDECIDED


def of_texts(values: Array) -> Estimate:
    """The mean of one value a text, [B], with a t-interval."""
    given = np.asarray(values, float)
    mean = float(given.mean())
    if len(given) < 2:
        return Estimate(mean, (-np.inf, np.inf))
    error = float(given.std(ddof=1)) / np.sqrt(len(given))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(given) - 1)) * error
    return Estimate(mean, (mean - half, mean + half))


def resampled(
    statistic: Callable[[NDArray[np.integer]], float], texts: int, resamples: int = RESAMPLES
) -> Estimate:
    """Any statistic of texts, with an interval by resampling them; always the same.

    Parameters
    ----------
    statistic
        Of the numbers of texts, some of them several times.
    texts
        How many there are.
    """
    value = statistic(np.arange(texts))
    if texts < 2:
        return Estimate(value, (-np.inf, np.inf))
    drawn = np.random.default_rng(0).integers(texts, size=(resamples, texts))
    with np.errstate(invalid="ignore"):
        found = np.array([statistic(np.sort(some)) for some in drawn])
    found = found[np.isfinite(found)]
    if not len(found):
        return Estimate(value, (-np.inf, np.inf))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(value, (float(low), float(high)))
