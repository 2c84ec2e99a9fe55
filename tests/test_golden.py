"""Nothing computes otherwise: tiny runs give what the files in tests/golden/ say (`golden.py`)."""

import json
from pathlib import Path
from typing import Any

import golden
import pytest
from slow import all_but

TOLERANCE = 1e-4
"""Nats, on another machine than the one that wrote the files."""


EVERY_DAY = {"default"}


@pytest.mark.parametrize("name", all_but(EVERY_DAY, golden.RUNS))
def test_a_tiny_run_computes_what_it_always_did(name: str, tmp_path: Path) -> None:
    expected = json.loads((golden.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    found = golden.measure(name, tmp_path / "run")
    if name == "default":
        found["report"] = golden.report(tmp_path / "run")
    if expected.pop("machine") == golden.machine():
        assert differences(found, expected) == []
    for ours, theirs in zip(found["steps"], expected["steps"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)
    for key in ("val_nll_soft", "val_nll_hard"):
        assert found["summary"][key] == pytest.approx(expected["summary"][key], abs=TOLERANCE)


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """What is another number, text or name, by its place."""
    if isinstance(found, dict) and isinstance(expected, dict):
        own = [f"{where}.{key}" for key in found.keys() ^ expected.keys()]
        both = (key for key in expected if key in found)
        return own + [x for k in both for x in differences(found[k], expected[k], f"{where}.{k}")]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [x for i, (a, b) in pairs for x in differences(a, b, f"{where}[{i}]")]
    return [] if found == expected else [f"{where}: {found!r}, not {expected!r}"]
