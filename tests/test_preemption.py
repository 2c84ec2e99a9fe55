"""Nothing is lost: who is first, what may be removed, being asked to stop, and what is finished."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import MOMENT, command, error_line, run_here, train
from processes import finish, started
from slow import all_but, long

from pyro_meta import checksums, folders
from pyro_meta.errors import UsageError
from pyro_meta.posterior import closing
from pyro_meta.terminal.launchers import place
from pyro_meta.terminal.signals import SAME_PRESS, Stopped, stop_signals, stoppable
from pyro_meta.training import checkpoint as checkpoint_module
from pyro_meta.training.checkpoint import Checkpoints
from pyro_meta.training.metrics import Metrics
from pyro_meta.training.run import Run


@pytest.fixture
def unfinished(finished: Path) -> Path:
    """One that was killed while it was closed."""
    for name in ("summary.json", "SHA256SUMS", "posterior.nc"):
        (finished / name).unlink()
    return finished


def fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and hash of every file."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


# -- who is first, and what may be removed ---------------------------------------------------


@pytest.mark.long
def test_a_rank_that_a_shell_left_behind_changes_nothing(tmp_path: Path, text_file: Path) -> None:
    here = tmp_path / "here"
    mine = {"checkpoint/my_best/w.pt": "w", "metrics.jsonl": "m", "summary.json": "s"}
    for name, content in mine.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(content)
    words = command("train", *MOMENT, f"--data.path={text_file}", f"--out={tmp_path / 'wanted'}")
    done = finish(words, {"LOCAL_RANK": "1"}, cwd=here)
    assert done.returncode == 0 and "sample:" in done.stdout
    assert (tmp_path / "wanted" / "summary.json").is_file()
    assert {name: (here / name).read_text() for name in mine} == mine
    assert len(list(here.iterdir())) == 3


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LOCAL_RANK": "1", "RANK": "1"}, ("python", 0, None)),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
         ("torchrun", 3, 4)),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, ("srun", 1, 2)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ("python", 0, None)),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"},
         ("python", 0, None)),
        ({"PYRO_META_LAUNCHED_BY": str(os.getppid()), "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
         ("pyro-meta", 1, 2)),
    ],
)  # fmt: skip
def test_the_launcher_says_who_is_first(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[str, int, int]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place()[:3] == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"TORCHELASTIC_RUN_ID": "x", "RANK": "first", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        {"TORCHELASTIC_RUN_ID": "x"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "two", "SLURM_PROCID": "1"},
    ],
)
def test_a_launcher_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"environment: |MPI"):
        place()


def slurm(rank: int, port: int) -> dict[str, str]:
    return {
        "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_JOB_ID": "77",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.mark.long
def test_two_tasks_of_srun_are_one_run(tmp_path: Path, text_file: Path) -> None:
    """And a folder that exists is refused by both, so that none waits for the other."""
    folder = tmp_path / "run"
    words = command("train", *MOMENT, "--devices=2", f"--data.path={text_file}", f"--out={folder}")
    for expected in (0, 2):
        port, pipes = free_port(), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with (
            started(words, slurm(0, port), **pipes) as first,
            started(words, slurm(1, port), **pipes) as second,
        ):
            said, errors = first.communicate()
            others = second.communicate()
            assert (first.returncode, second.returncode) == (expected, expected), errors
        assert others[0] == "" and "error" not in others[1]
        assert ("sample:" in said) == (expected == 0)
    assert "exists" in errors and errors.count("\n") == 1
    assert [step for step, _ in losses(folder)] == list(range(1, 13))


def test_another_number_of_processes_than_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path
) -> None:
    words = [*MOMENT, f"--data.path={text_file}", f"--out={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        for name, value in slurm(0, 1).items():
            patch.setenv(name, value)
        with pytest.raises(UsageError, match=r"--devices: 1 given.*2 tasks.*--devices 2"):
            train(*words)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match="LOCAL_RANK is '1', and no launcher"):
        train(*words, "--devices=2")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_only_our_own_names_are_removed(tmp_path: Path, text_file: Path) -> None:
    """Neither what somebody keeps beside the checkpoints, nor a copy of one by another name."""
    folder = tmp_path / "run"
    assert train(*MOMENT, f"--data.path={text_file}", f"--out={folder}") == 0
    (folder / "summary.json").unlink()
    latest = Run.open(folder).latest_checkpoint()
    assert latest is not None
    kept = ["my_best", "step-00000012-copy", "step-12", ".step-00000099.partial-mine", "notes"]
    for name in kept[:3]:
        shutil.copytree(latest, latest.with_name(name))
    (latest.parent / "notes").write_text("mine")
    assert train("--resume", folder, "--steps=16") == 0
    left = {path.name for path in latest.parent.iterdir()}
    assert left == {*kept[:3], "notes", "step-00000016"}


def test_a_checkpoint_by_another_number_is_refused(finished: Path) -> None:
    """Its weights are those of another step than its name says."""
    latest = Run.open(finished).latest_checkpoint()
    assert latest is not None
    shutil.copytree(latest, latest.with_name("step-00000020"))
    assert "is of step 12" in error_line(run_here("generate", finished, "--max_tokens=1"))


def test_a_folder_of_our_name_without_a_state_is_no_checkpoint(finished: Path) -> None:
    (finished / "checkpoint" / "step-00000099").mkdir()
    assert run_here("generate", finished, "--max_tokens=1").returncode == 0


def test_a_finished_run_with_a_damaged_checkpoint_is_refused(finished: Path) -> None:
    (path,) = finished.glob("checkpoint/*/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.safetensors is not what" in error_line(run_here("train", "--resume", finished))
    shutil.rmtree(finished / "checkpoint")
    done = run_here("train", "--resume", finished)
    assert done.returncode == 0 and "is finished; it has no checkpoint" in done.stdout


def test_a_new_run_needs_the_vocabulary_that_was_written(finished: Path, tmp_path: Path) -> None:
    path = finished / "vocabulary.json"
    path.write_text(path.read_text().replace("byte", "char"))
    line = error_line(run_here("train", "--from", finished, "--out", tmp_path / "new"))
    assert "vocabulary.json is not what was written" in line


@pytest.mark.parametrize("name", ["a\0b", "n" * 300])
def test_a_name_that_cannot_be_is_an_option(text_file: Path, name: str) -> None:
    line = error_line(run_here("train", *MOMENT, f"--data.path={text_file}", f"--out={name}"))
    assert "option --out" in line


@pytest.mark.long
def test_what_somebody_keeps_in_a_folder_of_our_name_stays(finished: Path) -> None:
    kept = finished / "checkpoint" / "step-00000001" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert train("--resume", finished, "--steps=13") == 0
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", ["posterior.nc", "sequences.json", "SHA256SUMS"])
def test_a_folder_in_place_of_a_result_costs_no_other_result(finished: Path, name: str) -> None:
    (finished / name).unlink()
    (finished / name).mkdir()
    before = fingerprint(finished)
    assert f"{name} is a folder" in error_line(run_here("train", "--resume", finished))
    assert fingerprint(finished) == before


@pytest.mark.parametrize("words", [["--out="], ["--resume="], ["--from="], ["--out=."]])
def test_no_folder_is_the_empty_path(text_file: Path, words: list[str]) -> None:
    line = error_line(run_here("train", *MOMENT, f"--data.path={text_file}", *words))
    assert words[0].partition("=")[0] in line


# -- finished means whole --------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = fingerprint(finished)
    done = run_here("train", "--resume", finished)
    assert done.returncode == 0 and "is finished" in done.stdout
    assert fingerprint(finished) == before


def test_damaged_metrics_are_refused_before_anything_is_removed(finished: Path) -> None:
    path = finished / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "null", *lines[4:]]) + "\n")
    before = fingerprint(finished)
    line = error_line(run_here("train", "--resume", finished))
    assert "metrics.jsonl is damaged at line 4" in line
    assert fingerprint(finished) == before


HARMS = [
    (name, harm) for name in ("posterior.nc", "summary.json") for harm in ("gone", "changed")
] + [("sequences.json", "cut"), ("SHA256SUMS", "cut")]


@pytest.mark.parametrize(
    ("name", "harm"),
    all_but([("summary.json", "changed")], HARMS),
)  # fmt: skip
def test_results_that_are_not_whole_are_made_again(
    finished: Path, whole: Path, name: str, harm: str
) -> None:
    path = finished / name
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-20] if harm == "cut" else content[:-9] + b"#" + content[-8:])
    if harm != "gone" or name != "summary.json":
        assert checksums.damage(finished) is not None
    assert train("--resume", finished) == 0
    assert checksums.damage(finished) is None
    for same in ("metrics.jsonl", "sequences.json"):
        assert (finished / same).read_bytes() == (whole / same).read_bytes()


def test_sha256sum_reads_what_we_write(finished: Path) -> None:
    assert shutil.which("sha256sum"), "coreutils are part of every Linux"
    words = ["sha256sum", "-c", "SHA256SUMS"]
    assert subprocess.run(words, cwd=finished, capture_output=True).returncode == 0
    with open(finished / "posterior.nc", "ab") as out:
        out.write(b"!")
    assert subprocess.run(words, cwd=finished, capture_output=True).returncode == 1


def test_a_posterior_that_cannot_be_written_leaves_no_finished_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path
) -> None:
    folder = tmp_path / "run"

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "posterior.nc"))

    words = [*MOMENT, f"--data.path={text_file}", f"--out={folder}"]
    with monkeypatch.context() as patch:
        patch.setattr(closing, "write_posterior", full)
        line = error_line_after_training(run_here("train", *words))
    assert "posterior.nc: No space left on device" in line
    assert not (folder / "summary.json").exists()
    assert train("--resume", folder) == 0
    assert checksums.damage(folder) is None


def error_line_after_training(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of an error that came after some steps were shown."""
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize("call", all_but((5,), (0, 1, 2, 3, 5, 8, 13)))
def test_a_full_disk_while_training_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path, whole: Path, call: int
) -> None:
    """Whichever sync of the disk fails: the run goes on once there is space."""
    folder, count = tmp_path / "run", iter(range(1000))
    original = os.fsync

    def fsync(handle: int) -> None:
        if next(count) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    words = [*MOMENT, f"--data.path={text_file}", f"--out={folder}"]
    train("--resume", whole)  # the text is prepared, and all is imported
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        line = error_line_after_training(run_here("train", *words))
    assert "No space left" in line
    assert train(*(["--resume", folder] if folder.exists() else words)) == 0
    assert losses(folder) == losses(whole)
    assert not [path for path in folder.rglob("*") if ".partial-" in path.name]


