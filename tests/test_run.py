"""A run as a person meets it: what it leaves, resuming, interruption, damage."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import MOMENT, TEXT, error_line, run, run_here, train
from processes import finish
from safetensors.torch import load_file, save_file
from slow import all_but, long

import pyro_meta.training.checkpoint as checkpoint_module
from pyro_meta import (
    CategoricalGuide,
    Choice,
    DirichletGuide,
    Features,
    LanguageModel,
    UsageError,
    Window,
    checksums,
)
from pyro_meta.evaluation.executed import CLOCK_FIGURES
from pyro_meta.training.run import SUMMARY_KEYS, Run

NOT_REPEATABLE = ("tokens_per_second", "seconds", "finished")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What was logged, without the timings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in NOT_REPEATABLE}
        for line in lines
    ]


def without_clock(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what another measurement of the same routes changes."""
    executed = summary["executed"]
    assert set(CLOCK_FIGURES) < set(executed)
    kept = {key: value for key, value in executed.items() if key not in CLOCK_FIGURES}
    return summary | {"executed": kept, "finished": None}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Run.open(folder).latest_checkpoint()
    assert checkpoint is not None
    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, trained by the command itself."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text(TEXT)
    os.environ["PYRO_META_CACHE"] = str(folder / "cache")
    done = run("train", *MOMENT, f"--data.path={folder / 'text.txt'}", f"--out={folder / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "validation" in done.stdout and "sample" in done.stdout
    assert "share of tokens" in done.stdout
    assert "unigram" in done.stdout and "sha256" in done.stdout
    timed = ("times as fast as full, attention alone", "time, unsure here")
    assert any(one in done.stdout for one in timed), "which is a matter of the machine"
    return folder / "run"


def test_a_run_leaves_what_the_design_says(finished: Path) -> None:
    left = {path.name for path in finished.iterdir()}
    expected = {"config.yaml", "vocabulary.json", "metrics.jsonl", "posterior.nc", "summary.json"}
    expected |= {"sequences.json", "SHA256SUMS"}
    assert expected | {"checkpoint"} == left
    summary = json.loads((finished / "summary.json").read_text())
    assert tuple(summary) == (*SUMMARY_KEYS, "commit", "executed")
    assert summary["executed"]["length"] == 16 and summary["executed"]["tokens"] == 256
    assert summary["hard_fraction"] == 1.0
    assert summary["tokens_seen"] == 12 * 4 * 16
    assert sum(summary["load"].values()) == pytest.approx(1)
    assert len(summary["load_by_layer"]) == 2
    steps = [record["step"] for record in metrics(finished)]
    assert steps == list(range(1, 13))
    assert [r["step"] for r in metrics(finished) if "val_nll_hard" in r] == [5, 10]


def test_the_router_stays_under_two_percent_of_the_default_model() -> None:
    from pyro_meta.training.config import read_options

    model, guide = read_options([])[0].build(256)
    router = sum(parameter.numel() for parameter in guide.parameters())
    assert router < 0.02 * sum(parameter.numel() for parameter in model.parameters())


def test_no_pickle_is_in_a_run(finished: Path) -> None:
    for path in finished.rglob("*"):
        if path.is_file():
            known = (".yaml", ".json", ".jsonl", ".nc", ".safetensors")
            assert path.suffix in known or path.name == "SHA256SUMS"
            assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"PK"))


def test_a_run_is_repeated_from_its_configuration(finished: Path, tmp_path: Path) -> None:
    assert train("--config", finished / "config.yaml", "--out", tmp_path / "again") == 0
    assert metrics(tmp_path / "again") == metrics(finished)
    ours, theirs = (
        without_clock(json.loads((folder / "summary.json").read_text()))
        for folder in (tmp_path / "again", finished)
    )
    times = dict.fromkeys(NOT_REPEATABLE)
    assert ours | times == theirs | times
    for name, value in weights(finished).items():
        assert torch.equal(value, weights(tmp_path / "again")[name]), name


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.long
def test_a_run_with_sinks_is_kept_resumed_and_generated_from(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*MOMENT, "--sinks=4", f"--data.path={text_file}"]
    assert train(*words, f"--out={tmp_path / 'whole'}") == 0
    append = Run.append_metrics

    def kill(self: Run, record: dict[str, Any]) -> None:
        append(self, record)
        if record["step"] == 7:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", kill)
        with pytest.raises(Killed):
            train(*words, f"--out={tmp_path / 'killed'}")
    assert train("--resume", tmp_path / "killed") == 0
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "killed")[name]), name
    model, _, _, config = Run.open(tmp_path / "killed").load()
    assert config.sinks == 4 and model.network.describe()["shape"]["sinks"] == 4
    (window,) = (one for one in model.network.mechanisms if isinstance(one, Window))
    assert (window.window, window.sinks) == (4, 4)
    words = ["--prompt=the quick", "--max_tokens=30", "--greedy=true"]
    cached = run_here("generate", tmp_path / "killed", *words)
    again = run_here("generate", tmp_path / "killed", *words, "--cache=false")
    assert cached.returncode == 0 and cached.stdout == again.stdout
    assert cached.stdout.startswith("the quick")
    path = tmp_path / "killed" / "config.yaml"
    path.write_text(path.read_text().replace("sinks: 4", "sinks: 5"))
    with pytest.raises(UsageError, match="sinks"):
        Run.open(tmp_path / "killed").load()


