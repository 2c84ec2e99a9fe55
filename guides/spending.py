"""What hard routes spend at each price that they are decided at, so that a budget can be moved.

A hard token runs argmax_k (log m_k - price c_k). So one guide serves many budgets: a higher price,
fewer key visits, and nothing is trained anew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_meta.errors import UsageError

TOLERANCE = 0.005
"""Share of the key visits by which a budget may lie beyond the curve: it gets the nearest."""


@dataclass(frozen=True)
class Spending:
    """A curve of prices and of the key visits that they lead to.

    Attributes
    ----------
    visits
        Keys that are seen, as a share of what full attention sees; rising.
    prices
        Nats for each unit by which a mechanism costs more (see `RouteExecution`); falling.

    Raises
    ------
    UsageError
        The curve has no points, or does not fall.
    """

    visits: Sequence[float]
    prices: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("visits", "prices"):  # lists of a file among them
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not _are_a_curve(self.visits, self.prices):
            raise UsageError("spending: visits that rise as prices fall are needed")

    def price_for(self, visits: float) -> float:
        """The price that leads to `visits`, between the points of the curve by a straight line.

        Raises
        ------
        UsageError
            It is beyond what was measured.
        """
        least, most = self.visits[0], self.visits[-1]
        is_number = isinstance(visits, int | float) and not isinstance(visits, bool)
        if not is_number or not least - TOLERANCE <= visits <= most + TOLERANCE:
            raise UsageError(
                f"budget: {visits!r} given; {least:.3f} to {most:.3f} of the key visits are "
                "allowed, which this guide's routes can reach"
            )
        return float(np.interp(visits, self.visits, self.prices))


def _are_a_curve(visits: Sequence[Any], prices: Sequence[Any]) -> bool:
    """Whether these are as many finite numbers, of which one rises as the other falls."""
    numbers = [*visits, *prices]
    are_numbers = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
    if not are_numbers or not visits or len(visits) != len(prices):
        return False
    return not np.any(np.diff(visits) < 0) and not np.any(np.diff(prices) > 0)