def test_metrics_reach_the_disk_before_the_checkpoint_that_counts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[str] = []
    original = folders.flush
    for module in (checkpoint_module, sys.modules["pyro_meta.training.metrics"]):
        monkeypatch.setattr(module, "flush", lambda path: (order.append(path.name), original(path)))
    log = Metrics(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": 0.5})
    counted = log.counted()
    assert order == ["metrics.jsonl"]
    assert counted["bytes"] == (tmp_path / "metrics.jsonl").stat().st_size


@pytest.mark.parametrize(("lost", "said"), [*long(((3, 4), "step 4")), ((8, 12), "steps 9 to 12")])
def test_metrics_that_the_disk_has_lost_are_said(
    unfinished: Path, lost: tuple[int, int], said: str
) -> None:
    path = unfinished / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: lost[0]] + lines[lost[1] :]))
    done = run_here("train", "--resume", unfinished)
    assert done.returncode == 0 and f"lacks {said}" in done.stdout
    assert len(losses(unfinished)) == 12 - (lost[1] - lost[0])


def test_metrics_that_were_changed_are_refused(unfinished: Path) -> None:
    path = unfinished / "metrics.jsonl"
    text = path.read_text()
    at = text.index('"loss": ') + 8
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    assert "is not what was written" in error_line(run_here("train", "--resume", unfinished))