MOMENTS = ("between", "while writing", "before the rename", "after it")


@pytest.mark.parametrize("moment", all_but(("while writing",), MOMENTS))
def test_a_killed_run_resumes_to_the_same_losses(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed around the checkpoint of step 8, at four moments; all end as if never killed."""
    original_append, original_save = Run.append_metrics, checkpoint_module.save_file
    original_rename, original_remove = Path.rename, checkpoint_module.shutil.rmtree

    def append(self: Run, record: dict[str, Any]) -> None:
        original_append(self, record)
        if moment == "between" and record["step"] == 7:
            raise Killed

    def save(tensors: Any, path: Path) -> None:
        if moment == "while writing" and "step-00000004" in str(list(path.parents[1].iterdir())):
            path.write_bytes(b"half of it")
            raise Killed
        original_save(tensors, path)

    def rename(self: Path, target: Path) -> Path:
        if moment == "before the rename" and str(target).endswith("step-00000008"):
            raise Killed
        return original_rename(self, target)

    def remove(path: Path, **options: Any) -> None:
        if moment == "after it" and "step-00000004" in str(path):  # being dropped
            raise Killed
        original_remove(path, **options)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", append)
        patch.setattr(checkpoint_module, "save_file", save)
        patch.setattr(Path, "rename", rename)
        patch.setattr(checkpoint_module.shutil, "rmtree", remove)
        with pytest.raises(Killed):
            train("--config", finished / "config.yaml", "--out", folder)
    with open(folder / "metrics.jsonl", "a") as out:
        out.write('{"step": 9, "lo')  # a line that the kill cut short
    assert train("--resume", folder) == 0
    assert metrics(folder) == metrics(finished)
    assert len(list((folder / "checkpoint").iterdir())) == 1
    for name, value in weights(finished).items():
        assert torch.equal(value, weights(folder)[name]), name


# The command itself, in a process that gets a signal after 30 steps.
SIGNALLED = """
import os, runpy, sys
from pyro_meta.training.run import Run

kind, append = int(sys.argv.pop(1)), Run.append_metrics

def append_metrics(self, record):
    append(self, record)
    if record["step"] == 30:
        os.kill(os.getpid(), kind)

Run.append_metrics = append_metrics
runpy.run_module("pyro_meta.train", run_name="__main__")
"""


@pytest.fixture(scope="module")
def forty_steps(finished: Path) -> tuple[list[str], Path]:
    """Options of a run that nothing disturbs, and what it leaves."""
    text_file, folder = finished.with_name("text.txt"), finished.with_name("forty")
    options = [*MOMENT, "--steps=40", "--validate_every=0", f"--data.path={text_file}"]
    assert train(*options, f"--out={folder}") == 0
    return options, folder


@pytest.mark.parametrize("kind", [signal.SIGINT, *long(signal.SIGKILL)])
def test_a_signal_loses_nothing(
    tmp_path: Path, forty_steps: tuple[list[str], Path], kind: signal.Signals
) -> None:
    """A real process: Ctrl-C saves and says how to go on, a kill leaves the last checkpoint."""
    options, whole = forty_steps
    folder = tmp_path / "run"
    words = [f"{kind:d}", *options, f"--out={folder}"]
    done = finish([sys.executable, "-c", SIGNALLED, *words])
    assert "Traceback" not in done.stderr
    if kind == signal.SIGINT:
        assert done.returncode == 130
        assert f"--resume {folder}" in done.stdout
        saved = Run.open(folder).latest_checkpoint()
        assert saved is not None and int(saved.name[5:]) == len(metrics(folder)) < 40
    else:
        assert done.returncode == -kind
    assert train("--resume", folder) == 0
    assert metrics(folder) == metrics(whole)


def test_a_finished_run_resumes_to_its_summary(finished: Path, tmp_path: Path) -> None:
    """Killed after training and before the results: resuming only evaluates."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    assert train("--resume", folder) == 0
    ours = json.loads((folder / "summary.json").read_text())
    theirs = json.loads((finished / "summary.json").read_text())
    assert without_clock(ours) == without_clock(theirs)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole(
    tmp_path: Path, text_file: Path
) -> None:
    """Without draws (PointGuide), two micro-batches train as one batch does."""
    options = [*MOMENT, "--guide=PointGuide", f"--data.path={text_file}"]
    assert train(*options, f"--out={tmp_path / 'one'}") == 0
    assert train(*options, "--accumulate=2", f"--out={tmp_path / 'two'}") == 0
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        (["--budget=0.7", "--guide.start=0"], "fabric"),
        pytest.param(["--guide=PointGuide"], "fabric", marks=pytest.mark.long),
        pytest.param(["--guide=DirichletGuide"], "torchrun", marks=pytest.mark.long),
    ],
)
def test_two_processes_train_as_one(
    tmp_path: Path, text_file: Path, words: list[str], launcher: str
) -> None:
    """Same global batch, same losses: within 1e-4 nats, which is rounding.

    With a stochastic guide the one process takes two micro-batches, whose draws are those of the
    two processes. A budget's controller sees the cost of all of them, which differs from that of
    one where no mechanism leads.
    """
    options = [*MOMENT, *words, f"--data.path={text_file}"]
    options_of_two = [*options, f"--out={tmp_path / 'two'}"]
    if launcher == "fabric":
        two = run("train", *options_of_two, "--devices=2")
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        two = finish([sys.executable, *torchrun, "-m", "pyro_meta.train", *options_of_two])
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("model:") == 1, "one process speaks"
    accumulate = 1 if "--guide=PointGuide" in words else 2
    assert train(*options, f"--accumulate={accumulate}", f"--out={tmp_path / 'one'}") == 0
    one_log, two_log = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one_log) == len(two_log) == 12
    for one_record, two_record in zip(one_log, two_log, strict=True):
        assert one_record["loss"] == pytest.approx(two_record["loss"], abs=1e-4)
        assert one_record["grad_norm"] == pytest.approx(two_record["grad_norm"], rel=1e-3)
        if "--budget=0.7" in words:
            assert one_record["lambda"] == pytest.approx(two_record["lambda"], rel=1e-3)


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path, text_file: Path) -> None:
    folder = tmp_path / "run"
    options = [*MOMENT, "--steps=300", "--optim.lr=1e18", "--optim.clip=1e30"]
    with pytest.raises(UsageError, match=r"is (nan|inf) at step \d+; checkpoint .*step-0"):
        train(*options, f"--data.path={text_file}", f"--out={folder}")
    for value in weights(folder).values():
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("truncate", "is damaged"),
        ("scramble", "is damaged"),
        ("empty state", "is damaged"),
        ("widen", "is of another model"),
        ("reorder", "is of another model"),
    ],
)
def test_a_harmed_checkpoint_is_refused(
    finished: Path, tmp_path: Path, harm: str, message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint = Run.open(folder).latest_checkpoint()
    assert checkpoint is not None
    (folder / "summary.json").unlink()  # one that has not finished: else it is left alone
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    if harm == "truncate":
        path.write_bytes(content[:1000])
    elif harm == "scramble":
        path.write_bytes(content[:-1000] + os.urandom(1000))
    elif harm == "empty state":
        (checkpoint / "state.json").write_text("{}")
    else:
        options = yaml.safe_load((folder / "config.yaml").read_text())
        other = {"mechanisms": ["linear", "full", "window"]} if harm == "reorder" else {"width": 32}
        (folder / "config.yaml").write_text(yaml.safe_dump(options | other))
    changed = r"config\.yaml: (width|mechanisms) is"
    with pytest.raises(UsageError, match=changed if "model" in message else message):
        train("--resume", folder)
    with pytest.raises(UsageError, match=changed if "model" in message else message):
        Run.open(folder).load()


@pytest.mark.parametrize("harm", ["missing", "of another shape"])
def test_moments_that_do_not_fit_are_refused(finished: Path, tmp_path: Path, harm: str) -> None:
    """A fused optimiser would read past their end."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint = Run.open(folder).latest_checkpoint()
    assert checkpoint is not None
    (folder / "summary.json").unlink()
    path = checkpoint / "optimiser.safetensors"
    moments = load_file(path)
    name = next(name for name in moments if name.endswith("exp_avg"))
    if harm == "missing":
        del moments[name]
    else:
        moments[name] = torch.zeros(3)
    save_file(moments, path)
    state = checksums.unsealed(checkpoint / "state.json")
    state["files"][path.name] = {
        "bytes": path.stat().st_size,
        "sha256": checksums.sha256(path),
    }
    (checkpoint / "state.json").write_text(checksums.sealed(state))
    with pytest.raises(UsageError, match="does not fit"):
        train("--resume", folder)


@pytest.mark.long
def test_a_run_without_a_checkpoint_begins_anew(finished: Path, tmp_path: Path) -> None:
    """Killed between making its folder and its first checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "vocabulary.json"):
        shutil.copy(finished / name, folder)
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        Run.open(folder).load()
    assert train("--resume", folder) == 0
    assert metrics(folder) == metrics(finished)


