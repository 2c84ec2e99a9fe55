"""Tables of what runs do on held-out text."""

from typing import Any

import numpy as np
from rich.table import Table

from pyro_meta.evaluation.beside import FULL, PAST, SOFT, is_random
from pyro_meta.evaluation.retrieval import Cell
from pyro_meta.terminal.tables import explain_visits, table_of_figures, table_of_rows

Rows = dict[str, dict[str, Any]]


def table_of_losses(length: int, texts: int, rows: Rows) -> Table:
    """Losses and key visits, the best first; how far behind full, paired by text."""
    cells = []
    for name, row in sorted(rows.items(), key=lambda pair: float(pair[1]["loss_past"])):
        behind, error = "", ""
        best = rows.get(f"{name.rpartition(': ')[0]}: {FULL}", rows.get(FULL))
        if best is not None and best is not row:
            apart = np.subtract(row["by_sequence"], best["by_sequence"])
            behind = f"{apart.mean():+.4f}"
            error = f"{apart.std(ddof=1) / len(apart) ** 0.5:.4f}" if len(apart) > 1 else ""
        figures = f"{row['loss']:.4f}", f"{row['loss_past']:.4f}"
        cells.append((name, *figures, behind, error, f"{row['visits']:.3f}"))
    table = table_of_rows(
        f"{texts} texts of {length} tokens: loss (nats per token), visits (share of full's)",
        "tokens",
        ("loss", f"past {min(PAST, length // 2)}", "behind full", "+-", "visits"),
        cells,
    )
    explain_visits(table, rows)
    return table


def table_by_position(rows: Rows) -> Table:
    """Losses from each position to the next edge."""
    shown = {name: row for name, row in rows.items() if _is_shown(name)}
    spans = list(next(iter(shown.values()))["by_position"])
    table = table_of_figures("loss by position", "tokens", spans)
    for name, row in shown.items():
        table.add_row(name, *(f"{row['by_position'][span]:.3f}" for span in spans))
    return table


def table_by_document(names: list[str], rows: Rows) -> Table:
    """Losses of each document, past token 256 or its middle."""
    shown = {name: row for name, row in rows.items() if _is_shown(name)}
    table = table_of_figures("loss past token 256, or the middle", "document", list(shown))
    for number, name in enumerate(names):
        table.add_row(name, *(f"{row['by_sequence'][number]:.3f}" for row in shown.values()))
    return table


def _is_shown(name: str) -> bool:
    """Whether a row is also shown in detail."""
    return not name.endswith(SOFT) and not is_random(name)


def table_of_retrieval(kind: str, cells: dict[str, list[Cell]], chance: float) -> Table:
    """Share of answers that are right, by length and depth."""
    some = next(iter(cells.values()))
    depths = sorted({one.depth for one in some})
    table = table_of_figures(
        f"retrieval, {kind}: answers that are right, by depth (chance {chance:.3g}; "
        f"{some[0].asked} questions in each cell)",
        "tokens",
        ("length", *(f"{depth:.0%}" for depth in depths), "all"),
    )
    for name, row in cells.items():
        for length in dict.fromkeys(one.length for one in row):
            of_length = {one.depth: one for one in row if one.length == length}
            right = sum(one.right for one in of_length.values())
            asked = sum(one.asked for one in of_length.values())
            shares = (f"{of_length[depth].right / of_length[depth].asked:.0%}" for depth in depths)
            table.add_row(name, str(length), *shares, f"{right / asked:.0%}")
    return table
