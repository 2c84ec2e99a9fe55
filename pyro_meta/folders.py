"""Where files are kept, how one is written whole and by whom, and what is found out once."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyro_meta.errors import UsageError

PARTIAL = ".partial-"
"""What the name of a file or folder holds while it is written; only such are cleared away."""
BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
"""Errors by which a lock says that somebody else holds it; by others, that it does not work."""


def cache_folder() -> Path:
    """Where prepared corpora are kept: $PYRO_META_CACHE, else the user's cache folder.

    Raises
    ------
    UsageError
        Neither is known, as where there is no home.
    """
    if named := os.environ.get("PYRO_META_CACHE"):
        return Path(named)
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "pyro-meta"
    try:
        return Path.home() / ".cache" / "pyro-meta"
    except RuntimeError as error:
        raise UsageError(
            "there is no home folder to keep prepared text in; set PYRO_META_CACHE to a folder "
            "that can be written"
        ) from error


def partial_name(path: Path) -> Path:
    """A name beside `path` to write under: no two processes or threads have the same."""
    return path.with_name(f".{path.name}{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` at the end: it is never there in part.

    The name is nobody else's, and the disk holds the content before the rename, and the rename
    before this returns. An exception leaves nothing behind, and what was at `path` as it was.
    """
    partial = partial_name(path)
    try:
        yield partial
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    except OSError as error:  # of a write that knows no name, as where the disk is full
        if error.filename is None or error.filename == str(partial):
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it to `path`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_together(files: Mapping[Path, str | bytes]) -> None:
    """Write several files whole, and none of them before all are on the disk.

    They appear in their order, the first before the others.
    """
    with ExitStack() as stack:
        for path, content in reversed(list(files.items())):
            partial = stack.enter_context(replacing(path))
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            partial.write_bytes(data)
            flush(partial)


@contextmanager
def locked(path: Path, busy: str, waits: bool = False, is_shared: bool = False) -> Iterator[None]:
    """Hold a folder, or a file that is made if it is missing, against all others who ask so.

    A file system without locks is warned of, and gone on with.

    Parameters
    ----------
    path
        The folder or file.
    busy
        What to say where somebody else holds it.
    waits
        Wait until they are done instead.
    is_shared
        Hold it beside others who share it, too.

    Raises
    ------
    UsageError
        Somebody else holds it.
    """
    way = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, way | os.O_CLOEXEC, 0o666)
    try:
        if not hold(handle, waits, is_shared):
            raise UsageError(busy)
        yield
    finally:
        os.close(handle)


def hold(handle: int, waits: bool = False, is_shared: bool = False) -> bool:
    """Lock an open file until it is closed; whether it is ours, or there are no locks here."""
    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | (0 if waits else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in BUSY:
            return False
        warnings.warn(
            f"this file system has no locks ({error.strerror}): take care that no two processes "
            "write the same run",
            stacklevel=3,
        )
    return True


def flush(path: Path) -> None:
    """Have the disk hold what was written, so that a rename never outruns its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folder
            raise
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
        with locked(path.with_suffix(".lock"), busy="", waits=True):
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
