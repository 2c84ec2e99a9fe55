"""The index of a folder of results: of each what made it, and what its files are.

    FOLDER/index.json   name -> commit, command, seeds, date, hardware, versions, files
    FOLDER/NAME/...     a result whose name is a folder, such as a study
    FOLDER/NAME         a result whose name is a file, such as svi.json

The index is always whole. It says of every file which bytes belong to it (SHA-256), and appears
before them, when all of them are on the disk. So a kill in between leaves files that are missing or
differ, which `faults` names and publishing again mends.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pyro_meta.checksums import require_plain, sha256
from pyro_meta.errors import UsageError
from pyro_meta.folders import PARTIAL, locked, write_together, write_whole

NAME = "index.json"
FORMAT = "results of pyro-meta, 1"
MOST_BYTES = 1 << 24
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """What a result was made by; None is not known."""

    commit: str | list[str] | None = None
    """Of the code; several where runs of a study were made by several."""
    command: str | None = None
    seeds: list[int] = field(default_factory=list)
    """Those of its runs; none where nothing is drawn, or no seed is named."""
    date: str | None = None
    """When the last of it was measured, ISO 8601."""
    hardware: Any = None
    versions: dict[str, str] | None = None
    files: dict[str, str] = field(default_factory=dict)
    """Path from the folder of the index -> SHA-256."""


def read(folder: Path) -> dict[str, Entry]:
    """The entries of a folder's index by name; none where there is no index yet.

    Raises
    ------
    UsageError
        What is there is no such index.
    """
    path = folder / NAME
    try:
        if require_plain(path) > MOST_BYTES:
            raise ValueError("it is too long")
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        return {str(name): _entry(one) for name, one in said["results"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise UsageError(f"{path} is no index of results: {why}") from error


def folder_of(path: Path) -> Path | None:
    """The nearest folder above a file that has an index of results; None where there is none."""
    for folder in path.resolve().parents:
        try:
            if (folder / NAME).is_file():
                read(folder)
                return folder
        except (OSError, UsageError):  # somebody else's index.json
            continue
    return None


def publish(
    folder: Path,
    name: str,
    files: Mapping[str, str | bytes],
    made_by: Entry,
    beside: Sequence[str] = (),
) -> None:
    """Write the files of a result and its entry, in place of those that it had before.

    Two who publish at once wait for each other.

    Parameters
    ----------
    folder
        Of the index; made if it is missing.
    name
        Of the result: a file or a folder in `folder`.
    files
        Path from the folder, with / between its parts -> content.
    made_by
        Its entry, whose own files are not looked at.
    beside
        Files of the result that are there already and stay as they are.

    Raises
    ------
    UsageError
        The index is none, a path leads out of the folder, or a file is another result's.
    OSError
        Something cannot be written; the index is as it was.
    """
    contents = {
        path: content if isinstance(content, bytes) else content.encode("utf-8")
        for path, content in files.items()
    }
    for path in (name, *contents, *beside):
        _require_inside(path)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, busy="", waits=True):
        entries = read(folder)
        before = entries.pop(name, Entry()).files
        owners = {path: other for other, entry in entries.items() for path in entry.files}
        for path in (*contents, *beside):
            if path in owners:
                raise UsageError(f"{folder / path} is a file of the result {owners[path]}")
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
        digests |= {path: sha256(folder / path) for path in beside}
        left = {path: one for path, one in before.items() if path not in {*digests, *owners}}
        entries[name] = replace(made_by, files=dict(sorted((digests | left).items())))
        for path in contents:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _clear(folder / path)
        _clear(folder / NAME)
        write_together(
            {folder / NAME: _text(entries)}
            | {folder / path: data for path, data in contents.items()}
        )
        if left:  # known until they are gone
            for path in left:
                (folder / path).unlink(missing_ok=True)
            entries[name] = replace(made_by, files=dict(sorted(digests.items())))
            write_whole(folder / NAME, _text(entries))


def withdraw(folder: Path, names: Iterable[str]) -> None:
    """Take entries out of the index; their files stay.

    Raises
    ------
    UsageError
        One is not in the index.
    """
    with locked(folder, busy="", waits=True):
        entries = read(folder)
        for name in names:
            if entries.pop(name, None) is None:
                raise UsageError(f"{folder / NAME} has no entry {name}")
        write_whole(folder / NAME, _text(entries))


def require_place(folder: Path, name: str) -> None:
    """Raise `UsageError` where publishing a result would fail, or overwrite what is not its own."""
    _require_inside(name)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    entries = read(folder)
    own = entries.get(name, Entry()).files
    known = {path for entry in entries.values() for path in entry.files}
    if (folder / name).is_file() and name not in own:
        raise UsageError(f"{folder / name} is a file, and not of the result {name}")
    for path in sorted(_paths(folder, folder / name)):
        if path not in known:
            raise UsageError(
                f"{folder / path} is there already, and {folder / NAME} has no entry for it; move "
                "it, or choose another folder"
            )


def faults(folder: Path) -> Iterator[str]:
    """What of a folder and its index do not agree, in a line each.

    Raises
    ------
    UsageError
        The index is none.
    """
    known: dict[str, str] = {}
    for name, entry in sorted(read(folder).items()):
        for path, digest in entry.files.items():
            if path in known:
                yield f"{path}: a file of two entries, {known[path]} and {name}"
            known[path] = name
            try:
                is_right = sha256(folder / path) == digest
            except OSError:
                yield f"{path}: the entry {name} names it, and it is not there"
                continue
            if not is_right:
                yield f"{path}: it is not the file that the entry {name} is of"
    for path in sorted(_paths(folder, folder)):
        if path not in known:
            yield f"{path}: it has no entry"


def _require_inside(path: str) -> None:
    """Raise `UsageError` unless it is a plain relative path, and neither hidden nor the index."""
    parts = path.split("/")
    if (
        path == NAME
        or not all(parts)
        or any(part.startswith(".") or "\0" in part or PARTIAL in part for part in parts)
        or PurePosixPath(path).is_absolute()
    ):
        raise UsageError(f"{path!r} is no name in a folder of results")


def _entry(said: Any) -> Entry:
    """An entry as it was read; raises `ValueError`, `TypeError` or `UsageError`."""
    entry = Entry(**said)
    if not isinstance(entry.files, dict):
        raise ValueError("files of an entry are no mapping")
    for path, digest in entry.files.items():
        _require_inside(path)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"{path} has no SHA-256")
    return entry


def _text(entries: Mapping[str, Entry]) -> str:
    results = {name: asdict(entry) for name, entry in sorted(entries.items())}
    return json.dumps({"format": FORMAT, "results": results}, indent=1) + "\n"


def _paths(folder: Path, below: Path) -> Iterator[str]:
    """Plain files below a folder but the index, and what is hidden or half written."""
    for path in below.rglob("*"):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not is_hidden and path != folder / NAME:
            yield relative.as_posix()


def _clear(path: Path) -> None:
    """Remove what others who were killed have left of a file half written."""
    for left in path.parent.glob(f".{path.name}{PARTIAL}*"):
        left.unlink(missing_ok=True)
