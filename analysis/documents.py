"""JSON files of a run that may come from anybody, held against what they should be."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_meta.checksums import require_plain

MOST = 1e12
"""No loss, cost or count is as large; whatever is computed of them stays finite."""


def parse(text: str, name: str) -> dict[str, Any]:
    """The object that a text holds; raises `ValueError`, which begins with `name`, if it has none.

    NaN and the infinities, which JSON does not know, are read as Python writes them.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds no object, but {type(found).__name__}")
    return found


def read(path: Path) -> dict[str, Any]:
    """The object of a JSON file; raises `OSError` or `ValueError`."""
    return parse(read_text(path), path.name)


def read_text(path: Path) -> str:
    """A plain file in UTF-8; raises `OSError` or `ValueError`."""
    require_plain(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: {error.reason}") from error


def number(found: Mapping[str, Any], key: str, name: str) -> float:
    """A finite number under `key`; raises `ValueError`, which begins with `name`, for others."""
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} has no number for {key}")
    if not abs(value) <= MOST or not math.isfinite(value):
        raise ValueError(
            f"{name}: {key} is {value:.3g}"
            if isinstance(value, float)
            else f"{name}: {key} is beyond {MOST:g}"
        )
    return value


def numbers(found: Mapping[str, Any], key: str, name: str) -> list[float]:
    """A list of finite numbers under `key`."""
    values = found.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{name} has no list for {key}")
    return [number({key: value}, key, name) for value in values]
