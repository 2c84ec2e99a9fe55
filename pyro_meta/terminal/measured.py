"""A JSON of figures that says what they were measured by, and has its entry in an index."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyro_meta.errors import UsageError
from pyro_meta.folders import write_whole
from pyro_meta.results_index import Entry, folder_of, publish
from pyro_meta.terminal.checkout import commit
from pyro_meta.terminal.machine import hardware, versions

_OF_A_SEED = re.compile(r"-s(\d+)\b")
"""What stands behind the name of a run whose seed is told, as in routes-s0."""


def measured_by(command: str | Sequence[str]) -> dict[str, Any]:
    """What a file of figures begins with: command, commit, date, hardware and versions."""
    return {
        "command": command if isinstance(command, str) else shlex.join(command),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
    }


def write_measured(
    path: Path,
    contents: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Write a file of figures whole; below a folder with an index of results, with its entry.

    Parameters
    ----------
    path
        Of the JSON. Its folder is made if it is missing.
    contents
        All that is written.
    facts
        What `measured_by` gave (default: it is in the contents).
    beside
        Pictures and pages of the same figures that are there already.

    Raises
    ------
    OSError
        It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(contents, indent=1) + "\n"
    folder = folder_of(path)
    if folder is None:
        write_whole(path, text)
        return
    name, *others = (one.resolve().relative_to(folder).as_posix() for one in (path, *beside))
    try:
        publish(folder, name, {name: text}, entry_of(contents, facts or contents), others)
    except UsageError:  # of the index: the figures are not lost for it
        write_whole(path, text)
        raise


def entry_of(contents: Mapping[str, Any], facts: Mapping[str, Any]) -> Entry:
    """The entry of a file of figures; what is not said is None."""
    command = facts.get("command")
    if command is not None and not isinstance(command, str):
        command = shlex.join(map(str, command))
    known = facts.get("versions") or next(_values(contents, "versions"), None)
    return Entry(
        commit=facts.get("commit"),
        command=command,
        seeds=seeds_named(contents, command or ""),
        date=facts.get("date"),
        hardware=facts.get("hardware"),
        versions=known,
    )


def seeds_named(contents: Any, command: str = "") -> list[int]:
    """Seeds under `seed` or `by_seed` anywhere, or behind names of runs such as routes-s0."""
    found = {one for one in _values(contents, "seed") if type(one) is int}
    by_seed = (one for one in _values(contents, "by_seed") if isinstance(one, Mapping))
    found |= {int(seed) for one in by_seed for seed in one if str(seed).isdecimal()}
    names = [*_keys(contents), *command.split()]
    return sorted(found | {int(one) for name in names for one in _OF_A_SEED.findall(name)})


def _values(contents: Any, key: str) -> Iterator[Any]:
    """What stands under a key, at any depth."""
    for name, value in _pairs(contents):
        if name == key:
            yield value


def _keys(contents: Any) -> Iterator[str]:
    for name, _ in _pairs(contents):
        yield name


def _pairs(contents: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    if isinstance(contents, Mapping):
        for name, value in contents.items():
            yield str(name), value
            yield from _pairs(value)
    elif isinstance(contents, list):
        for value in contents:
            yield from _pairs(value)
