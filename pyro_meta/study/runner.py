"""Trains the runs of a study, several at a time, each in a process and a folder of its own.

A run is known by its options, not by its name: one that has finished with the same config.yaml,
and is whole, is never repeated; one that was begun, or is no longer whole, is resumed; one that
cannot be resumed since it is damaged is set aside and trained anew; a folder of other options is
left alone.

    STUDY/runs/NAME/     runs
    STUDY/logs/NAME.log  what their processes said; locked while one is at work
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyro_meta.folders import locked
from pyro_meta.study.job import Job, State
from pyro_meta.study.live import Watch
from pyro_meta.study.shards import Shard
from pyro_meta.study.shelf import Shelf, place_known
from pyro_meta.study.wholeness import why_not_resumed
from pyro_meta.study.worker import Worker, worker_environment
from pyro_meta.terminal.commands import as_line
from pyro_meta.terminal.signals import KINDS, stop_signals

POLL_SECONDS = 0.2
UNDONE = (State.WAITING, State.RUNNING)


@contextmanager
def study_lock(out: Path, shard: Shard | None = None, reads: bool = False) -> Iterator[None]:
    """Hold a study's folder, whole or one shard of it; or share it, to read the runs.

    Raises
    ------
    UsageError
        Another process holds it.
    """
    with ExitStack() as held:
        busy = f"option --out: {out} is held by another study"
        held.enter_context(locked(out / ".lock", busy, is_shared=reads or shard is not None))
        if shard is not None:
            own = out / f".lock-{shard.index}-of-{shard.count}"
            busy = f"option --shard: {shard} of {out} is held by another process"
            held.enter_context(locked(own, busy))
        yield


class Interrupted(Exception):
    """The study was asked to stop; its workers have saved."""


def execute(
    jobs: list[Job],
    shelf: Shelf,
    logs: Path,
    workers: int,
    watch: Watch,
    finished: Callable[[Job], None],
    time_limit: float | None = None,
) -> None:
    """Train what has not finished, `workers` at a time; failures are noted and passed over.

    Parameters
    ----------
    jobs
        In order; one that takes the loads of another waits for it, and has no place before.
    shelf
        Where runs are.
    logs
        Where it is written what their processes say.
    workers
        No more are started than there are jobs.
    watch
        Is shown what happens.
    finished
        Called after each run that has finished or failed.
    time_limit
        Minutes that each run may take.

    Raises
    ------
    Interrupted
        By SIGINT, SIGTERM, SIGHUP or SIGUSR1, after the workers have saved. A second SIGINT kills
        them.
    """
    workers = min(workers, len(jobs))
    slots: dict[int, Worker] = {}
    with stop_signals() as is_asked_to_stop:
        try:
            while not is_asked_to_stop():
                for slot in range(workers):
                    while slot not in slots and not is_asked_to_stop() and (job := _next(jobs)):
                        own = worker_environment(slot, workers, job.group.config.devices)
                        if (worker := _begin(job, logs, own, time_limit, watch.say)) is not None:
                            slots[slot] = worker
                        else:
                            place_known(jobs, shelf)
                            finished(job)
                if not slots:
                    break
                time.sleep(POLL_SECONDS)
                for slot, worker in list(slots.items()):
                    worker.job.refresh()
                    worker.tend()
                    if worker.is_done() and not is_asked_to_stop():
                        del slots[slot]
                        worker.settle()
                        if worker.is_refused:
                            _renew(worker.job, shelf, watch.say)
                        place_known(jobs, shelf)
                        if worker.job.state != State.WAITING:
                            finished(worker.job)
                watch.show()
            if is_asked_to_stop() and any(job.state in UNDONE for job in jobs):
                _stop(list(slots.values()), watch.show)
                raise Interrupted
        except Exception:  # of the study itself, such as a full disk: what trains may save
            _stop(list(slots.values()), lambda: None)
            raise
        finally:
            with _undisturbed():
                for worker in slots.values():
                    worker.kill()


def _next(jobs: list[Job]) -> Job | None:
    """The next job to start: those that were begun come first."""
    ready = [job for job in jobs if job.state == State.WAITING and job.folder is not None]
    return min(ready, key=lambda job: job.step == 0, default=None)


def _begin(
    job: Job,
    logs: Path,
    environment: dict[str, str],
    time_limit: float | None,
    say: Callable[[str], None],
) -> Worker | None:
    """Start a job; None if that cannot be done, and it has failed."""
    if job.damage is not None:
        say(f"{job.name} is not whole, and is resumed: {job.damage}")
    try:
        worker = Worker(job, logs, environment, time_limit)
    except OSError as error:
        job.fail(f"cannot be started: {as_line(error)}")
        return None
    job.state, job.note = State.RUNNING, ""
    return worker


def _renew(job: Job, shelf: Shelf, say: Callable[[str], None]) -> None:
    """Set a run aside, once, if it was refused since it is damaged: it is then trained anew."""
    assert job.folder is not None
    if job.state != State.FAILED or job.is_renewed or not job.is_begun:
        return
    if (why := why_not_resumed(job.folder)) is None:
        return
    try:
        aside = shelf.set_aside(job)
    except OSError as error:
        job.fail(f"is damaged ({why}), and cannot be set aside: {as_line(error)}")
        return
    say(f"{job.name} is damaged, kept as {aside} and trained anew: {why}")


def _stop(workers: list[Worker], show: Callable[[], None]) -> None:
    """Have the workers save, and end those that do not; what a killed study left goes on."""
    ours = [worker for worker in workers if worker.is_ours]
    for worker in ours:
        worker.stop()
    while waiting := [worker for worker in ours if not worker.is_done()]:
        for worker in waiting:
            worker.tend()
            worker.job.refresh()
        show()
        time.sleep(POLL_SECONDS)
    for worker in ours:
        worker.settle_stopped()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals that ask to stop back for a moment: nothing may be left half-ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, KINDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
