"""Where files are kept, how one is written whole, and what is found out once for a machine."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_meta.errors import UsageError


def cache_folder() -> Path:
    """Where prepared corpora are kept: $PYRO_META_CACHE, else the user's cache folder."""
    if named := os.environ.get("PYRO_META_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro-meta"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` at the end: it is never there in part.

    An exception leaves nothing behind, and what was at `path` as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it to `path`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Have the disk hold what was written, so that a rename never outruns its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def kept_once(
    kind: str,
    conditions: dict[str, Any],
    find_out: Callable[[], dict[str, Any]],
    is_whole: Callable[[dict[str, Any]], bool],
    refresh: bool = False,
) -> dict[str, Any]:
    """What this machine was found to be: read from the cache folder, or found out and kept there.

    Processes that ask at once wait for the first of them and get the same. A file is only read
    where the folder cannot be written.

    Parameters
    ----------
    kind
        What it is; the folder in the cache folder.
    conditions
        All that it depends on, as JSON: it names the file, and is written into it.
    find_out
        Measures, and gives what is kept, as JSON.
    is_whole
        Whether a file, read as a dictionary, holds all of it; a `LookupError`, `TypeError` or
        `ValueError` says that it does not. Such a file is replaced.
    refresh
        Find out again, whatever is kept.

    Raises
    ------
    UsageError
        Nothing is kept, and nothing can be.
    """
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / kind / f"{digest}.json"
    if not refresh and (known := _whole(path, is_whole)) is not None:
        return known
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not refresh and (known := _whole(path, is_whole)) is not None:
                return known  # another process was first
            found = conditions | find_out()
            write_whole(path, json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise UsageError(
            f"cannot keep {kind} in {path.parent}: {error.strerror}; "
            "set PYRO_META_CACHE to a folder that can be written"
        ) from error
    return found


def _whole(path: Path, is_whole: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The content of a file that `kept_once` wrote, or None."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content if is_whole(content) else None
    except (OSError, LookupError, TypeError, ValueError):
        return None
