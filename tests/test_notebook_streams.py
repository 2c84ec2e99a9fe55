"""In a notebook, in a log: a line stays where it was written, and nothing is drawn anew."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from processes import finish
from rich.console import Console

from pyro_meta import Passage, TextELBO
from pyro_meta.study.job import Job
from pyro_meta.study.live import watching
from pyro_meta.terminal import consoles
from pyro_meta.terminal.consoles import busy, console
from pyro_meta.terminal.progress import over_training, step_by_step

MOVES = ("\r", "\x1b[?25", "\x1b[1A", "\x1b[2K")
"""What moves in a terminal: the start of a line, the cursor hidden, up, a line wiped away."""


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels of notebooks and CI set it."""
    monkeypatch.setenv("FORCE_COLOR", "1")


def test_forced_colours_make_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = console(stderr=True)
    record = dict.fromkeys(("loss", "kl", "cost_macs", "hard_share", "tokens_per_second"), 1.0)
    with busy(out, "preparing"), over_training(2, 0, out) as watch:
        watch(record | {"step": 1})
        watch(record | {"step": 2, "val_nll_soft": 1, "val_nll_hard": 1, "cost_macs_hard": 1})
    with step_by_step(1, out, prints_lines=True) as tell:
        tell("measured")
    jobs: list[Job] = []
    with watching(jobs, out) as study:
        study.show()
        study.say("begun")
    said = capsys.readouterr().err
    for line in ("step 1/2", "step 2: validation", "measured", "begun"):
        assert line in said
    assert not [move for move in MOVES if move in said]
    assert out.is_terminal, "for whom colours are forced"


def test_a_notebook_without_widgets_is_not_warned_of_them(tmp_path: Path) -> None:
    """tqdm warns where IPython runs a kernel; what Pyro imports of it is imported here."""
    kernel = (
        "import sys, types\n"
        "class Shell: config = {'IPKernelApp': {}}\n"
        "sys.modules['IPython'] = types.SimpleNamespace(get_ipython=Shell)\n"
        "sys.modules['ipykernel.zmqshell'] = sys.modules['ipywidgets'] = None\n"
        "import pyro_meta\n"
        "pyro_meta.Guide\n"
        "import json; print(json.dumps(sorted(sys.modules)))"
    )
    done = finish([sys.executable, "-c", kernel], cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert {"tqdm.autonotebook", "pyro"} <= set(json.loads(done.stdout))


def test_what_a_cell_ends_with_is_said_in_few_words() -> None:
    """Without every digit, and without arrays."""
    elbo = TextELBO(-6.48402, -2.56513, 2.54939, 0.66287, 3.27181, 0.004, 0.01823, 15, 100)
    said = repr(elbo).splitlines()
    assert max(map(len, said)) <= 80
    assert "15 tokens, 100 draws" in said[0]
    for name, value in (("elbo", "-6.4840 ± 0.0182"), ("kl", "0.6629"), ("compute", "3.2718")):
        assert any(name in line and value in line for line in said)
    means = np.full((2, 500, 3), 1 / 3, np.float32)
    passage = Passage(["a"] * 500, ["layer 0", "layer 1"], ["full", "window", "own"], means, means)
    assert "500 tokens" in repr(passage) and len(repr(passage)) < 200


def wait_for(said: Callable[[], str], text: str) -> str:
    """What was said, once `text` is in it; all of it after ten seconds."""
    found = ""
    for _ in range(1000):
        found += said()
        if text in found:
            break
        time.sleep(0.01)
    return found


RECORD = dict.fromkeys(("loss", "kl", "cost_macs", "hard_share", "tokens_per_second"), 1.0)


def reading(out: Console, of: str) -> Iterator[None]:
    """A busy command that has told how far it is, and then reads for long."""
    with busy(out, "preparing") as more:
        more(of)
        yield


def asking(out: Console, of: str) -> Iterator[None]:
    with step_by_step(3, out) as tell:
        tell(of)
        yield


def training(out: Console, of: str) -> Iterator[None]:
    with over_training(1000, 0, out) as watch:
        watch(RECORD | {"step": 7})
        yield


@pytest.mark.parametrize(
    ("long", "line"),
    [(reading, "half [red] (0 s)"), (asking, "step 1/3  half [red]"), (training, "step 7/1000  ")],
)
def test_what_takes_long_says_so_now_and_then(
    long: Callable[[Console, str], Iterator[None]],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = threading.active_count()
    in_contexts = contextmanager(long)
    with in_contexts(console(stderr=True), "half [red]"):
        pass
    assert not capsys.readouterr().err, "what is quick says nothing"
    monkeypatch.setattr(consoles, "SILENT_S", 0.02)
    with in_contexts(console(stderr=True), "half [red]"):
        found = wait_for(lambda: capsys.readouterr().err, line)
        assert line in found
        assert line in wait_for(lambda: capsys.readouterr().err, line), "and again"
    assert threading.active_count() == threads
    with in_contexts(console(stderr=True, quiet=True), "half"):
        time.sleep(0.1)
    assert not "".join(capsys.readouterr())


def test_a_line_that_is_printed_breaks_the_silence_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(consoles, "SILENT_S", 60.0)
    with over_training(10, 0, console(stderr=True)) as watch:
        watch(RECORD | {"step": 1})
    assert capsys.readouterr().err.count("step 1/10") == 1
