"""Several runs, compared in pairs on the same validation sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pyro_meta.analysis.comparison import Interval, difference_on_shared_text
from pyro_meta.analysis.reading import Reading
from pyro_meta.terminal.consoles import printable


@dataclass(frozen=True)
class Pair:
    """Loss of one run minus that of another, hard routes, nats per token."""

    ours: str
    theirs: str
    mean: float
    interval: Interval
    """95% bootstrap interval for other sequences, with these trained weights."""
    sequences: int


def names_of(folders: Sequence[Path]) -> list[Path]:
    """Short paths that tell different folders apart: each one's name, with parents where needed."""
    parts = [folder.resolve().parts[1:] for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        short = [Path(*one[-depth:]) for one in parts]
        if len(set(short)) == len(short):
            break
    return short


def paired(readings: Sequence[Reading]) -> tuple[list[Pair], list[str]]:
    """All pairs on the same sequences, and why other pairs are missing."""
    pairs, missing = [], []
    names = [printable(str(name)) for name in names_of([one.folder for one in readings])]
    named = list(zip(names, readings, strict=True))
    for (ours, a), (theirs, b) in combinations(named, 2):
        x, y = a.sequence_losses, b.sequence_losses
        if not x or not y:
            missing.append(f"{ours} and {theirs}: one has no sequences.json")
        elif (found := difference_on_shared_text({0: x}, {0: y})) is None:
            missing.append(f"{ours} and {theirs}: their validation sequences differ")
        else:
            pairs.append(Pair(ours, theirs, found.mean, found.interval, found.sequences))
    return pairs, missing


def position(pair: Pair) -> str:
    """Who is better, if that is clear."""
    if pair.interval[1] < 0:
        return f"{pair.ours} is better"
    if pair.interval[0] > 0:
        return f"{pair.theirs} is better"
    return "no clear difference"
