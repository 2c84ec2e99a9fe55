"""The results that stand today, through their index: what has no entry is not read."""

import json
from pathlib import Path
from typing import Any

from pyro_meta import results_index
from pyro_meta.errors import UsageError

CURRENT = Path(__file__).parent / "results" / "current"


def path_of(name: str) -> Path:
    """A file of a result, such as planted/study.json.

    Raises
    ------
    UsageError
        No entry of the index names it.
    """
    if not any(name in entry.files for entry in results_index.read(CURRENT).values()):
        raise UsageError(f"{CURRENT / results_index.NAME} has no entry with {name}")
    return CURRENT / name


def read(name: str) -> dict[str, Any]:
    """The content of a JSON of a result; raises `UsageError` as `path_of` does."""
    found: dict[str, Any] = json.loads(path_of(name).read_text(encoding="utf-8"))
    return found


def folder_of(name: str) -> Path:
    """A folder in which every file has an entry of its own; raises `UsageError` if none does."""
    entries = results_index.read(CURRENT)
    if not any(one.startswith(f"{name}/") for one in entries):
        raise UsageError(f"{CURRENT / results_index.NAME} has no entries below {name}/")
    return CURRENT / name
