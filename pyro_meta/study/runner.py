"""Processes that train the runs of a study, several at a time, each in a folder of its own.

A run is known by its options, not by its name: one that has finished with the same config.yaml is
never repeated, one that was begun is resumed, and a folder of other options is left alone.

    STUDY/runs/NAME/     runs
    STUDY/logs/NAME.log  what their processes said; locked while one is at work

The lock belongs to the process that trains, so that it outlives a killed study: the next one waits
for that process instead of starting a second.
"""

import fcntl
import functools
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import yaml

from pyro_meta.errors import UsageError
from pyro_meta.study.plan import Group, Loads
from pyro_meta.terminal.signals import stop_signals
from pyro_meta.training.config import train_words

POLL_SECONDS = 0.2
TAIL_BYTES = 16_384


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass
class Job:
    """A run of the study and how far it is."""

    group: Group
    seed: int
    state: State = State.WAITING
    folder: Path | None = None
    """Where it is or will be; None while its loads are not known."""
    config_yaml: str | None = None
    step: int = 0
    loss: float | None = None
    note: str = ""
    """Why it failed, or what it waits for."""

    @property
    def name(self) -> str:
        return self.group.name(self.seed)

    @property
    def steps(self) -> int:
        return self.group.config.steps

    def command(self) -> list[str]:
        """The words of `python -m` that train the run."""
        assert self.folder is not None and self.config_yaml is not None
        if (self.folder / "config.yaml").is_file():
            return ["pyro_meta.train", f"--resume={self.folder}"]
        return ["pyro_meta.train", *train_words(self.config_yaml), f"--out={self.folder}"]

    def described(self) -> str | None:
        """The command that trains such a run, for people; None while its loads are not known."""
        if self.config_yaml is None:
            return None
        return _as_command(self.config_yaml)

    def summary(self) -> dict[str, Any] | None:
        """Results of a finished run."""
        if self.state != State.FINISHED or self.folder is None:
            return None
        return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))

    def refresh(self) -> None:
        """Look at the last line that the run has logged."""
        if self.folder is None:
            return
        if record := last_record(self.folder / "metrics.jsonl"):
            self.step, self.loss = record["step"], record["loss"]


@functools.cache  # asked for every run whenever one has finished
def _as_command(config_yaml: str) -> str:
    return shlex.join(["python", "-m", "pyro_meta.train", *train_words(config_yaml)])


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole line of a run's metrics."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            return record
    return None


@contextmanager
def study_lock(out: Path) -> Iterator[None]:
    """Hold a study's folder; raises `UsageError` while another process does."""
    with open(out / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"option --out: {out} is held by another study") from error
        yield


# -- which folder ----------------------------------------------------------------------------


class Shelf:
    """The folder of runs, known by their options."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known = {
            _key(path.read_text(encoding="utf-8")): path.parent
            for path in sorted(folder.glob("*/config.yaml"))
        }

    def place(self, job: Job, loads: Loads | None = None) -> None:
        """Give `job` its configuration and its folder, and see how far it is."""
        job.config_yaml = job.group.run_yaml(job.seed, loads)
        key = _key(job.config_yaml)
        if key not in self._known:
            taken = set(self._known.values())
            names = (f"{job.name}{suffix}" for suffix in itertools.chain([""], _numbers()))
            folders = (self.folder / name for name in names)
            self._known[key] = next(f for f in folders if f not in taken and not f.exists())
        job.folder = self._known[key]
        if (job.folder / "summary.json").is_file():
            job.state = State.FINISHED
        job.refresh()


def _key(config_yaml: str) -> str:
    """Options in one spelling."""
    return json.dumps(yaml.safe_load(config_yaml), sort_keys=True, default=str)


def _numbers() -> Iterator[str]:
    return (f"-{number}" for number in itertools.count(2))


# -- processes -------------------------------------------------------------------------------


class _Worker:
    """The process that trains one run: ours, or one that a killed study has left."""

    def __init__(self, job: Job, logs: Path, environment: dict[str, str]) -> None:
        assert job.folder is not None
        self.job, self.log = job, logs / f"{job.folder.name}.log"
        self._process: subprocess.Popen | None = None
        with open(self.log, "ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            words = [sys.executable, "-m", *job.command()]
            out.write(f"$ {shlex.join(words)}\n".encode())
            out.flush()
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,  # the process inherits the lock
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches it through us, once
            )

    def is_done(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        with open(self.log, "ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        return True

    def settle(self) -> None:
        """Say in the job how the process has ended."""
        job = self.job
        job.refresh()
        assert job.folder is not None
        if (job.folder / "summary.json").is_file() and (
            self._process is None or self._process.returncode == 0
        ):
            job.state, job.step = State.FINISHED, job.steps
        elif self._process is None:
            job.state = State.WAITING  # what a killed study left unfinished is resumed
        else:
            job.state = State.FAILED
            job.note = _why(self._process.returncode, self.log)

    @property
    def is_ours(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        """Have our process save and end, with all that it has launched; told twice, at once."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)

    def wait(self) -> None:
        """Wait until our process has ended."""
        if self._process is not None:
            self._process.wait()

    def kill(self) -> None:
        """End our process, with all that it has launched, without saving."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _why(code: int, log: Path) -> str:
    """The last line that a failed process said, or the signal that ended it."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; see {log}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


