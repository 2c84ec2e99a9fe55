"""Disks that fail and files that are damaged, for tests; without torch."""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyro_meta import checksums
from pyro_meta.analysis import stored_posterior
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.posterior_file import PosteriorWriter, as_text
from pyro_meta.analysis.reading import Reading
from pyro_meta.errors import UsageError

SIZES = {"chain": 1, "draw": 4, "layer": 2, "group": 1, "block_draw": 6}


def write(path: Path, pieces: int = 6) -> None:
    """A posterior of 200 KB that does not shrink."""
    rng = np.random.default_rng(0)
    with PosteriorWriter(path, SIZES, ["a", "b", "c"], {"kl_weight": 0.1}) as out:
        for _ in range(pieces):
            means = rng.random((2, 1, 1000, 3), dtype=np.float32)
            out.append(
                "token",
                {
                    "tokens": {"posterior_mean": means, "text": as_text(["xy"] * 1000)},
                },
            )
        out.put("sample_stats", "lp", rng.random((1, 4)))


class Disk:
    """Takes so many bytes, then fails."""

    def __init__(self, room: int, error: int = errno.ENOSPC) -> None:
        self.room, self.error = room, error

    def pwrite(self, handle: int, data: Any, offset: int) -> int:
        if not self.room:
            raise OSError(self.error, os.strerror(self.error))
        taken = os.pwrite(handle, data[: self.room], offset)  # a short write comes first
        self.room -= taken
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def harmed(data: bytes, rng: random.Random, head: int) -> bytes:
    """Flipped bits, bytes, runs of zeros, or the end cut off; half of them near the head."""
    if rng.random() < 0.15:
        return data[: rng.randrange(len(data))]
    out = bytearray(data)
    most = min(len(out), head) if rng.random() < 0.5 else len(out)
    for _ in range(rng.choice([1, 1, 2, 8, 32])):
        at = rng.randrange(most)
        out[at] = rng.choice([out[at] ^ 1 << rng.randrange(8), 0, rng.randrange(256)])
    return bytes(out)


COUNTS = {"posterior.nc": 60, "summary.json": 15, "sequences.json": 10, "metrics.jsonl": 15}


def damages(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a run with random damage, always the same."""
    for name, count in COUNTS.items():
        rng, whole = random.Random(name), (folder / name).read_bytes()
        for _ in range(count):
            yield name, harmed(whole, rng, 1 << 15)


def try_damages(folder: str, start: int) -> None:
    """Read damaged runs, and say how each went; HDF5 may end the process in the midst of it."""
    checksums.damage = lambda folder: None
    stored_posterior._try_elsewhere = lambda path: None  # type: ignore[assignment]
    for number, (name, data) in enumerate(damages(Path(folder))):
        if number < start:
            continue
        copy = Path(folder).with_name(f"copy-{number}")
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(data)
        print(number, end=" ", flush=True)
        try:
            Findings(Reading.of(copy)).to_json()
        except UsageError as error:
            if not str(error).startswith(f"{copy} is damaged: ") or len(str(error)) > 800:
                raise
            print("refused", flush=True)
        else:
            print("read", flush=True)
        shutil.rmtree(copy)