def test_a_resting_router_leaves_no_moments(tmp_path: Path, text_file: Path) -> None:
    folder = tmp_path / "run"
    never = ["--optim.router_end=0.25", "--kl.begin=0"]
    assert train(*MOMENT, f"--data.path={text_file}", *never, f"--out={folder}") == 0
    moments = load_file(next(folder.glob("checkpoint/*/optimiser.safetensors")))
    assert moments and not [name for name in moments if name.startswith("guide.")]


def test_routes_are_detached_while_the_guide_rests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path
) -> None:
    seen: list[bool] = []
    posterior = CategoricalGuide.posterior

    def recording(self: CategoricalGuide, layer: int, features: Features) -> Choice:
        if torch.is_grad_enabled() and layer == 1:  # else it is being evaluated
            seen.append(features.state.requires_grad)
        return posterior(self, layer, features)

    monkeypatch.setattr(CategoricalGuide, "posterior", recording)
    folder = tmp_path / "run"
    options = [*MOMENT, "--optim.router_end=0.5", f"--data.path={text_file}"]
    assert train(*options, f"--out={folder}") == 0
    assert seen == [False] * 3 + [True] * 3 + [False] * 6


@pytest.mark.long
def test_a_changed_filler_is_named_before_its_vocabulary_is(tmp_path: Path) -> None:
    book, folder = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("to be or not to be " * 200)
    planted = ["--data=Recall", "--data.pairs=3", "--data.distance=2", f"--data.filler={book}"]
    assert train(*MOMENT, *planted, f"--out={folder}") == 0
    (folder / "summary.json").unlink()
    book.write_text("that is the question " * 200)
    with pytest.raises(UsageError, match="data: the run began on a text of sha256"):
        train("--resume", folder)


