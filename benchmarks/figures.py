"""Figures of README and docs that are drawn from the JSON that is committed.

Libraries draw letters a little differently from version to version, so that a figure is held to be
the same where few pixels differ.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pretrained_table
import where_full
from matplotlib.image import imread
from results_read import folder_of, read
from table_studies import PLANTED, rows_of, runs_of

from pyro_meta.analysis.plots.pareto import Setting, pareto
from pyro_meta.analysis.plots.routed_speed import Result, time_by_length, time_by_share
from pyro_meta.analysis.plots.style import save_png

ROOT = Path(__file__).parents[1]
FEW = 0.002
"""Share of pixels that may differ by more than `CLEARLY`."""
CLEARLY = 0.25
"""Of the range from black to white."""


def planted(path: Path) -> None:
    """Loss against cost on planted look-ups: the rows of the table."""
    settings = []
    for words, place, group in rows_of(PLANTED):
        summaries = [run["summary"] for run in runs_of(*place)]
        settings.append(
            Setting(
                words.replace("*", "").replace(" (the default)", ""),
                group["kind"],
                [one["cost_macs_hard"] for one in summaries],
                [one["val_nll_hard"] for one in summaries],
            )
        )
    save_png(pareto(settings, "MACs of attention over those of full attention"), path)


def speed(name: str, draw: Callable[[Result], object], path: Path) -> None:
    """The clock of hard routes."""
    result = read(f"{name}/routed.json")
    save_png(draw(result), path)  # type: ignore[arg-type]


def visits(path: Path) -> None:
    """The pretrained model: loss against key visits."""
    pretrained_table.picture(folder_of("pretrained/study"), 1024, path)


def where(path: Path) -> None:
    """The pretrained model: who attends fully."""
    where_full.picture(read("pretrained/where.json"), path)


FIGURES: dict[str, Callable[[Path], None]] = {
    "docs/planted.png": planted,
    "docs/pretrained_visits.png": visits,
    "docs/pretrained_where.png": where,
    "benchmarks/results/current/xeon/routed_by_share.png": partial(speed, "xeon", time_by_share),
    "benchmarks/results/current/h100/routed_by_length.png": partial(speed, "h100", time_by_length),
}
"""By path from the root of the checkout."""


def differing(root: Path = ROOT) -> dict[Path, bytes]:
    """Figures that are not what the JSON says, and what they should be."""
    anew = {}
    with TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.png"
        for name, draw in FIGURES.items():
            draw(drawn)
            if not alike(root / name, drawn):
                anew[root / name] = drawn.read_bytes()
    return anew


def alike(one: Path, other: Path) -> bool:
    if not one.exists():
        return False
    ours, theirs = imread(one), imread(other)
    if ours.shape != theirs.shape:
        return False
    return float(np.mean(np.abs(ours - theirs).max(-1) > CLEARLY)) <= FEW