# -- going on --------------------------------------------------------------------------------


def test_a_finished_run_trains_longer(finished: Path) -> None:
    """Its schedules are from there on those of a longer run; what it has logged stays."""
    before = losses(finished)
    done = run_here("train", "--resume", finished, "--steps", "20")
    assert done.returncode == 0
    assert "steps: 20, and were 12: from step 12 on" in done.stdout
    assert losses(finished)[:12] == before and [s for s, _ in losses(finished)][-1] == 20
    assert yaml.safe_load((finished / "config.yaml").read_text())["steps"] == 20
    assert checksums.damage(finished) is None
    assert "is finished" in run_here("train", "--resume", finished).stdout
    line = error_line(run_here("train", "--resume", finished, "--steps", "19"))
    assert "option --steps: 19 given" in line and "has trained 20" in line


@pytest.mark.long
def test_more_steps_written_into_the_configuration_are_the_same(
    finished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    path = other / "config.yaml"
    path.write_text(path.read_text().replace("steps: 12", "steps: 20"))
    assert "steps: 20, and were 12" in run_here("train", "--resume", other).stdout
    assert train("--resume", finished, "--steps=20") == 0
    assert losses(other) == losses(finished)


@pytest.mark.long
def test_going_on_longer_survives_a_kill(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    append = Run.append_metrics

    def killed(self: Run, record: dict[str, Any]) -> None:
        append(self, record)
        if record["step"] == 14:
            raise Killed

    whole = finished.with_name("whole")
    shutil.copytree(finished, whole)
    assert train("--resume", whole, "--steps=20") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", killed)
        with pytest.raises(Killed):
            train("--resume", finished, "--steps=20")
    assert train("--resume", finished) == 0
    assert losses(finished) == losses(whole)


def test_a_new_run_begins_with_the_weights_of_another(finished: Path, tmp_path: Path) -> None:
    other_text, folder = tmp_path / "other.txt", tmp_path / "tuned"
    other_text.write_text("sphinx of black quartz, judge my vow. " * 80)
    before = fingerprint(finished)
    words = ["--from", finished, "--data.path", other_text, "--out", folder]
    done = run_here("train", *words)
    assert done.returncode == 0, done.stderr
    assert f"from: {finished} after step 12" in done.stdout and "anew" not in done.stdout
    assert fingerprint(finished) == before
    origin = Run.open(folder).origin()
    assert origin is not None and (origin.run, origin.step) == (str(finished), 12)
    untuned = tmp_path / "untuned"
    config = ["--config", finished / "config.yaml", "--data.path", other_text, "--out", untuned]
    assert train(*config) == 0
    assert losses(folder)[0][1] < losses(untuned)[0][1]


@pytest.mark.long
def test_a_run_from_another_survives_a_kill_before_its_first_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = tmp_path / "a", tmp_path / "b"
    assert train("--from", finished, "--out", whole) == 0

    class Killed(BaseException):
        pass

    def killed(self: Checkpoints, *arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(Killed):
            train("--from", finished, "--out", folder)
    assert train("--resume", folder) == 0
    assert losses(folder) == losses(whole)


@pytest.mark.long
def test_another_text_is_cut_as_that_of_the_run(tmp_path: Path, text_file: Path) -> None:
    """A vocabulary of characters is that of one text: another text takes it over by name."""
    first, second = tmp_path / "first", tmp_path / "second"
    words = [*MOMENT, "--data.tokens=char", f"--data.path={text_file}", f"--out={first}"]
    assert train(*words) == 0
    other = tmp_path / "other.txt"
    other.write_text("the dog is lazy; the fox is quick. " * 100)
    again = ["--from", first, f"--data.path={other}", f"--out={second}"]
    assert "cut into other tokens" in error_line(run_here("train", *again))
    assert train(*again, f"--data.tokens={first / 'vocabulary.json'}") == 0
    assert (second / "vocabulary.json").read_bytes() == (first / "vocabulary.json").read_bytes()


def test_another_guide_begins_anew_and_another_network_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    done = run_here("train", "--from", finished, "--guide=LoadGuide", "--out", tmp_path / "split")
    assert done.returncode == 0 and "begun anew: LoadGuide" in done.stdout
    line = error_line(
        run_here("train", "--from", finished, "--width=32", "--out", tmp_path / "wide")
    )
    assert "option --from: the network" in line and not (tmp_path / "wide").exists()
    line = error_line(
        run_here("train", "--from", finished, "--data.tokens=char", "--out", tmp_path / "char")
    )
    assert "cut into other tokens" in line and not (tmp_path / "char").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [("batch: 4", "batch: 8"), ("context: 16", "context: 24"), ("seed: 0", "seed: 1"),
     ("weight: 0.004", "weight: 0.4"), ("dropout: 0.0", "dropout: 0.5")],
)  # fmt: skip
def test_a_changed_configuration_is_refused_with_its_key(
    unfinished: Path, before: str, after: str
) -> None:
    path = unfinished / "config.yaml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    line = error_line(run_here("train", "--resume", unfinished))
    assert str(path) in line and f"{after.replace(': ', ' is ')}, and was " in line


def test_the_words_beside_resume_are_few(finished: Path) -> None:
    for words in (
        ["--batch=8"],
        ["--from", finished],
        ["--out=x"],
        ["--steps=many"],
        ["--resume=x"],
    ):
        line = error_line(run_here("train", "--resume", finished, *words))
        assert str(words[0]).partition("=")[0] in line


# -- being asked to stop ---------------------------------------------------------------------


@contextmanager
def after_step(step: int, act: Callable[[], None]) -> Iterator[None]:
    append = Run.append_metrics

    def acting(self: Run, record: dict[str, Any]) -> None:
        append(self, record)
        if record["step"] == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "append_metrics", acting)
        yield


def tell(kind: signal.Signals) -> None:
    """Send a signal to this process, and let its handler run."""
    os.kill(os.getpid(), kind)
    time.sleep(0)


@pytest.mark.parametrize(
    "kinds",
    [
        *long([signal.SIGTERM] * 3, [signal.SIGHUP]),
        *long([signal.SIGUSR1, signal.SIGTERM]),
        [signal.SIGINT, signal.SIGINT, signal.SIGTERM],  # one Ctrl-C, told twice
    ],
)
def test_being_asked_again_changes_nothing(
    tmp_path: Path, text_file: Path, whole: Path, kinds: list[signal.Signals]
) -> None:
    folder = tmp_path / "run"

    def ask() -> None:
        for kind in kinds:
            os.kill(os.getpid(), kind)

    with after_step(6, ask):
        done = run_here("train", *MOMENT, f"--data.path={text_file}", f"--out={folder}")
    assert done.returncode == 130 and f"--resume {folder}" in done.stdout
    assert "after step 7" in done.stdout and len(losses(folder)) == 7
    assert train("--resume", folder) == 0
    assert losses(folder) == losses(whole)


def test_a_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with stop_signals() as is_asked_to_stop:
        assert not is_asked_to_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert is_asked_to_stop()
        now[0] += SAME_PRESS
        with pytest.raises(KeyboardInterrupt):
            tell(signal.SIGINT)


def test_outside_a_loop_the_first_signal_stops_at_once() -> None:
    with stoppable(), pytest.raises(Stopped):
        tell(signal.SIGTERM)


def test_what_is_ignored_stays_ignored() -> None:
    """As SIGHUP is under nohup, and SIGINT in the background of a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as is_asked_to_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not is_asked_to_stop()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_while_the_run_is_closed_saves_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path, whole: Path
) -> None:
    folder = tmp_path / "run"

    def stopped(*arguments: Any, **more: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        raise AssertionError("nobody was asked to stop")

    with monkeypatch.context() as patch:
        patch.setattr(closing, "write_posterior", stopped)
        done = run_here("train", *MOMENT, f"--data.path={text_file}", f"--out={folder}")
    assert done.returncode == 130 and "saved after step 12" in done.stdout
    assert train("--resume", folder) == 0
    assert losses(folder) == losses(whole) and checksums.damage(folder) is None


def test_a_thread_may_train(tmp_path: Path, text_file: Path) -> None:
    """As in a web application: only the main thread may handle signals."""
    folder, codes = tmp_path / "run", []
    words = [*MOMENT, f"--data.path={text_file}", f"--out={folder}"]
    thread = threading.Thread(target=lambda: codes.append(train(*words)))
    thread.start()
    thread.join()
    assert codes == [0] and (folder / "summary.json").is_file()


@pytest.mark.long
def test_torchrun_may_tell_its_processes_twice(tmp_path: Path, text_file: Path) -> None:
    """A scheduler tells all processes, and the agent forwards what it is told."""
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m",
             "pyro_meta.train", *MOMENT, "--steps=4000", "--validate_every=0",
             f"--data.path={text_file}", f"--out={folder}"]  # fmt: skip
    pipe = subprocess.PIPE
    with started(words, stdout=pipe, stderr=pipe) as agent:
        log = folder / "metrics.jsonl"
        while not (log.is_file() and log.stat().st_size) and agent.poll() is None:
            time.sleep(0.05)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        time.sleep(0.15)
        os.kill(agent.pid, signal.SIGTERM)
        said, _ = agent.communicate()
    assert "interrupted and saved after step" in said
    saved = Run.open(folder).state()["step"]
    assert 0 < saved == len(losses(folder)) < 4000


# -- locks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, finished: Path, number: int
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks"), Run.open(finished).locked():
        pass


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_a_run_that_somebody_holds_is_refused(
    monkeypatch: pytest.MonkeyPatch, finished: Path, number: int
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UsageError, match="another process"), Run.open(finished).locked():
        pass


def test_two_writers_of_a_file_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with folders.replacing(path) as one, folders.replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and len(list(tmp_path.iterdir())) == 1


INTERRUPTED = """
import faulthandler, random, signal, sys
from pyro_meta.analysis.own_thread import OwnThread

class Stopped(BaseException):
    pass

def stop(*_):
    raise Stopped

signal.signal(signal.SIGALRM, stop)
faulthandler.dump_traceback_later(50, exit=True)
dice, interrupted = random.Random(0), 0
for _ in range(3000):
    done = []
    with OwnThread() as thread:
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * dice.randrange(1, 300))
            for _ in range(50):
                thread.do(lambda: None)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Stopped:
            interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        thread.do(lambda: done.append(True))
    assert done