def worker_environment(slot: int, workers: int, devices: int = 1) -> dict[str, str]:
    """Environment of a worker: its share of the cores and, where there are several, a GPU."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    named = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if workers > 1 and len(gpus) > 1 and devices == 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


class Interrupted(Exception):
    """The study was asked to stop; its workers have saved."""


def execute(
    jobs: list[Job],
    out: Path,
    workers: int,
    show: Callable[[], None],
    finished: Callable[[Job], None],
) -> None:
    """Train what has not finished, `workers` at a time; failures are noted and passed over.

    Parameters
    ----------
    jobs
        In order; one that takes the loads of another waits for it.
    out
        Folder of the study.
    show
        Called a few times a second.
    finished
        Called after each run that has finished or failed.

    Raises
    ------
    Interrupted
        By SIGINT or SIGTERM, after the workers have saved. A second SIGINT kills them.
    """
    logs = out / "logs"
    logs.mkdir(exist_ok=True)
    shelf = Shelf(out / "runs")
    slots: dict[int, _Worker] = {}
    place_known(jobs, shelf)
    with stop_signals() as is_asked_to_stop:
        try:
            while not is_asked_to_stop():
                for slot in range(workers):
                    if slot not in slots and (job := _next(jobs)):
                        own = worker_environment(slot, workers, job.group.config.devices)
                        slots[slot] = _Worker(job, logs, own)
                        job.state = State.RUNNING
                if not slots:
                    break
                time.sleep(POLL_SECONDS)
                for slot, worker in list(slots.items()):
                    worker.job.refresh()
                    if worker.is_done() and not is_asked_to_stop():
                        del slots[slot]
                        worker.settle()
                        place_known(jobs, shelf)
                        if worker.job.state != State.WAITING:
                            finished(worker.job)
                show()
            if slots:
                _stop(list(slots.values()), show)
                raise Interrupted
        except Exception:  # of the study itself, such as a full disk: what trains may save
            for worker in slots.values():
                worker.stop()
            for worker in slots.values():
                worker.wait()
            raise
        finally:
            for worker in slots.values():
                worker.kill()


def place_known(jobs: list[Job], shelf: Shelf) -> None:
    """Place every job whose loads are known by now; one whose loads never will be has failed."""
    by_run = {(id(job.group), job.seed): job for job in jobs}
    for job in jobs:
        if job.folder is not None or job.state != State.WAITING:
            continue
        if job.group.loads_of is None:
            shelf.place(job)
            continue
        teacher = by_run[id(job.group.loads_of), job.seed]
        if summary := teacher.summary():
            shelf.place(job, [list(row.values()) for row in summary["load_by_layer"]])
        elif teacher.state == State.FAILED:
            job.state, job.note = State.FAILED, f"{teacher.name} failed, whose loads it takes"
        else:
            job.note = f"for the loads of {teacher.name}"


def _next(jobs: list[Job]) -> Job | None:
    """The next job to start: those that were begun come first."""
    ready = [job for job in jobs if job.state == State.WAITING and job.folder is not None]
    return min(ready, key=lambda job: job.step == 0, default=None)


def _stop(workers: list[_Worker], show: Callable[[], None]) -> None:
    """Have the workers save; what a killed study left goes on by itself."""
    ours = [worker for worker in workers if worker.is_ours]
    for worker in ours:
        worker.stop()
    while not all(worker.is_done() for worker in ours):
        time.sleep(POLL_SECONDS)
        for worker in ours:
            worker.job.refresh()
        show()
    for worker in ours:
        worker.job.state, worker.job.note = State.WAITING, "interrupted and saved"
