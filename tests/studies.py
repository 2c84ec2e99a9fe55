"""Studies whose runs take a moment: options, runs that wait, and how often each began."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import load_guides
import pytest
from processes import nothing_stays

from pyro_meta import ablate
from pyro_meta.study import plan, results, runner
from pyro_meta.study.job import Job
from pyro_meta.training.config import Config, read_options

SMALL = {"context": 16, "window": 4, "width": 16, "layers": 2, "heads": 2, "steps": 4}
WORDS = [f"--{name}={value}" for name, value in SMALL.items()]


@functools.cache
def read_once(words: tuple[str, ...]) -> tuple[Config, str]:
    """Options of a run, which most studies here have in common."""
    return read_options(words)


@pytest.fixture(autouse=True)
def own_guides(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plan, "LOAD_GUIDES", load_guides.LOAD_GUIDES)
    monkeypatch.setattr(plan, "read_options", lambda words: read_once(tuple(words)))
    monkeypatch.setattr(ablate, "_hours", lambda jobs, out: "not timed here")
    with nothing_stays():
        yield


@pytest.fixture(name="faked")
def faked_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take a moment."""
    monkeypatch.setattr(Job, "command", load_guides.fake_command)
    monkeypatch.setattr(results, "verdicts_of", lambda folder: [])  # there is no real posterior
    monkeypatch.setattr(ablate, "_prepare", lambda groups, told: None)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture(name="held")
def held_fixture(
    faked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], int]]:
    """Runs that wait after their first step; a call waits for one and gives its process id."""
    pipe = tmp_path / "held"
    os.mkfifo(pipe)
    monkeypatch.setenv("FAKE_HOLD", str(pipe))
    with open(pipe, "r+b", buffering=0) as file:
        yield lambda: int(file.readline())


def starts(out: Path) -> dict[str, list[str]]:
    """At which step each run was started, and how often."""
    return {
        path.parent.name: path.read_text().split() for path in sorted(out.glob("runs/*/starts"))
    }
