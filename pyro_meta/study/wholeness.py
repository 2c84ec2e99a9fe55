"""Whether what a run has left can be counted on, and whether it can be gone on with.

A finished run is held against its checksums, which takes reading all of it: done once, and again
only where a file has another size, time or number on the disk.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyro_meta import checksums
from pyro_meta.analysis import documents
from pyro_meta.terminal.commands import as_line
from pyro_meta.training.metrics import Metrics
from pyro_meta.training.run import Run

NEEDED = ("val_nll_soft", "val_nll_hard", "cost_macs_hard")
"""Figures of summary.json without which a run says nothing."""
MOST_DEPTH, MOST_COUNT = 20, 1 << 64
Stamp = tuple[tuple[int, int, int] | None, ...]
Found = TypeVar("Found")


def once_per_content(find: Callable[[Path], Found]) -> Callable[[Path], Found]:
    """Have `find` look into a run's folder again only once a file there has changed."""

    @functools.lru_cache(maxsize=4096)
    def remembered(folder: Path, stamp: Stamp) -> Found:
        return find(folder)

    @functools.wraps(find)
    def found(folder: Path) -> Found:
        return remembered(folder, _stamp(folder))

    return found


def _stamp(folder: Path) -> Stamp:
    """What changes when a file of a run does: size, time and number on the disk."""

    def of(path: Path) -> tuple[int, int, int] | None:
        try:
            status = os.lstat(path)
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns, status.st_ino

    return tuple(of(folder / name) for name in (*checksums.OF_A_RUN, checksums.NAME))


damage = once_per_content(checksums.damage)
"""What is not as it was written in a finished run, in one line; None if all is."""


@once_per_content
def summary_of(folder: Path) -> dict[str, Any]:
    """The results of a finished run.

    Raises
    ------
    OSError, ValueError
        They cannot be read, or figures that every comparison needs are missing or no numbers.
    """
    path = folder / "summary.json"
    summary = documents.read(path)
    for name in NEEDED:
        documents.number(summary, name, path.name)
    layers = summary.get("load_by_layer")
    if not isinstance(layers, list) or not layers:
        raise ValueError(f"{path.name} has no list for load_by_layer")
    for number, row in enumerate(layers):
        if not isinstance(row, dict) or not row:
            raise ValueError(f"{path.name}: load_by_layer has no loads of layer {number}")
        for mechanism in row:
            documents.number(row, mechanism, f"{path.name}, load_by_layer")
    _require_ordinary(summary, path.name)
    return summary


def _require_ordinary(value: Any, name: str, depth: int = 0) -> None:
    """Raise `ValueError` for what no run writes, and what computing with it cannot bear."""
    if depth > MOST_DEPTH:
        raise ValueError(f"{name} is nested too deeply")
    if isinstance(value, int) and abs(value) > MOST_COUNT:
        raise ValueError(f"{name} holds a number beyond {MOST_COUNT:.0e}")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inside:
        _require_ordinary(item, name, depth + 1)


def why_not_resumed(folder: Path) -> str | None:
    """What of a run's options, vocabulary, checkpoint or metrics is damaged, in one line.

    None if nothing is. Only what `--resume` refuses before its first step, and on any machine.
    """
    run = Run(folder, trusts=True)  # its options are read, and nothing is imported
    try:
        config_yaml = run.config_yaml()
        for _ in run.metrics():
            pass
        if run.latest_checkpoint() is None:
            return None  # it begins anew
        state = run.state()
        run.require_same(state, config_yaml)
        Metrics(run.metrics_path).check(state["step"], state.get("metrics"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        return as_line(error)
    return None
