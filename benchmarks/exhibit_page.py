"""The exhibit as one HTML file that needs nothing else, for narrow and wide screens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exhibit_figures import COLUMNS
from exhibit_pairs import GUIDES, PRIORS, Pairs
from exhibit_rows import MOST_COST, Row, at_equal_cost, shown

from pyro_meta.analysis.page import environment

TEMPLATE = Path(__file__).parent / "exhibit.html"


@dataclass(frozen=True)
class Cell:
    """A pair in the square of priors and guides."""

    text: str
    says: str
    kind: str
    """`trained`, `same` (as another pair), `refused`, `failed`, or `missing` so far."""
    share: int
    """From 0 (the worst hard loss) to 100 (the best)."""


def square(rows: Sequence[Row], pairs: Pairs) -> list[tuple[str, list[Cell]]]:
    """A row of cells for each guide, one for each prior."""
    by_name = {row.pair.name: row for row in rows}
    losses = sorted(row.mean("loss_hard") for row in rows if row.figures)
    refused = {f"{one.prior} {one.guide}": one.why for one in pairs.refused}

    def cell(name: str) -> Cell:
        if name in refused:
            return Cell("·", refused[name], "refused", 0)
        known = pairs.same.get(name, name)
        row = by_name.get(known)
        if row is None or not row.figures:
            why = "not trained yet" if row is None else row.failed or "not trained yet"
            return Cell("–", why, "failed" if row is not None and row.failed else "missing", 0)
        loss = row.mean("loss_hard")
        share = round(100 * sum(other >= loss for other in losses) / len(losses))
        if known != name:
            return Cell(f"{loss:.3f}", f"the prior plays no part: trained as {known}", "same", 0)
        return Cell(f"{loss:.3f}", f"{name}: hard loss {loss:.4f}", "trained", share)

    return [
        (guide.__name__, [cell(f"{prior.__name__} {guide.__name__}") for prior in PRIORS])
        for guide in GUIDES
    ]


def render(rows: Sequence[Row], pairs: Pairs, facts: dict[str, Any]) -> str:
    """The page of rows; `facts` name the command, hardware, versions, text and options."""
    ranked = at_equal_cost(rows)
    names = {row.pair.name for row in ranked}
    rest = [row for row in rows if row.figures and row.pair.name not in names]
    ordered = [*ranked, *sorted(rest, key=lambda row: row.mean("loss_hard"))]
    return (
        environment(TEMPLATE.parent)
        .get_template(TEMPLATE.name)
        .render(
            columns=COLUMNS,
            best=[row for row in ranked if row.is_best],
            rows=ordered,
            at_equal_cost=names,
            failed=[row for row in rows if row.failed],
            shown={
                row.pair.name: {name: shown(name, row.over_seeds(name)) for name in COLUMNS}
                for row in ordered
            },
            square=square(rows, pairs),
            refused=pairs.refused,
            priors=[prior.__name__ for prior in PRIORS],
            most_cost=MOST_COST,
            facts=facts,
        )
    )
