"""What goes wrong in a study: damaged runs, runs that hang, disks that are full, other people's."""

import errno
import fcntl
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import load_guides
import pytest
import yaml
from commands import MOMENT, TEXT, error_line, run_here
from studies import (  # noqa: F401 -- fixtures
    WORDS,
    faked_fixture,
    held_fixture,
    own_guides,
    starts,
)

from pyro_meta import UsageError, ablate, checksums, folders
from pyro_meta.study import results, wholeness, worker
from pyro_meta.study.description import Study
from pyro_meta.study.job import Job, last_record
from pyro_meta.study.plan import Group, expand
from pyro_meta.study.results import Results
from pyro_meta.study.worker import Worker
from pyro_meta.terminal import signals
from pyro_meta.terminal.commands import run_command

PICTURES = Results.pictures
PLAIN = [*WORDS, "--baselines=false"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn after every run, and take longer than the rest."""
    monkeypatch.setattr(Results, "pictures", lambda self: {})


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: checksums.sha256(path) for path in folder.iterdir() if path.is_file()}


def wait_for_the_end(log: Path) -> None:
    """Wait until no process lives that has inherited the lock of a log."""
    with open(log, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def states(out: Path) -> dict[str, str]:
    runs = json.loads((out / "study.json").read_text())["runs"]
    return {run["name"]: run["state"] for run in runs}


def seal_with(run: Path, name: str, text: str) -> None:
    """Change a file of a finished run, and its checksum."""
    (run / name).write_text(text)
    checksums.seal(run)


# -- runs that are not whole -----------------------------------------------------------------


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("name", "is_gone"),
    [("posterior.nc", True), ("sequences.json", False), ("summary.json", False),
     ("summary.json", True), ("SHA256SUMS", True)],
)  # fmt: skip
def test_results_that_are_not_whole_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, is_gone: bool
) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=2", f"--out={out}"]
    assert ablate.main(words) == 0
    run = out / "runs" / "routed-s1"
    before = hashes(run)
    if is_gone:
        (run / name).unlink()
    else:
        (run / name).write_bytes((run / name).read_bytes()[:-1] + b"#")
    capsys.readouterr()
    if name != "summary.json" or not is_gone:  # else it is any run that was begun
        assert ablate.main([*words, "--report_only"]) == 0
        assert "routed-s1 is not whole, and does not count" in capsys.readouterr().err
        assert states(out) == {"routed-s0": "finished", "routed-s1": "waiting"}
    assert ablate.main(words) == 0
    assert starts(out) == {"routed-s0": ["0"], "routed-s1": ["0", "4"]}, "no step is trained again"
    assert hashes(run) | {"starts": ""} == before | {"starts": ""}
    assert checksums.damage(run) is None
    assert ablate.main(words) == 0 and len(starts(out)["routed-s1"]) == 2, "once"


@pytest.mark.usefixtures("faked")
def test_what_cannot_be_gone_on_with_is_kept_and_trained_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=2", f"--out={out}"]
    assert ablate.main(words) == 0
    run = out / "runs" / "routed-s0"
    for again, kept in enumerate(("routed-s0.damaged", "routed-s0.damaged-2"), start=1):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join([lines[0], "nul", *lines[2:]]) + "\n")
        damaged = hashes(run)
        capsys.readouterr()
        assert ablate.main(words) == 0
        said = capsys.readouterr().err
        assert f"routed-s0 is damaged, kept as {out / 'runs' / kept} and trained anew" in said
        assert "metrics.jsonl is damaged at line 2" in said
        assert hashes(out / "runs" / kept) == damaged, "nothing of it is lost"
        assert starts(out)["routed-s0"] == ["0"] and len(starts(out)) == 2 + again
    assert starts(out)["routed-s1"] == ["0"]


@pytest.mark.usefixtures("faked")
def test_only_damage_is_a_reason_to_train_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is refused for another reason, such as a text that has gone, stays as it is."""
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=1", f"--out={out}"]
    assert ablate.main(words) == 0
    run = out / "runs" / "routed-s0"
    (run / "summary.json").unlink()
    before = hashes(run)
    monkeypatch.setenv("FAKE_FAIL", "routed-s0")
    assert ablate.main(words) == 1
    assert "failed: routed-s0: error: option --steps" in capsys.readouterr().out
    assert hashes(run) == before and len(list(run.parent.iterdir())) == 1


@pytest.mark.usefixtures("faked")
def test_a_run_that_is_damaged_again_at_once_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=1", f"--out={out}"]
    assert ablate.main(words) == 0
    (out / "runs" / "routed-s0" / "metrics.jsonl").write_text("nul\nnul\n")
    monkeypatch.setattr(
        load_guides.Job, "command", lambda job: ["fake_train", str(job.folder), "nothing: at all"]
    )
    assert ablate.main(words) == 1
    assert {path.name for path in (out / "runs").iterdir()} == {"routed-s0", "routed-s0.damaged"}


def odd_folders(runs: Path) -> None:
    """What may lie beside runs."""
    texts = {
        "bytes": b"\xff\xfe\x00",
        "list": b"- 1\n- 2\n",
        "empty": b"",
        "text": b"hello",
        "no-yaml": b"a: [b",
        "deep": b"[" * 10_000,
        "laughs": b"a0: &a0 [x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10))
                   for i in range(1, 12)),
        "merged": b"a0: &a0 {x: 1}\n"
        + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10))
                   for i in range(1, 12)),
        "itself": b"&a {a: *a}",
        "tags": b"a: !!python/object/apply:os.getcwd []",
        "long": b"a: " + b"x" * (1 << 21),
        "keys": b"{1: 2, a: 3, [4]: 5}",
    }  # fmt: skip
    for name, text in texts.items():
        (runs / name).mkdir()
        (runs / name / "config.yaml").write_bytes(text)
    (runs / "no-config").mkdir()
    (runs / "folder" / "config.yaml").mkdir(parents=True)
    (runs / "pipe").mkdir()
    os.mkfifo(runs / "pipe" / "config.yaml")
    (runs / "endless").mkdir()
    (runs / "endless" / "config.yaml").symlink_to("/dev/zero")
    (runs / "nowhere").symlink_to("nowhere at all")
    (runs / "file").write_text("mine")


