"""Options at their ends: finite, or one line; never a traceback, and no figure that is NaN."""

import json
import math
from pathlib import Path

import pytest
from commands import MOMENT, run_here
from slow import all_but

from pyro_meta import RouteELBO

SHORT = ["--steps=3", "--validation_tokens=64"]
EXTREMES: dict[str, list[str]] = {
    "window 1": ["--window=1"],
    "sinks beyond the context": ["--sinks=100"],
    "learning rate 10": ["--optim.lr=10"],
    "KL weight 1e6": ["--kl.weight=1e6"],
    "one layer": ["--layers=1"],
    "one mechanism": ["--mechanisms=[window]"],
    "eight mechanisms": [
        "--mechanisms=[full,window,linear,linear_momentum,chunk,chunk_sliding,chunk_sentence,"
        "chunk_learned]", "--block=momentum", "--chunk=4",
    ],
    "context 8": ["--context=8"],
    "context 2": ["--context=2", "--short.factor=1"],
    "dropout 0.99": ["--dropout=0.99"],
    "one sequence, one step": ["--batch=1", "--steps=1", "--validate_every=1"],
    "bf16 on a CPU": ["--precision=bf16-mixed"],
    "gates that all skip": ["--depth=beta", "--gate.price=50"],
}  # fmt: skip
EVERY_DAY = {"KL weight 1e6", "context 2", "gates that all skip"}
REFUSED: dict[str, list[str]] = {
    "KL weight 0": ["--kl.weight=0"],
    "temperature 0": ["--guide=ConcreteGuide", "--guide.temperature=0"],
    "fp16": ["--precision=16-mixed"],
    "no mechanism": ["--mechanisms=[]"],
    "context 1": ["--context=1"],
    "window 0": ["--window=0"],
    "sinks below none": ["--sinks=-1"],
    "dropout 1": ["--dropout=1"],
    "learning rate 0 below": ["--optim.lr=-1"],
    "KL weight below 0": ["--kl.weight=-1"],
    "no layer": ["--layers=0"],
    "a context longer than the text": ["--context=100000"],
}  # fmt: skip


@pytest.mark.parametrize("name", all_but(EVERY_DAY, EXTREMES))
def test_an_extreme_is_finite_or_one_line(name: str, tmp_path: Path, text_file: Path) -> None:
    folder = tmp_path / "run"
    words = [*MOMENT, *SHORT, f"--data.path={text_file}", *EXTREMES[name], f"--out={folder}"]
    done = run_here("train", *words)
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert (len(errors) == 1 and "is nan at step" in errors[0]) or "is inf at step" in errors[0]
        return
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("val_nll_soft", "val_nll_hard", "kl_per_token", "cost_macs_hard"):
        assert math.isfinite(summary[key]), key
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(v) for v in json.loads(line).values() if isinstance(v, float))
    assert run_here("generate", folder, "--max_tokens=3", "--greedy").returncode == 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str, tmp_path: Path, text_file: Path) -> None:
    folder = tmp_path / "run"
    words = [*MOMENT, f"--data.path={text_file}", *REFUSED[name], f"--out={folder}"]
    done = run_here("train", *words)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and not folder.exists()


@pytest.mark.long
def test_a_compiled_run_goes_to_its_end(tmp_path: Path, text_file: Path) -> None:
    folder = tmp_path / "run"
    words = [*MOMENT, *SHORT, f"--data.path={text_file}", "--compile", f"--out={folder}"]
    assert run_here("train", *words).returncode == 0
    assert math.isfinite(json.loads((folder / "summary.json").read_text())["val_nll_hard"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_too_little_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path, error: Exception
) -> None:
    def fails(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(RouteELBO, "terms", fails)
    words = [*MOMENT, f"--data.path={text_file}", f"--out={tmp_path / 'run'}"]
    done = run_here("train", *words)
    assert done.returncode == 2 and done.stderr.startswith("error: memory is not enough")
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path
) -> None:
    def fails(*arguments: object, **more: object) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(RouteELBO, "terms", fails)
    words = [*MOMENT, f"--data.path={text_file}", f"--out={tmp_path / 'run'}"]
    done = run_here("train", *words, "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "KeyError: 'a mistake of ours'" in last
