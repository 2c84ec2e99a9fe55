"""The examples run as they stand, and the classes in them keep their contracts."""

import runpy
import subprocess
import sys
from pathlib import Path

import long_file
import pytest
from commands import MOMENT, train
from processes import finish
from slow import long

from pyro_meta import UsageError
from pyro_meta.contracts import contract

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
NEEDS_A_RUN = {"long_file", "pretrained"}
"""Or a model; the latter is run by test_pretrained_runs.py."""


def start(example: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return finish([sys.executable, example.name, *map(str, words)], cwd=example.parent)


@pytest.mark.parametrize(
    "example", [one for one in EXAMPLES if one.stem not in NEEDS_A_RUN], ids=lambda path: path.stem
)
def test_an_example_runs(example: Path) -> None:
    done = start(example)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and not done.stderr.strip()


@pytest.mark.parametrize("guide", long("DirichletGuide", "RandomGuide"))
def test_a_long_file_is_read_by_a_run(
    guide: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("she sells sea shells by the sea shore. " * 60)
    words = [f"--data.path={tmp_path / 'text.txt'}", f"--guide={guide}"]
    assert train(*MOMENT, *words, f"--out={tmp_path / 'run'}") == 0
    (example,) = (one for one in EXAMPLES if one.stem == "long_file")
    done = start(example, tmp_path / "run", "--length=150", "--tokens=12")
    assert done.returncode == 0, done.stderr
    for word in ("150 tokens read, 12 added", "routed", "all full", "share of each", "sea shells"):
        assert word in done.stdout
    long_file.main([str(tmp_path / "run"), str(tmp_path / "text.txt"), "--length=40", "--tokens=2"])
    assert "40 tokens read, 2 added" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no such file"):
        long_file.main([str(tmp_path / "run"), str(tmp_path / "gone.txt")])


test_my_prior = contract("my_prior.CheapBelow", cheap=2)
test_my_mechanism = contract("my_mechanism.Ends")


def test_the_picture_of_mechanisms_is_what_they_read() -> None:
    docs = Path(__file__).parents[1] / "docs"
    drawing = runpy.run_path(str(docs / "draw_mechanisms.py"))
    assert drawing["svg"]() == (docs / "mechanisms.svg").read_text(encoding="utf-8")