@pytest.mark.usefixtures("faked")
def test_what_is_no_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    runs = out / "runs"
    runs.mkdir(parents=True)
    odd_folders(runs)
    (runs / "routed-s0").mkdir()  # somebody's own
    before = sorted(str(path) for path in out.rglob("*"))
    assert ablate.main([*PLAIN, "--seeds=1", f"--out={out}"]) == 0
    assert starts(out) == {"routed-s0-2": ["0"]}
    lines = capsys.readouterr().err.splitlines()
    for name in ("bytes", "list", "laughs", "merged", "itself", "tags", "long", "pipe", "endless"):
        assert sum(f"runs/{name} is left alone" in line for line in lines) == 1
    assert set(before) <= {str(path) for path in out.rglob("*")}


@pytest.mark.usefixtures("faked")
def test_neither_half_made_runs_nor_those_set_aside_are_runs(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=1", f"--out={out}"]
    assert ablate.main(words) == 0
    run = out / "runs" / "routed-s0"
    for name in ("routed-s0.damaged", "routed-s0.damaged-7", ".routed-s0.partial-12-ab"):
        (run.parent / name).mkdir()
        (run.parent / name / "config.yaml").write_text((run / "config.yaml").read_text())
    run.rename(tmp_path / "elsewhere")
    assert ablate.main(words) == 0
    assert list(starts(out)) == ["routed-s0"]


@pytest.mark.usefixtures("faked")
def test_of_two_copies_the_whole_one_counts(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=1", f"--out={out}"]
    assert ablate.main(words) == 0
    run = out / "runs" / "routed-s0"
    copy = run.with_name("a-copy")
    copy.mkdir()
    (copy / "config.yaml").write_text((run / "config.yaml").read_text())
    assert ablate.main(words) == 0
    assert json.loads((out / "study.json").read_text())["runs"][0]["folder"] == "runs/routed-s0"
    assert starts(out) == {"routed-s0": ["0"]}


def test_a_run_is_read_again_only_where_something_changed(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    read = []

    @wholeness.once_per_content
    def size(folder: Path) -> int:
        read.append(folder)
        return (folder / "summary.json").stat().st_size

    assert [size(tmp_path) for _ in range(3)] == [2, 2, 2] and len(read) == 1
    (tmp_path / "summary.json").write_text("{ }")
    assert size(tmp_path) == 3 and len(read) == 2
    (tmp_path / "posterior.nc").write_text("")
    assert size(tmp_path) == 3 and len(read) == 3


# -- runs that take too long, and those that hang ----------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the study's clock, which go on when they are told to."""
    seconds = [0.0]
    monkeypatch.setattr(worker, "now", lambda: seconds[0])
    return seconds


def in_background(act: Callable[[], None]) -> None:
    threading.Thread(target=act, daemon=True).start()


def test_a_run_that_takes_too_long_saves_and_the_next_one_begins(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    held: Callable[[], int],
    clock: list[float],
) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=2", f"--out={out}"]

    def let_time_pass() -> None:
        held()
        clock[0] += 90
        os.kill(held(), signal.SIGUSR1)  # the second one has its own time

    in_background(let_time_pass)
    assert ablate.main([*words, "--time_limit=1.5"]) == 1
    printed = capsys.readouterr().out
    assert "failed: routed-s0: took over 1.5 minutes; saved, repeat to go on" in printed
    assert states(out) == {"routed-s0": "failed", "routed-s1": "finished"}
    monkeypatch.delenv("FAKE_HOLD")
    assert ablate.main([f"--out={out}"]) == 0
    assert starts(out) == {"routed-s0": ["0", "1"], "routed-s1": ["0"]}


def test_a_run_that_does_not_save_in_time_is_ended_with_all_that_it_launched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    held: Callable[[], int],
    clock: list[float],
) -> None:
    out = tmp_path / "study"
    monkeypatch.setenv("FAKE_HANG", "routed-s0")

    def let_time_pass() -> None:
        held()
        clock[0] += 60
        assert held() == 0, "it is asked first"
        clock[0] += worker.GRACE_SECONDS
        os.kill(held(), signal.SIGUSR1)

    in_background(let_time_pass)
    assert ablate.main([*PLAIN, "--seeds=2", f"--out={out}", "--time_limit=1"]) == 1
    assert "took over 1 minutes; ended without saving, repeat" in capsys.readouterr().out
    wait_for_the_end(out / "logs" / "routed-s0.log")
    assert states(out) == {"routed-s0": "failed", "routed-s1": "finished"}


def test_what_a_killed_study_left_is_not_waited_for_beyond_the_limit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faked: None,
    clock: list[float],
) -> None:
    out = tmp_path / "study"
    (out / "logs").mkdir(parents=True)
    tend = Worker.tend

    def tended(self: Worker) -> None:
        clock[0] = 60.0 if not self.is_ours else clock[0]
        tend(self)

    monkeypatch.setattr(Worker, "tend", tended)
    with open(out / "logs" / "routed-s0.log", "wb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as a process that still trains
        assert ablate.main([*PLAIN, "--seeds=2", f"--out={out}", "--time_limit=1"]) == 1
    printed = capsys.readouterr().out
    assert "routed-s0: took over 1 minutes; a process that a killed study left is still" in printed


@pytest.mark.parametrize("asks_twice", [False, True])
def test_ctrl_c_ends_what_hangs_after_a_while_or_when_pressed_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: Callable[[], int],
    clock: list[float],
    asks_twice: bool,
) -> None:
    out = tmp_path / "study"
    monkeypatch.setenv("FAKE_HANG", "routed")
    monkeypatch.setattr(signals, "SAME_PRESS", 0.0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored

    def interrupt() -> None:
        held()
        os.kill(os.getpid(), signal.SIGINT)
        assert held() == 0
        if asks_twice:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            clock[0] += worker.GRACE_SECONDS

    in_background(interrupt)
    done = run_here("ablate", *PLAIN, "--seeds=1", f"--out={out}")
    assert done.returncode == 130
    wait_for_the_end(out / "logs" / "routed-s0.log")
    if not asks_twice:
        assert "interrupted; go on with" in done.stdout
        assert "routed-s0 goes on from its last checkpoint" in done.stdout
    monkeypatch.delenv("FAKE_HOLD")
    assert ablate.main([f"--out={out}"]) == 0
    assert starts(out) == {"routed-s0": ["0", "1"]}


def test_twenty_runs_of_which_one_fails_and_one_hangs_and_ctrl_c_in_the_middle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: Callable[[], int],
    clock: list[float],
) -> None:
    out = tmp_path / "study"
    monkeypatch.setenv("FAKE_FAIL", "routed-s3")
    monkeypatch.setenv("FAKE_HANG", "routed-s5")
    words = [*PLAIN, "--seeds=20", "--workers=8", f"--out={out}"]
    logs = out / "logs"

    def interrupt() -> None:
        at_work = [held() for _ in range(8)]
        assert len(set(at_work)) == 8
        os.kill(os.getpid(), signal.SIGTERM)
        assert held() == 0, "the one that hangs was asked"
        while sum("saved" in log.read_text() for log in logs.iterdir()) < 7:
            time.sleep(0.01)
        clock[0] += worker.GRACE_SECONDS

    in_background(interrupt)
    done = run_here("ablate", *words)
    assert done.returncode == 130, done.stderr
    assert "routed-s5 goes on from its last checkpoint" in done.stdout
    for log in logs.iterdir():
        wait_for_the_end(log)
    assert list(starts(out).values()) == [["0"]] * 8
    monkeypatch.delenv("FAKE_HOLD")
    assert ablate.main(words) == 1
    monkeypatch.delenv("FAKE_FAIL")
    assert ablate.main([f"--out={out}"]) == 0
    found = starts(out)
    begun = {f"routed-s{seed}" for seed in (0, 1, 2, 4, 5, 6, 7, 8)}
    assert len(found) == 20
    assert all(at == (["0", "1"] if name in begun else ["0"]) for name, at in found.items())
    for run in (out / "runs").iterdir():
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
        assert checksums.damage(run) is None
    assert set(states(out).values()) == {"finished"}


def processes_of(out: Path) -> dict[str, int]:
    """Name of a run -> the process that trains it, as Linux shows it."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "cmdline").read_text().split("\0")
        except OSError:
            continue
        for word in words:
            option, _, path = word.partition("=")
            if option in ("--out", "--resume") and Path(path).parent == out / "runs":
                found[Path(path).name] = int(entry.name)
    return found


@pytest.mark.long
def test_twenty_real_runs_of_which_one_is_killed_and_one_hangs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "study"
    words = [*MOMENT, f"--data.path={tmp_path / 'text.txt'}", "--seeds=20", "--baselines=false",
             "--workers=8", f"--out={out}"]  # fmt: skip
    stopped: list[int] = []

    def interrupt() -> None:
        logs = out / "runs"
        while not list(logs.glob("*/metrics.jsonl")):
            time.sleep(0.01)
        at_work = processes_of(out)
        names = sorted(at_work)
        os.killpg(at_work[names[0]], signal.SIGKILL)
        os.killpg(at_work[names[1]], signal.SIGSTOP)
        stopped.append(at_work[names[1]])
        os.kill(os.getpid(), signal.SIGTERM)

    in_background(interrupt)
    assert ablate.main(words) == 130
    assert stopped and not processes_of(out)
    assert ablate.main([f"--out={out}", "--workers=8"]) == 0, capsys.readouterr().out
    runs = sorted((out / "runs").iterdir())
    assert len(runs) == 20
    for run in runs:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))
        assert checksums.damage(run) is None
    (runs[0] / "posterior.nc").write_bytes(b"")  # made again from the checkpoint
    (runs[1] / "posterior.nc").write_bytes(b"")
    weights = next(runs[1].glob("checkpoint/*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])  # nothing is left to make it of
    capsys.readouterr()
    assert ablate.main([f"--out={out}", "--workers=2"]) == 0
    said = capsys.readouterr().err
    assert f"{runs[0].name} is not whole, and is resumed" in said
    assert f"{runs[1].name} is damaged, kept as {runs[1]}.damaged and trained anew" in said
    assert all(checksums.damage(run) is None for run in runs)
    assert len(list((out / "runs").iterdir())) == 21


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_limit_is_minutes(tmp_path: Path, given: str) -> None:
    done = run_here("ablate", *PLAIN, f"--out={tmp_path / 'study'}", f"--time_limit={given}")
    assert "--time_limit" in error_line(done)


# -- what cannot be written --------------------------------------------------------------------


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("name", ["study.json", "study.csv", "study.md", "pareto.png"])
def test_a_full_disk_is_one_line_and_repeating_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=2", f"--out={out}"]
    flush = folders.flush
    monkeypatch.setattr(Results, "pictures", PICTURES)

    def full(path: Path) -> None:
        if path.name.startswith(f".{name}.partial-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    with monkeypatch.context() as patched:
        patched.setattr(folders, "flush", full)
        line = error_line_of_study(words)
    assert line.startswith(f"error: cannot write {out / name}: No space left on device")
    assert not list(out.glob(".*partial*")) and not (out / name).exists()
    assert starts(out) == {"routed-s0": ["0"]}
    assert ablate.main(words) == 0
    assert starts(out) == {"routed-s0": ["0"], "routed-s1": ["0"]}


def error_line_of_study(words: list[str]) -> str:
    """The error of a study, which tells of its runs besides."""
    done = run_here("ablate", *words)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line[:1].isdigit() and line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_where_a_study_goes_is_looked_at_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(groups: object, told: object) -> None:
        raise AssertionError("the text was prepared")

    monkeypatch.setattr(ablate, "_prepare", prepare)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for out in ("", "file", "file/study", "x" * 300):
        assert "option --out: " in error_line(run_here("ablate", *PLAIN, f"--out={out}"))
    assert "option --out: " in error_line(run_here("ablate", *PLAIN, "--out", ""))
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        assert "cannot be written" in error_line(run_here("ablate", *PLAIN, "--out=new"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("faked")
def test_a_log_that_cannot_be_written_fails_its_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    (out / "logs" / "routed-s0.log").mkdir(parents=True)
    (out / "logs" / "routed-s1.log").symlink_to("/dev/full")
    assert ablate.main([*PLAIN, "--seeds=3", "--workers=1000000000", f"--out={out}"]) == 1
    printed = capsys.readouterr().out
    assert "routed-s0: cannot be started" in printed and "Is a directory" in printed
    assert "routed-s1: cannot be started: No space left on device" in printed
    assert states(out)["routed-s2"] == "finished"


@pytest.mark.usefixtures("faked")
def test_nobody_need_look_while_a_study_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output is full from the first line on: the study ends, and then says so."""
    out, errors = tmp_path / "study", io.StringIO()
    monkeypatch.setattr(sys, "argv", ["ablate", *PLAIN, "--seeds=2", f"--out={out}"])
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        patched.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as stop:
            run_command(ablate.main)
    assert stop.value.code == 2
    assert errors.getvalue().splitlines()[-1].startswith("error: standard output: ")
    assert states(out) == {"routed-s0": "finished", "routed-s1": "finished"}


# -- odd results -------------------------------------------------------------------------------


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"val_nll_hard": None}, "no number for val_nll_hard"),
        ({"val_nll_soft": "low"}, "no number for val_nll_soft"),
        ({"cost_macs_hard": [1]}, "no number for cost_macs_hard"),
        ({"val_nll_hard": float("nan")}, "val_nll_hard is nan"),
        ({"load_by_layer": 3}, "load_by_layer"),
        ({"load_by_layer": [{"full": "much"}]}, "load_by_layer"),
        ({"tokens_seen": 10**400}, "beyond"),
        ({"routing_entropy": {"of": "whom"}}, None),  # another figure, shown as such
        ({"cost_nominal_hard": "dear"}, "no number for cost_nominal_hard"),
    ],
)
def test_results_that_are_odd_are_named_and_the_others_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str | None
) -> None:
    out = tmp_path / "study"
    words = [*PLAIN, "--seeds=2", f"--out={out}"]
    assert ablate.main(words) == 0
    run = out / "runs" / "routed-s0"
    summary = json.loads((run / "summary.json").read_text())
    seal_with(run, "summary.json", json.dumps(summary | change))
    capsys.readouterr()
    code = ablate.main([*words, "--report_only"])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "routed-s0" in line]
    if said is None:
        assert code == 0 and not lines
    else:
        assert len(lines) == 1 and said in lines[0]
        assert code == (0 if "stays out" in lines[0] else 1)
    groups = json.loads((out / "study.json").read_text())["groups"]
    assert groups[0]["seeds"] == ([0, 1] if said is None else [1])


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    "text", ["null", "[" * 500, '{"windows": 3, "hard": [1], "soft": [1]}', '{"windows": "a"}',
             '{"windows": "a", "hard": [1, "x"], "soft": [1, 2]}',
             '{"windows": "a", "hard": [], "soft": []}']
)  # fmt: skip
def test_odd_losses_leave_the_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    out = tmp_path / "study"
    words = [*WORDS, "--baselines=[point]", "--seeds=1", f"--out={out}"]
    assert ablate.main(words) == 0
    seal_with(out / "runs" / "PointGuide-s0", "sequences.json", text)
    assert ablate.main([*words, "--report_only"]) == 0
    assert "PointGuide-s0 is compared by its means alone" in capsys.readouterr().out
    assert len(json.loads((out / "study.json").read_text())["groups"]) == 2


