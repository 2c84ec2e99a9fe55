"""No table at the terminal has a column that no row fills."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from pyro_meta.speed.command import _print_converted
from pyro_meta.study.held_out_tables import table_of_losses
from pyro_meta.terminal.tables import filled, table_beside, table_of_rows


def headings(table: Table) -> list[str]:
    assert all(any(str(cell).strip() for cell in one.cells) for one in table.columns)
    return [str(column.header) for column in table.columns]


@pytest.mark.parametrize(
    ("rows", "kept", "cells"),
    [
        ([["", "1", ""], ["", "", ""]], ["", "a"], [["", "1"], ["", ""]]),
        ([["x", "", "0"]], ["", "b"], [["x", "0"]]),
        ([["x", "", ""]], [""], [["x"]]),
        ([], [""], []),
    ],
)
def test_a_column_stays_if_a_row_fills_it_and_names_always_do(
    rows: list[list[str]], kept: list[str], cells: list[list[str]]
) -> None:
    assert filled(["", "a", "b"], rows) == (kept, cells)
    assert headings(table_of_rows("", "", ["a", "b"], [["x", "1", ""]])) == ["", "a"]


@pytest.mark.parametrize("has_full", [True, False])
def test_routes_are_behind_full_attention_only_where_it_is_there(has_full: bool) -> None:
    row: dict[str, Any] = {"loss": 2.0, "loss_past": 2.1, "visits": 0.5}
    names = ["hard", "full"] if has_full else ["hard"]
    assert ("behind full" in headings(table_beside(dict.fromkeys(names, row)))) == has_full
    for texts in (1, 2):
        rows = {name: row | {"by_sequence": [2.0, 2.5][:texts]} for name in names}
        rows["hard"]["by_sequence"] = [3.0, 3.1][:texts]
        found = headings(table_of_losses(512, texts, rows))
        assert ("behind full" in found, "+-" in found) == (has_full, has_full and texts > 1)


def test_parts_that_were_not_timed_have_no_column() -> None:
    point = {"length": 1024, "visits": 0.4}
    speeds = {"prefill": {"routed": 1.2, "all full": 1.0}, "attention": {}, "decoding": {}}
    shown = Console(width=120, record=True, file=io.StringIO())
    _print_converted({"points": [point | {"times_as_fast": speeds}]}, shown)
    text = shown.export_text()
    assert "prefill" in text and "1.20" in text
    assert "attention" not in text and "decoding" not in text
