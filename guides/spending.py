"""What hard routes spend at each price that they are decided at, so that a budget can be moved.

A hard token runs argmax_k (log m_k - price c_k). So one guide serves many budgets: a higher price,
fewer key visits, and nothing is trained anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyro_meta.errors import UsageError


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
        points = len(self.visits)
        is_curve = points > 0 and points == len(self.prices)
        if not is_curve or np.any(np.diff(self.visits) < 0) or np.any(np.diff(self.prices) > 0):
            raise UsageError("spending: visits that rise as prices fall are needed")

    def price_for(self, visits: float) -> float:
        """The price that leads to `visits`, between the points of the curve by a straight line.

        Raises
        ------
        UsageError
            It is beyond what was measured.
        """
        least, most = self.visits[0], self.visits[-1]
        if not least <= visits <= most:
            raise UsageError(
                f"budget: {visits} given; {least:.3f} to {most:.3f} of the key visits are allowed, "
                "which this guide's routes can reach"
            )
        return float(np.interp(visits, self.visits, self.prices))
