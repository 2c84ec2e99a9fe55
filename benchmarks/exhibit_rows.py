"""Rows of the exhibit: figures of a pair over its seeds, its gap, and who is best at equal cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exhibit_figures import COLUMNS, Figures
from exhibit_pairs import Pair

from pyro_meta.analysis.comparison import Spread, spread
from pyro_meta.training.settings import DEFAULT_CLASSES

DEFAULT = " ".join(DEFAULT_CLASSES[name].rpartition(".")[2] for name in ("prior", "guide"))
"""The pair that a run has unless it asks for another."""
MOST_COST = 1.1
"""Of the cost of the default pair: who costs more is not compared at equal cost."""


@dataclass
class Row:
    """A pair, and what its runs have shown."""

    pair: Pair
    figures: dict[int, Figures] = field(default_factory=dict)
    """Seed -> figures of `COLUMNS` by name."""
    failed: str = ""
    """What went wrong with a run of it, in one line."""
    is_best: bool = False
    """Whether it was trained with more seeds for being among the best."""

    def over_seeds(self, name: str) -> Spread | None:
        """A figure over the seeds that have it."""
        found = [one[name] for one in self.figures.values() if one.get(name) is not None]
        return spread([float(value) for value in found if value is not None]) if found else None

    def mean(self, name: str) -> float:
        """Its mean; NaN where no run has it."""
        found = self.over_seeds(name)
        return math.nan if found is None else found.mean

    def to_json(self) -> dict[str, Any]:
        names = dict.fromkeys(name for one in self.figures.values() for name in one)
        return {
            "prior": self.pair.prior,
            "guide": self.pair.guide,
            "is_best": self.is_best,
            "failed": self.failed,
            "figures": {name: _as_json(self.over_seeds(name)) for name in names},
            "by_seed": {str(seed): one for seed, one in self.figures.items()},
        }


def _as_json(found: Spread | None) -> dict[str, float | int | None] | None:
    return None if found is None else vars(found)


def fill_gaps(rows: Iterable[Row]) -> None:
    """Set the figure `gap` of each seed: its objective above the least under the same prior.

    Of guides with a density: where a guide has none, its KL is taken as 0 and its objective is
    another. Each pair has a network of its own, so that the gap is one of both together.
    """
    rows = list(rows)
    least: dict[tuple[str, int], float] = {}
    for row in rows:
        for seed, one in row.figures.items():
            if (objective := _comparable(one)) is not None:
                key = row.pair.prior, seed
                least[key] = min(objective, least.get(key, math.inf))
    for row in rows:
        for seed, one in row.figures.items():
            objective = _comparable(one)
            one["gap"] = None if objective is None else objective - least[row.pair.prior, seed]


def _comparable(figures: Mapping[str, float | None]) -> float | None:
    """The objective of a guide with a density."""
    return None if figures.get("elbo") is None else figures.get("objective")


def at_equal_cost(rows: Sequence[Row]) -> list[Row]:
    """Rows that cost at most `MOST_COST` times what the default pair costs, by hard loss.

    Where that has no figures, all rows that have some.
    """
    known = [row for row in rows if row.figures]
    most = next((MOST_COST * row.mean("cost") for row in known if row.pair.name == DEFAULT), None)
    fitting = [row for row in known if most is None or row.mean("cost") <= most]
    return sorted(fitting, key=lambda row: row.mean("loss_hard"))


def shown(name: str, found: Spread | None) -> str:
    """A figure as the table has it, with its spread over seeds."""
    if found is None:
        return "–"
    digits = COLUMNS[name].digits
    text = f"{found.mean:.{digits}f}"
    return text if found.seeds < 2 else f"{text} ± {found.deviation:.{digits}f}"
