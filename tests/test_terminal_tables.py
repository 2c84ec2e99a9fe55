"""Tables of the terminal explain what would be taken for a mistake."""

from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from pyro_meta.study.held_out_tables import table_of_losses
from pyro_meta.terminal.tables import table_beside

CAPTION = "key visits above 1: a soft mixture runs every mechanism in it"


def of_losses(rows: dict[str, dict[str, Any]]) -> Table:
    return table_of_losses(512, 2, rows)


@pytest.mark.parametrize("table", [table_beside, of_losses])
@pytest.mark.parametrize("soft", [1.286, 1.0, 0.9])
def test_key_visits_above_one_are_explained_where_they_are_shown(table: Any, soft: float) -> None:
    visits = {"routes, hard": 0.399, "routes, soft": soft, "full": 1.0}
    rows = {
        name: {"loss": 1.0, "loss_past": 1.0, "by_sequence": [1.0, 2.0], "visits": seen}
        for name, seen in visits.items()
    }
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(rows))
    assert f"{soft:.3f}" in shown.get()
    assert (CAPTION in shown.get()) == (soft > 1)
