"""What the finished runs of a group have left, over its seeds."""

import math
from dataclasses import dataclass
from typing import Any

from pyro_meta.analysis.collapse import Verdict
from pyro_meta.analysis.comparison import Spread, spread
from pyro_meta.study.plan import Group


@dataclass
class Result:
    """The finished runs of a group."""

    group: Group
    summaries: dict[int, dict[str, Any]]
    """Seed -> summary.json, nested figures under dotted names."""
    sequences: dict[int, dict[str, Any]]
    """Seed -> sequences.json."""
    verdicts: dict[int, list[Verdict]]
    """Seed -> whether its posterior has collapsed, in three ways; of what has a posterior."""

    @property
    def text(self) -> str:
        """Identity of the validation sequences: losses on one text can be compared."""
        return next((str(losses["windows"]) for losses in self.sequences.values()), "")

    def over_seeds(self, figure: str) -> Spread | None:
        values = [summary[figure] for summary in self.summaries.values() if figure in summary]
        return spread(values) if values else None

    def mean(self, figure: str) -> float:
        found = self.over_seeds(figure)
        return math.nan if found is None else found.mean


def texts(results: list[Result]) -> dict[str, list[Result]]:
    """The results on each validation text."""
    by_text: dict[str, list[Result]] = {}
    for result in results:
        by_text.setdefault(result.text, []).append(result)
    return by_text
