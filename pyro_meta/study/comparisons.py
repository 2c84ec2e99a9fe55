"""Which settings of a study are held against which: their baselines, and one of themselves."""

from dataclasses import dataclass

from pyro_meta.analysis.comparison import Difference, best_at_most, difference_on_shared_text
from pyro_meta.study.plan import Kind
from pyro_meta.study.result import Result


@dataclass
class Comparison:
    """A setting beside one that judges it; losses are paired by seed and sequence."""

    of: str
    against: str
    kind: Kind
    """Of what it stands beside; `variant` is the reference, a setting of the study itself."""
    is_best_single: bool
    """The best mechanism alone among those that cost no more."""
    hard: Difference | None
    """Of losses along hard routes; None where no two runs share seed and sequences."""
    soft: Difference | None
    """The same along soft routes."""


def with_baselines(results: list[Result], cost: str) -> list[Comparison]:
    """Every group with baselines against each of them; `cost` is a figure of summary.json."""
    by_group = {id(result.group): result for result in results}
    comparisons = []
    for ours in results:
        judges = [
            (kind, by_group[id(group)])
            for kind, group in ours.group.baselines
            if id(group) in by_group
        ]
        singles = [result for kind, result in judges if kind == "mechanism"]
        index = best_at_most(
            [one.mean(cost) for one in singles],
            [one.mean("val_nll_hard") for one in singles],
            ours.mean(cost),
        )
        best = None if index is None else singles[index]
        comparisons += [_compare(ours, theirs, kind, theirs is best) for kind, theirs in judges]
    return comparisons


def with_reference(results: list[Result]) -> list[Comparison]:
    """Every setting of the study against its reference, whether that one has finished or not."""
    by_group = {id(result.group): result for result in results}
    comparisons = []
    for ours in results:
        if (reference := ours.group.reference) is not None:
            theirs = by_group.get(id(reference), Result(reference, {}, {}, {}))
            comparisons.append(_compare(ours, theirs, "variant"))
    return comparisons


def _compare(ours: Result, theirs: Result, kind: Kind, is_best_single: bool = False) -> Comparison:
    hard, soft = (
        difference_on_shared_text(ours.sequences, theirs.sequences, routes)
        for routes in ("hard", "soft")
    )
    return Comparison(ours.group.label, theirs.group.label, kind, is_best_single, hard, soft)
