"""Several runs, compared in pairs on the same validation sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from pyro_meta.analysis.comparison import Interval, difference_on_shared_text
from pyro_meta.analysis.reading import Reading


@dataclass(frozen=True)
class Pair:
    """Loss of one run minus that of another, hard routes, nats per token."""

    ours: str
    theirs: str
    mean: float
    interval: Interval
    """95% bootstrap interval for other sequences, with these trained weights."""
    sequences: int


def names_of(readings: Sequence[Reading]) -> list[str]:
    """Short names that tell the runs apart: the folder's, with its parent's where needed."""
    short = [reading.folder.resolve().name for reading in readings]
    if len(set(short)) == len(short):
        return short
    return ["/".join(reading.folder.resolve().parts[-2:]) for reading in readings]


def paired(readings: Sequence[Reading]) -> tuple[list[Pair], list[str]]:
    """All pairs on the same sequences, and why other pairs are missing."""
    pairs, missing = [], []
    named = list(zip(names_of(readings), readings, strict=True))
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