print(interrupted)
"""


def test_an_interruption_locks_no_thread_up() -> None:
    """At thousands of moments, as by Ctrl-C while posterior.nc is written."""
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 1000


@pytest.mark.parametrize("removed", range(4))
def test_a_kill_while_an_older_checkpoint_is_removed_leaves_nothing_of_it(
    removed: int, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of its files are gone, the next one to hold the run removes the others."""
    folder = finished / "checkpoint"
    (last,) = folder.iterdir()
    older = folder / "step-00000004"
    shutil.copytree(last, older)
    text = (older / "state.json").read_text()
    (older / "state.json").write_text(text.replace('"step": 12', '"step": 4'))
    original = shutil.rmtree

    def killed(path: Path, **how: Any) -> None:
        if "step-00000004" not in path.name:
            return original(path, **how)
        for file in sorted(path.iterdir(), reverse=True)[:removed]:
            file.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            Checkpoints(folder).tidy()
    assert Checkpoints(folder).latest() == last
    Checkpoints(folder).tidy()
    assert [path.name for path in folder.iterdir()] == [last.name]


@pytest.mark.long
def test_prices_of_a_run_that_begins_from_another_are_its_own(
    finished: Path, tmp_path: Path
) -> None:
    """Only what was learned is taken over."""
    assert train("--from", finished, "--prior.rate=24", "--out", tmp_path / "new") == 0
    compute = Run.open(tmp_path / "new").load()[0].compute
    assert compute is not None and float(compute.rate) == 24.0


@pytest.mark.long
def test_a_budget_begun_from_another_run_goes_on_as_it_was(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, whole, killed = (tmp_path / name for name in ("first", "whole", "killed"))
    assert train(*MOMENT, f"--data.path={text_file}", "--budget=0.7", "--out", first) == 0
    assert train("--from", first, "--out", whole) == 0
    append = Run.append_metrics

    def until_the_tenth(self: Run, record: dict[str, Any]) -> None:
        if record["step"] == 10:
            raise KeyboardInterrupt
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", until_the_tenth)
        with pytest.raises(KeyboardInterrupt):
            train("--from", first, "--out", killed)
    assert train("--resume", killed) == 0
    prices = [[one["lambda"] for one in Run.open(run).metrics()] for run in (whole, killed)]
    assert prices[0] == prices[1]
