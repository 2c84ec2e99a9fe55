"""Training as a person meets it: what a run leaves, resuming, interruption, bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import MOMENT, command, environment, error_line, run
from pyro.distributions import Dirichlet, LogisticNormal
from safetensors.torch import load_file, save_file

import pyro_meta.run as run_module
import pyro_meta.train as train_command
from pyro_meta import DirichletGuide, Features, LanguageModel, UsageError
from pyro_meta.executed import CLOCK_FIGURES
from pyro_meta.run import SUMMARY_KEYS, Run

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 40
NOT_REPEATABLE = ("tokens_per_second", "seconds")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def train(*words: str | Path) -> int:
    """Train in this process: faster than a new one, and monkeypatched code is used."""
    return train_command.main([str(word) for word in words])


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
    return summary | {"executed": kept}


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
    assert "validation" in done.stdout and "load" in done.stdout and "sample" in done.stdout
    assert "unigram" in done.stdout and "sha256" in done.stdout
    assert "times as fast as full, attention alone" in done.stdout
    return folder / "run"


def test_a_run_leaves_what_the_design_says(finished: Path) -> None:
    left = {path.name for path in finished.iterdir()}
    expected = {"config.yaml", "vocabulary.json", "metrics.jsonl", "posterior.nc", "summary.json"}
    expected |= {"sequences.json"}
    assert expected | {"checkpoint"} == left
    summary = json.loads((finished / "summary.json").read_text())
    assert tuple(summary) == (*SUMMARY_KEYS, "executed")
    assert summary["executed"]["length"] == 16 and summary["executed"]["tokens"] == 256
    assert summary["hard_fraction"] == 1.0
    assert summary["tokens_seen"] == 12 * 4 * 16
    assert sum(summary["load"].values()) == pytest.approx(1)
    assert len(summary["load_by_layer"]) == 2
    steps = [record["step"] for record in metrics(finished)]
    assert steps == list(range(1, 13))
    assert [r["step"] for r in metrics(finished) if "val_nll_hard" in r] == [5, 10]


def test_the_router_stays_under_two_percent_of_the_default_model() -> None:
    from pyro_meta.config import read_options

    model, guide = read_options([])[0].build(256)
    router = sum(parameter.numel() for parameter in guide.parameters())
    assert router < 0.02 * sum(parameter.numel() for parameter in model.parameters())


def test_no_pickle_is_in_a_run(finished: Path) -> None:
    for path in finished.rglob("*"):
        if path.is_file():
            assert path.suffix in (".yaml", ".json", ".jsonl", ".nc", ".safetensors")
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


@pytest.mark.parametrize("moment", ["between", "while writing", "before the rename", "after it"])
def test_a_killed_run_resumes_to_the_same_losses(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed around the checkpoint of step 8, at four moments; all end as if never killed."""
    original_append, original_save = Run.append_metrics, run_module.save_file
    original_rename, original_remove = Path.rename, run_module.shutil.rmtree

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
        if moment == "after it" and str(path).endswith("step-00000004"):  # being dropped
            raise Killed
        original_remove(path, **options)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", append)
        patch.setattr(run_module, "save_file", save)
        patch.setattr(Path, "rename", rename)
        patch.setattr(run_module.shutil, "rmtree", remove)
        with pytest.raises(Killed):
            train("--config", finished / "config.yaml", "--out", folder)
    with open(folder / "metrics.jsonl", "a") as out:
        out.write('{"step": 9, "lo')  # a line that the kill cut short
    assert train("--resume", folder) == 0
    assert metrics(folder) == metrics(finished)
    assert len(list((folder / "checkpoint").iterdir())) == 1
    for name, value in weights(finished).items():
        assert torch.equal(value, weights(folder)[name]), name


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    path = folder / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {steps} steps: {process.communicate()}")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_loses_nothing(tmp_path: Path, text: Path, kind: signal.Signals) -> None:
    """A real process: Ctrl-C saves and says how to go on, a kill leaves the last checkpoint."""
    options = [*MOMENT, "--steps=400", "--validate_every=0", f"--data.path={text}"]
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command("train", *options, f"--out={folder}"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(folder, 30, process)
    process.send_signal(kind)
    out, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    if kind == signal.SIGINT:
        assert process.returncode == 130
        assert f"--resume {folder}" in out
        saved = Run.open(folder).latest_checkpoint()
        assert saved is not None and int(saved.name[5:]) == len(metrics(folder))
    assert train("--resume", folder) == 0
    assert train(*options, f"--out={tmp_path / 'whole'}") == 0
    assert metrics(folder) == metrics(tmp_path / "whole")


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
    tmp_path: Path, text: Path
) -> None:
    """Without draws (PointGuide), two micro-batches train as one batch does."""
    options = [*MOMENT, "--guide=PointGuide", f"--data.path={text}"]
    assert train(*options, f"--out={tmp_path / 'one'}") == 0
    assert train(*options, "--accumulate=2", f"--out={tmp_path / 'two'}") == 0
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        (["--guide=PointGuide"], "fabric"),
        (["--budget=0.7", "--guide.start=0"], "fabric"),
        (["--guide=DirichletGuide"], "torchrun"),
    ],
)
def test_two_processes_train_as_one(
    tmp_path: Path, text: Path, words: list[str], launcher: str
) -> None:
    """Same global batch, same losses: within 1e-4 nats, which is rounding.

    With a stochastic guide the one process takes two micro-batches, whose draws are those of the
    two processes. A budget's controller sees the cost of all of them, which differs from that of
    one where no mechanism leads.
    """
    options = [*MOMENT, *words, f"--data.path={text}"]
    options_of_two = [*options, f"--out={tmp_path / 'two'}"]
    if launcher == "fabric":
        two = run("train", *options_of_two, "--devices=2")
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        two = subprocess.run(
            [sys.executable, *torchrun, "-m", "pyro_meta.train", *options_of_two],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
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


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path, text: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UsageError, match=r"is (nan|inf) at step \d+; checkpoint .*step-0"):
        train(*MOMENT, "--steps=300", "--optim.lr=1e18", "--optim.clip=1e30", f"--data.path={text}",
              f"--out={folder}")  # fmt: skip
    for value in weights(folder).values():
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stesp", "3"], "did you mean --steps"),
        (["--prior", "CostDirichle"], "did you mean CostDirichlet"),
        (["--prior", "json.JSONDecoder"], "is not a Prior"),
        (["--prior", "Prior"], "does not define forward"),
        (["--guide", "nowhere.Mine"], "cannot import 'nowhere.Mine': ModuleNotFoundError"),
        (["--guide", "DirichletGuid"], "did you mean DirichletGuide"),
        (["--prior.strenght", "3"], "did you mean strength"),
        (["--prior", "PaperDirichlet", "--prior.strength", "3"], "unknown option --prior.strength"),
        (["--prior.cost", "[1,2]"], "2 costs given for 3 mechanisms"),
        (["--prior.rate", "2", "--prior", "PaperDirichlet"], "name the class first"),
        (["--prior", "broken.Prior"], "cannot import 'broken.Prior': SyntaxError"),
        (["--mechanisms", "[full,broken.Mechanism]"], "cannot import 'broken.Mechanism'"),
        (["--mechanisms", "[full,leaky.Costless]"], "does not define nominal_cost"),
        (["--guide", "leaky.LeakyGuide"], "guide: LeakyGuide sees the future"),
        (["--guide", "test_run.Random"], "Random is random in evaluation mode"),
        (["--guide", "test_run.Meanless"], "has no mean"),
        (["--guide", "test_run.Misshapen"], "is needed"),
        (["--config.x", "1"], "unknown option --config.x"),
        (["--seed", "99999999999999999999999"], "below 2**63"),
        (["--data.path", ""], "data.path: it is empty"),
        (["--data.path", "~nobody-here/text"], "data.path: ~nobody-here/text"),
        (["--data.path", "x" * 400], "data.path: xxx"),
        (["--resume="], "it takes a run"),
        (["--resum", "taken"], "unknown option --resum; did you mean --resume"),
        (["--config", "keys.yaml"], "'rate' beside class_path"),
        (["--config", "resume.yaml"], "which no file may set"),
        (["--config", "list.yaml"], "a class or a mapping is allowed"),
        (["--prior.strength", "-1"], "above 0 is allowed"),
        (["--prior.floor", "0"], "above 0 is allowed"),
        (["--mechanisms", "[full,windw]"], "did you mean window"),
        (["--mechanisms", "[full,json.JSONDecoder]"], "is not a mechanism"),
        (["--window", "0"], "at least 1 is allowed"),
        (["--width", "18"], "divisible by 2 x heads"),
        (["--kv_heads", "3"], "a divisor of heads"),
        (["--batch", "5", "--accumulate", "2"], "divisible by devices x accumulate"),
        (["--steps", "0"], "steps: 0"),
        (["--steps", "many"], "option --steps: expected int; given: many"),
        (["--accelerator", "tpu"], "expected one of 'auto', 'cpu', 'cuda'; given: tpu"),
        (["--data.path", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--data.tokens", "words"], "byte, char or a tokenizer.json is allowed"),
        (["--data.path", "empty.txt"], "empty.txt holds no text"),
        (["--data.path", "short.txt"], "a context of 16 needs at least 17"),
        (["--data.path", "image.png"], "image.png is not UTF-8 text"),
        (["--out", "taken"], "taken exists"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--preset", "papre"], "'papre' given; paper, tiny are allowed"),
        (["--resume", "taken"], "taken is not a run"),
        (["--resume", "taken", "--steps", "3"], "no other option"),
        (["--kl.weight", "0"], "kl.weight: 0.0 given"),
        (["--kl.begin", "0.5", "--kl.end", "0.6"], "kl.begin: 0.5 given; below optim.router_end"),
    ],
)
def test_bad_input_is_refused_by_name(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a short text")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    (tmp_path / "keys.yaml").write_text("prior: {class_path: CostDirichlet, rate: 7}")
    (tmp_path / "resume.yaml").write_text("resume: taken")
    (tmp_path / "list.yaml").write_text("prior: {class_path: CostDirichlet, init_args: [1, 2]}")
    (tmp_path / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    base = [] if words[0].startswith("--resum") else [*MOMENT, f"--data.path={text}"]
    with pytest.raises(UsageError, match=re.escape(message)):
        train(*base, *words)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_an_error_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    assert "did you mean --steps" in error_line(run("train", "--stesp", "3", cwd=tmp_path))
    assert "is not a run" in error_line(run("generate", tmp_path))
    assert "is not a run" in error_line(run("report", tmp_path))
    assert "lengths" in error_line(run("bench", "--lengths=[5]"))
    for module in ("generate", "report"):
        assert "run" in error_line(run(module)).lower(), "no words at all"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    done = run("train", *MOMENT[:-1], "--accelerator", "cuda", cwd=tmp_path)
    assert "option --accelerator, --devices: cuda, 1 given" in error_line(done)


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
    with pytest.raises(UsageError, match=message):
        train("--resume", folder)
    with pytest.raises(UsageError, match=message):
        Run.open(folder).load()


@pytest.mark.parametrize("harm", ["missing", "of another shape"])
def test_moments_that_do_not_fit_are_refused(finished: Path, tmp_path: Path, harm: str) -> None:
    """A fused optimiser would read past their end."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint = Run.open(folder).latest_checkpoint()
    assert checkpoint is not None
    path = checkpoint / "optimiser.safetensors"
    moments = load_file(path)
    name = next(name for name in moments if name.endswith("exp_avg"))
    if harm == "missing":
        del moments[name]
    else:
        moments[name] = torch.zeros(3)
    save_file(moments, path)
    state = json.loads((checkpoint / "state.json").read_text())
    state["files"][path.name] = run_module._sha256(path)
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match="does not fit"):
        train("--resume", folder)


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


def test_a_resting_router_leaves_no_moments(tmp_path: Path, text: Path) -> None:
    folder = tmp_path / "run"
    never = ["--optim.router_end=0.25", "--kl.begin=0"]
    assert train(*MOMENT, f"--data.path={text}", *never, f"--out={folder}") == 0
    moments = load_file(next(folder.glob("checkpoint/*/optimiser.safetensors")))
    assert moments and not [name for name in moments if name.startswith("guide.")]


def test_routes_are_given_once_the_guide_has_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: Path
) -> None:
    seen: list[bool] = []
    posterior = DirichletGuide.posterior

    def recording(self: DirichletGuide, layer: int, features: Features) -> Dirichlet:
        if torch.is_grad_enabled() and layer == 1:  # else it is being evaluated
            seen.append(features.state.requires_grad)
        return posterior(self, layer, features)

    monkeypatch.setattr(DirichletGuide, "posterior", recording)
    folder = tmp_path / "run"
    assert train(*MOMENT, f"--data.path={text}", "--optim.router_end=0.5", f"--out={folder}") == 0
    assert seen == [True] * 6 + [False] * 6


def test_a_changed_filler_is_named_before_its_vocabulary_is(tmp_path: Path) -> None:
    book, folder = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("to be or not to be " * 200)
    planted = ["--data=Recall", "--data.pairs=3", "--data.distance=2", f"--data.filler={book}"]
    assert train(*MOMENT, *planted, f"--out={folder}") == 0
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
    with Run.open(folder).locked():
        assert "another process" in error_line(run("train", "--resume", folder))
    assert train("--resume", folder) == 0


def test_a_text_with_nul_characters_trains_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "nul.txt").write_text("abc\0def ghi\n" * 300)
    assert train(*MOMENT, f"--data.path={tmp_path / 'nul.txt'}", f"--out={tmp_path / 'run'}") == 0
    assert run("report", tmp_path / "run").returncode == 0


class Unused(DirichletGuide):
    """A guide with a parameter that never gets a gradient, and one that may be null."""

    def __init__(self, model: LanguageModel, size: int | None = 5) -> None:
        super().__init__(model)
        self.unused = torch.nn.Parameter(torch.zeros(size or 2))


class Random(DirichletGuide):
    """A guide that draws where it should say its law."""

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(1 + super().posterior(layer, features).sample())


class Meanless(DirichletGuide):
    """A guide whose law has no mean."""

    def posterior(self, layer: int, features: Features) -> LogisticNormal:  # type: ignore[override]
        zeros = torch.zeros(*features.tokens.shape, 2)
        return LogisticNormal(zeros, zeros + 1)


class Misshapen(DirichletGuide):
    """A guide that forgets its sequences."""

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(super().posterior(layer, features).concentration[:, 0])


def test_parameters_without_gradients_and_nulls_survive_a_resume(
    tmp_path: Path, text: Path
) -> None:
    folder = tmp_path / "run"
    options = [f"--guide={__name__}.Unused", "--guide.size=null"]
    assert train(*MOMENT, *options, f"--data.path={text}", f"--out={folder}") == 0
    (folder / "summary.json").unlink()
    assert train("--resume", folder) == 0
    assert Run.open(folder).load()[1].unused.shape == (2,)


def test_a_run_that_lost_its_checkpoint_keeps_no_stale_results(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoint")
    assert train("--resume", folder) == 0
    assert metrics(folder) == metrics(finished)


def test_what_comes_later_wins(tmp_path: Path) -> None:
    from pyro_meta.config import read_options

    path = tmp_path / "c.yaml"
    path.write_text("{steps: 7, prior: {class_path: CostDirichlet, init_args: {rate: 9}}}")
    words = ["--prior.rate=2", "--steps=5"]

    def rate_and_steps(*words: str) -> tuple[float, int]:
        config, saved = read_options(words)
        return yaml.safe_load(saved)["prior"]["init_args"]["rate"], config.steps

    assert rate_and_steps(*words, "--config", str(path)) == (9, 7)
    assert rate_and_steps("--config", str(path), *words) == (2, 5)
    switched = ["--prior", "PaperDirichlet", "--prior.scale=2", "--config", str(path)]
    assert rate_and_steps(*switched) == (9, 7)


def test_a_printed_configuration_is_read_back(tmp_path: Path) -> None:
    from pyro_meta.config import read_options

    printed = run("train", "--steps=7", "--guide.hidden=null", "--print_config")
    assert printed.returncode == 0
    (tmp_path / "c.yaml").write_text(printed.stdout)
    assert read_options(["--config", str(tmp_path / "c.yaml")])[0].steps == 7


def test_a_switch_needs_no_value(tmp_path: Path, text: Path) -> None:
    from pyro_meta.config import read_options

    assert read_options(["--debug", "--steps", "3"])[0].debug
    assert read_options(["--debug", "True", "--steps", "3"])[0].debug
    assert read_options(["--steps", "3", "--debug"])[0].debug
    assert not read_options(["--debug", "false"])[0].debug


def test_help_names_the_options_of_the_default_classes() -> None:
    done = run("train", "--help")
    assert done.returncode == 0
    for option in ("--data.path", "--data.tokens", "--prior.rate", "--guide.hidden", "--resume"):
        assert option in done.stdout
    assert "--prior.strength" in run("train", "--prior.help").stdout


def test_a_changed_text_is_refused_on_resume(tmp_path: Path, text: Path) -> None:
    folder = tmp_path / "run"
    assert train(*MOMENT, f"--data.path={text}", f"--out={folder}") == 0
    text.write_text(TEXT + "more")
    with pytest.raises(UsageError, match="the run began on a text of sha256"):
        train("--resume", folder)


def test_a_users_own_classes_train_by_import_path(tmp_path: Path, text: Path) -> None:
    options = ["--prior=my_prior.CheapBelow", "--prior.cheap=2"]
    options += ["--mechanisms=[full,window,my_mechanism.Ends]"]
    assert train(*MOMENT, *options, f"--data.path={text}", f"--out={tmp_path / 'run'}") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["load"]) == ["full", "window", "ends"]


@pytest.mark.parametrize("name", ["Leaky", "LateLeak"])
def test_a_mechanism_that_sees_the_future_is_refused(tmp_path: Path, text: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name.lower()} sees the future"):
        train(*MOMENT, f"--mechanisms=[full,leaky.{name}]", f"--data.path={text}")


def test_another_class_never_takes_arguments_meant_for_the_default(tmp_path: Path) -> None:
    """PaperDirichlet has a floor and a cost of its own, of the same names."""
    from pyro_meta.config import read_options

    (tmp_path / "c.yaml").write_text("prior: {class_path: CostDirichlet, init_args: {floor: 0.3}}")
    for words in (["--prior", "PaperDirichlet"],
                  ["--config", str(tmp_path / "c.yaml"), "--prior", "PaperDirichlet"]):  # fmt: skip
        _, saved = read_options(words)
        assert yaml.safe_load(saved)["prior"]["init_args"] == {
            "scale": 1.0, "floor": 0.01, "cost": "nominal",
        }  # fmt: skip
    (tmp_path / "null.yaml").write_text("steps: null")
    assert read_options(["--config", str(tmp_path / "null.yaml")])[0].steps == 1000
    _, saved = read_options(["--config", str(tmp_path / "c.yaml"), "--prior.rate", "2"])
    assert yaml.safe_load(saved)["prior"]["init_args"]["floor"] == 0.3
    assert yaml.safe_load(saved)["prior"]["init_args"]["rate"] == 2.0


def test_presets_are_complete_and_can_be_overridden(tmp_path: Path, text: Path) -> None:
    from pyro_meta.config import read_options

    config, _ = read_options(["--preset", "paper", "--steps", "7"])
    assert config.steps == 7 and config.kl.weight == 1.0 and config.harden.final == 0.0
    model, guide = config.build(256)
    assert type(model.prior).__name__ == "PaperDirichlet"
    assert type(guide).__name__ == "PaperGuide"