def test_damaged_metrics_are_not_thrown_away(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1][:20]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="is damaged at line 2"):
        train("--resume", folder)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12


def test_a_run_is_written_by_one_process_at_a_time(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    with Run.open(folder).locked():
        assert "another process" in error_line(run("train", "--resume", folder))
    assert train("--resume", folder) == 0


@pytest.mark.long
def test_a_text_with_nul_characters_trains_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "nul.txt").write_text("abc\0def ghi\n" * 300)
    assert train(*MOMENT, f"--data.path={tmp_path / 'nul.txt'}", f"--out={tmp_path / 'run'}") == 0
    assert run("report", tmp_path / "run").returncode == 0


class Unused(DirichletGuide):
    """A guide with a parameter that never gets a gradient, and one that may be null."""

    def __init__(self, model: LanguageModel, size: int | None = 5) -> None:
        super().__init__(model)
        self.unused = torch.nn.Parameter(torch.zeros(size or 2))


@pytest.mark.long
def test_parameters_without_gradients_and_nulls_survive_a_resume(
    tmp_path: Path, text_file: Path
) -> None:
    folder = tmp_path / "run"
    options = [f"--guide={__name__}.Unused", "--guide.size=null"]
    assert train(*MOMENT, *options, f"--data.path={text_file}", f"--out={folder}") == 0
    (folder / "summary.json").unlink()
    assert train("--resume", folder, "--trust") == 0
    assert Run.open(folder, trusts=True).load()[1].unused.shape == (2,)


def test_a_run_that_lost_its_checkpoint_keeps_no_stale_results(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoint")
    (folder / "summary.json").unlink()
    (folder / "posterior.nc").write_text("of the run that is lost")
    assert train("--resume", folder) == 0
    assert metrics(folder) == metrics(finished)


def test_a_changed_text_is_refused_on_resume(tmp_path: Path, text_file: Path) -> None:
    folder = tmp_path / "run"
    assert train(*MOMENT, f"--data.path={text_file}", f"--out={folder}") == 0
    (folder / "summary.json").unlink()
    text_file.write_text(TEXT + "more")
    with pytest.raises(UsageError, match="the run began on a text of sha256"):
        train("--resume", folder)
