"""Tables of the terminal explain what would be taken for a mistake."""

from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from pyro_meta.attention.clock import noise
from pyro_meta.study.held_out_tables import table_of_losses
from pyro_meta.terminal.tables import NOISY, executed_rows, table_beside

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


EXECUTED = {
    "macs_ratio_attention": 0.5, "macs_per_token_attention": 1e3, "macs_ratio_model": 0.7,
    "macs_per_token_model": 1e4, "tokens_per_second_routed": 100.0,
    "tokens_per_second_full": 50.0, "speed_up_model": 2.0, "speed_up_attention": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "is_noisy"),
    [([1.0, 1.0, 1.0, 1.0], False), ([1.0, 1.1, 0.9, 1.0], False), ([0.5, 2.0, 1.0, 3.0], True)],
)
def test_a_clock_that_cannot_be_read_is_one_line_that_says_what_to_do(
    seconds: list[float], is_noisy: bool
) -> None:
    found = noise(seconds, [1.0] * 4)
    assert (found > NOISY) == is_noisy
    rows = dict(executed_rows(EXECUTED | {"clock_noise": found}))
    of_clock = [name for name in rows if "MACs" not in name]
    if not is_noisy:
        assert rows == dict(executed_rows(EXECUTED)) and len(of_clock) == 3
    else:
        assert of_clock == ["time, unsure here (python -m pyro_meta.bench --run RUN)"]
        assert rows[of_clock[0]] == f"\u00b1 {found / 2:.0%}"
    assert max(len(name) + len(value) for name, value in rows.items()) <= 74


def test_noise_is_the_interquartile_range_over_the_median() -> None:
    ones, others = np.random.default_rng(0).uniform(1, 2, (2, 7))
    low, middle, high = np.quantile(ones / others, [0.25, 0.5, 0.75])
    assert noise(ones.tolist(), others.tolist()) == pytest.approx((high - low) / middle)
    assert noise([1.0], [2.0]) == 0.0
