"""metrics.jsonl: one record a step, on the disk before the checkpoint that counts it.

A checkpoint says how many bytes of the file it counts, and their hash. Going on from it, the file
is cut there: what a killed run logged later is made again.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_meta.checksums import require_plain
from pyro_meta.errors import UsageError
from pyro_meta.folders import flush, write_whole

NUMBERS_SHOWN = 3
PIECE = 1 << 20


class Metrics:
    """The log of one run.

    Parameters
    ----------
    path
        The file, which may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes, self._hash = 0, hashlib.sha256()

    def append(self, record: dict[str, Any]) -> None:
        """Add a record, whole or not at all."""
        line = (json.dumps(record) + "\n").encode()
        with open(self.path, "ab", buffering=0) as out:
            start = out.tell()
            if out.write(line) != len(line):  # the disk is full
                out.truncate(start)
                raise OSError(None, "no space left to write a line", str(self.path))
        self._bytes += len(line)
        self._hash.update(line)

    def counted(self) -> dict[str, Any]:
        """How much was written so far, once the disk holds it: what a checkpoint remembers."""
        if self._bytes:
            flush(self.path)
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole record; a last line that a kill cut short is passed over.

        Raises
        ------
        UsageError
            A line before the last is damaged, or its step does not follow.
        """
        previous = 0
        for number, (line, is_last) in enumerate(_lines(self.path), start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                    raise ValueError("no record of a step")
                if record["step"] <= previous:
                    raise ValueError(f"step {record['step']} after step {previous}")
            except (ValueError, RecursionError) as error:
                if is_last and not line.endswith(b"\n"):
                    return
                raise UsageError(f"{self.path} is damaged at line {number}: {error}") from error
            previous = record["step"]
            yield record

    def cut(self, step: int, counted: dict[str, Any] | None) -> str | None:
        """Leave what `step` steps have logged, as their checkpoint has `counted` it.

        Returns
        -------
        str or None
            What is missing there, in one line, if anything is.

        Raises
        ------
        UsageError
            What was counted is not what was written.
        """
        missing = self.check(step, counted)
        if counted is not None and (found := self._counted_part(counted)) is not None:
            with open(self.path, "ab") as out:
                out.truncate(counted["bytes"])
            self._bytes, self._hash = counted["bytes"], found
        else:
            kept = [record for record in self.read() if record["step"] <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_whole(self.path, text)
            self._bytes, self._hash = len(text), hashlib.sha256(text.encode())
        return missing

    def check(self, step: int, counted: dict[str, Any] | None) -> str | None:
        """What `cut` would say, and its errors; changes nothing."""
        if counted is not None and self._counted_part(counted) is not None:
            return None
        there = {record["step"] for record in self.read()}
        lost = sorted(set(range(1, step + 1)) - there)
        if lost:
            return f"{self.path} lacks {_named(lost)}, which the disk has lost: it goes on without"
        if counted is None:
            return None
        raise UsageError(f"{self.path} is not what was written up to step {step}")

    def _counted_part(self, counted: dict[str, Any]) -> "hashlib._Hash | None":
        """The hash of the part that was counted, if it is as it was."""
        found, left = hashlib.sha256(), int(counted["bytes"])
        try:
            require_plain(self.path)
            with open(self.path, "rb") as file:
                while left and (piece := file.read(min(left, PIECE))):
                    found.update(piece)
                    left -= len(piece)
        except FileNotFoundError:  # as before the first step
            pass
        return found if not left and found.hexdigest() == counted["sha256"] else None


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Lines with their ends, and whether each is the last."""
    try:
        require_plain(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: {error}") from error
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        for line in file:
            yield line, file.tell() >= size


def _named(steps: list[int]) -> str:
    """Steps in words: a span if they follow each other, else the first ones."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if steps[-1] - steps[0] == len(steps) - 1:
        return f"steps {steps[0]} to {steps[-1]}"
    shown = ", ".join(map(str, steps[:NUMBERS_SHOWN]))
    more = len(steps) - NUMBERS_SHOWN
    return f"steps {shown}" + (f" and {more} more" if more > 0 else "")