def test_a_posterior_that_cannot_be_read_leaves_the_rest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faked: None,
) -> None:
    read = wholeness.once_per_content(lambda folder: results.Reading.of(folder).verdicts())
    monkeypatch.setattr(results, "verdicts_of", read)
    out = tmp_path / "study"
    assert ablate.main([*PLAIN, "--seeds=1", f"--out={out}"]) == 0
    assert "routed-s0 is not judged for collapse" in capsys.readouterr().out
    assert "routed" in (out / "study.md").read_text()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"step": 1, "loss": 2.0}\n{"step": 2, "lo', (1, 2.0)),
        ('{"step": 1, "loss": 2.0}\nnull\n', (1, 2.0)),
        ('{"step": 1, "loss": 2.0}\n{"step": null, "loss": 1.0}\n', (1, 2.0)),
        ('{"step": 1, "loss": 2.0}\n{"step": 2}\n{"step": "3", "loss": 1.0}\n', (1, 2.0)),
        ('{"step": 1, "loss": 2.0}\n{"step": true, "loss": 1.0}\n[[]]\n"x"\n', (1, 2.0)),
        ('{"step": 1, "loss": 2.0}\n' + "[" * 5000, (1, 2.0)),
        ('{"step": 1, "loss": 2.0}\n' + "\0" * 20_000, None),
        ('{"step": 1, "loss": null}\n', None),
        ('{"step": -1, "loss": 1.0}\n', None),
        ("\xff\xfe", None),
        ("", None),
    ],
)
def test_the_last_step_of_metrics_that_are_being_written(
    tmp_path: Path, text: str, found: tuple[int, float] | None
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    record = last_record(path)
    assert (record and (record["step"], record["loss"])) == found


def test_a_loss_that_is_no_number_can_be_shown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": NaN}\n')
    record = last_record(path)
    assert record is not None and f"{record['loss']:.3f}" == "nan"
    path.unlink()
    os.mkfifo(path)
    assert last_record(path) is None, "and nobody waits for a pipe"


# -- other people's studies ----------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is there once a module of somebody else's has been imported."""
    trace = tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
        "from pyro_meta import DirichletGuide as G\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return trace


@pytest.mark.parametrize(
    "study",
    [
        {"base": {"guide": "evil.G"}},
        {"base": [{}, {"guide": {"class_path": "evil.G", "init_args": {}}}]},
        {"base": {"guide.class_path": "evil.G"}},
        {"base": {"mechanisms": ["full", "evil.G"]}},
        {"base": {"mechanisms": "[full,evil.G]"}},
        {"base": {"mechanisms+": ["evil.G"]}},
        {"base": {"guide.init_args": "{class_path: evil.G}"}},
        {"base": {"block": "evil.G"}},
        {"base": {"depth": "evil.G"}},
        {"grid": {"data": ["evil.G"]}},
        {"grid": {"mechanisms": [["full"], ["full", "evil.G"]]}},
        {"grid": {"prior": [{"class_path": "CostDirichlet", "init_args": {
            "rate": {"class_path": "evil.G"}}}]}},
        {"variants": {"mine": {"prior": "evil.G"}}},
        {"baselines": {"also": {"theirs": {"guide": "evil.G"}}}},
    ],
)  # fmt: skip
def test_the_study_in_a_folder_imports_nothing_foreign(
    tmp_path: Path, evil: Path, study: dict[str, Any]
) -> None:
    out = tmp_path / "study"
    out.mkdir()
    (out / "study.yaml").write_text(yaml.safe_dump(study))
    for more in ([], ["--dry_run"], ["--report_only"]):
        line = error_line(run_here("ablate", f"--out={out}", *more))
        assert "evil.G" in line and line.endswith("add --trust true")
    assert not evil.exists() and [path.name for path in out.iterdir()] == ["study.yaml"]


def test_a_study_that_is_named_or_trusted_is_ones_own_wish(
    tmp_path: Path, evil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    out.mkdir()
    text = yaml.safe_dump({"base": {"guide": "evil.G"}, "seeds": 1, "baselines": False})
    (out / "study.yaml").write_text(text)
    named = tmp_path / "mine.yaml"
    named.write_text(text)
    assert ablate.main([f"--out={out}", "--dry_run", "--trust"]) == 0
    assert ablate.main([str(named), f"--out={tmp_path / 'other'}", "--dry_run"]) == 0
    assert ablate.main([f"--out={out}", "--dry_run", "--guide=evil.G", "--seeds=1"]) == 0
    assert evil.exists()
    monkeypatch.setenv("PYRO_META_TRUST", "1")
    assert ablate.main([f"--out={out}", "--dry_run"]) == 0


def test_ordinary_arguments_need_no_trust(tmp_path: Path) -> None:
    out = tmp_path / "study"
    out.mkdir()
    study = {"base": {"data.path": "a.b.txt", "data": {"path": "c.d"}, "guide": "PointGuide"},
             "grid": {"data.path": ["e.f"], "prior": ["pyro_meta.PaperDirichlet"]}}  # fmt: skip
    (out / "study.yaml").write_text(yaml.safe_dump(study))
    error = error_line(run_here("ablate", f"--out={out}"))
    assert "--trust" not in error and "no such file" in error


def group_of(**base: Any) -> Group:
    given = {"base": base, "seeds": 1, "baselines": False}
    return expand(Study.read(given, "test"))[0]


def test_workers_trust_what_the_study_names_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    for guide, trusts in (("PointGuide", False), ("load_guides.Plain", True)):
        group = group_of(guide=guide)
        job = Job(group, 0, folder=tmp_path, config_yaml=group.run_yaml(0))
        assert job.command() == [
            "pyro_meta.train", f"--resume={tmp_path}", *["--trust=true"] * trusts
        ]  # fmt: skip


def test_a_way_on_that_needs_trust_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    held: Callable[[], int],
) -> None:
    out = tmp_path / "my study"
    words = [*PLAIN, "--guide=load_guides.Plain", "--seeds=1", f"--out={out}"]

    def interrupt() -> None:
        held()
        os.kill(os.getpid(), signal.SIGTERM)

    in_background(interrupt)
    assert ablate.main(words) == 130
    assert f"pyro_meta.ablate --out '{out}' --trust" in capsys.readouterr().out
    monkeypatch.delenv("FAKE_HOLD")
    with pytest.raises(UsageError, match=r"load_guides\.Plain"):
        ablate.main([f"--out={out}"])
    assert ablate.main([f"--out={out}", "--trust"]) == 0
    assert list(starts(out).values()) == [["0", "1"]]


# -- words -----------------------------------------------------------------------------------------


def test_debug_alone_is_of_the_command_and_with_a_value_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    out.mkdir()
    (out / "study.yaml").write_text(yaml.safe_dump({"base": {"steps": 7}, "seeds": [5]}))
    asked: list[Study] = []
    monkeypatch.setattr(ablate, "_run", lambda study, *_: asked.append(study) or 0)
    assert run_here("ablate", f"--out={out}", "--debug").returncode == 0
    assert run_here("ablate", "--debug", f"--out={out}").returncode == 0
    assert all(study.seeds == [5] and study.base == [{"steps": 7}] for study in asked)
    for word in (["--debug", "true"], ["--debug=true"]):
        assert run_here("ablate", f"--out={out}", *word).returncode == 0
        assert asked[-1].base[-1] == {"debug": True} and asked[-1].seeds == [0, 1, 2]

    def fail(*_: object) -> None:
        raise RuntimeError("somewhere within")

    monkeypatch.setattr(ablate, "_run", fail)
    done = run_here("ablate", f"--out={out}", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr and "somewhere" in done.stderr
    assert "Traceback" not in run_here("ablate", f"--out={out}").stderr


def test_a_folder_without_a_study_begins_none(tmp_path: Path) -> None:
    line = error_line(run_here("ablate", f"--out={tmp_path / 'tpyo'}", "--workers=2"))
    assert "has no study.yaml to go on with" in line
    assert not list(tmp_path.iterdir())


def test_names_of_runs_fit_any_disk() -> None:
    group = group_of()
    names = []
    for label in ("x" * 400, "x" * 399 + "y", "\u4e2d\u6587", "../../etc", "\x1b[31m"):
        group.label = label
        names.append(group.name(3))
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) <= 180 and "/" not in name and name.isprintable()
