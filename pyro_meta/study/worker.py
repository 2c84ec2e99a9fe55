"""The process that trains one run: how it is started, asked to save, and ended.

It leads a group of its own, with all that it launches, and holds its log locked. The lock belongs
to the process, so that it outlives a killed study: the next one waits for that process instead of
starting a second.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from pyro_meta.folders import hold
from pyro_meta.study.job import TAIL_BYTES, Job, State
from pyro_meta.study.wholeness import damage
from pyro_meta.terminal.commands import INTERRUPTED, USAGE_ERROR
from pyro_meta.terminal.consoles import printable

GRACE_SECONDS = 60.0
"""How long a process that is asked to save may take."""


def now() -> float:
    """Seconds of a clock that only goes forward."""
    return time.monotonic()


class Worker:
    """The process that trains one run: ours, or one that a killed study has left.

    Parameters
    ----------
    job
        The run.
    logs
        Folder of the logs.
    environment
        Variables of the process.
    time_limit
        Minutes that it may take; None: as long as it needs.

    Raises
    ------
    OSError
        Its log cannot be written, or it cannot be started.
    """

    def __init__(
        self, job: Job, logs: Path, environment: dict[str, str], time_limit: float | None = None
    ) -> None:
        assert job.folder is not None
        self.job, self.log = job, logs / f"{job.folder.name}.log"
        self.time_limit = time_limit
        self.was_begun = job.is_begun
        self._began = now()
        self._asked: float | None = None  # when it was asked to save
        self._is_late = False
        self._process: subprocess.Popen[bytes] | None = None
        with open(self.log, "ab") as out:
            if not hold(out.fileno()):
                return
            words = [sys.executable, "-m", *job.command()]
            out.write(f"$ {shlex.join(words)}\n".encode(errors="backslashreplace"))
            out.flush()
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,  # the process inherits the lock
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches it through us, once
            )

    @property
    def is_ours(self) -> bool:
        return self._process is not None

    @property
    def is_refused(self) -> bool:
        """Whether it was to go on with a run, and did not."""
        return self.was_begun and self._code == USAGE_ERROR

    @property
    def _code(self) -> int | None:
        """How our process has ended."""
        return None if self._process is None else self._process.returncode

    def is_done(self) -> bool:
        """Whether it has ended, with all that it launched; or is no longer waited for."""
        if self._process is None:
            return self._is_late or self._is_free()
        if self._process.returncode is None and not self._has_ended():
            return False
        self._end()  # what it launched, and left behind
        return True

    def tend(self) -> None:
        """Ask it to save once its time is over, and end it where it then does not."""
        if self._asked is not None:
            if now() - self._asked >= GRACE_SECONDS:
                self._end()
        elif self.time_limit is not None and now() - self._began >= 60 * self.time_limit:
            self._is_late = True
            self.stop()

    def stop(self) -> None:
        """Have our process save and end, with all that it has launched; asked again, the same."""
        if self._asked is None and self._process is not None and not self._has_ended():
            self._asked = now()
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End our process, with all that it has launched, without saving."""
        self._end()

    def settle(self) -> None:
        """Say in the job how the process has ended."""
        job = self.job
        job.refresh()
        assert job.folder is not None
        code = self._code
        found = damage(job.folder)
        if found is None and not code:
            job.finish()
        elif self._is_late:
            job.fail(f"took over {self.time_limit:g} minutes; {self._how_late(code)}")
        elif code is None:
            job.state = State.WAITING  # what a killed study left unfinished is resumed
        elif code == INTERRUPTED:
            job.fail("was stopped and has saved; repeat to go on")
        elif code == 0:
            job.fail(f"has ended, and is not whole: {found}")
        else:
            job.fail(_why(code, self.log))

    def settle_stopped(self) -> None:
        """The same of a process that was asked to save since the study ends."""
        self.settle()
        if self.job.state != State.FINISHED:
            is_cut_short = self.job.is_begun and self._code != INTERRUPTED
            self.job.state, self.job.is_cut_short = State.WAITING, is_cut_short
            self.job.note = (
                "interrupted; goes on from its last checkpoint" if is_cut_short
                else "interrupted and saved" if self.job.is_begun
                else "interrupted before it began"
            )  # fmt: skip

    # -- the process ---------------------------------------------------------------------------

    def _is_free(self) -> bool:
        """Whether nobody holds the log."""
        with open(self.log, "ab") as out:
            return hold(out.fileno())

    def _has_ended(self) -> bool:
        """Whether our process has ended; it stays known, so that its group cannot be another's."""
        assert self._process is not None
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, options) is not None
        except ChildProcessError:  # who started us ignores the end of children
            return self._process.poll() is not None

    def _end(self) -> None:
        """Kill what there is of our process and its group, then forget it."""
        if self._process is not None and self._process.returncode is None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, kind: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError, PermissionError):  # macOS, of a group that has ended
            os.killpg(self._process.pid, kind)

    def _how_late(self, code: int | None) -> str:
        if code is None:
            return f"a process that a killed study left is still at it, see {self.log}"
        if not self.job.is_begun:
            return "it had not begun to train"
        if code == INTERRUPTED:
            return "saved, repeat to go on"
        return "ended without saving, repeat to go on from its last checkpoint"


def _why(code: int, log: Path) -> str:
    """The last line that a failed process said, or the signal that ended it."""
    if code < 0:
        known = {kind.value: kind.name for kind in signal.Signals}
        return f"ended by {known.get(-code, f'signal {-code}')}; see {log}"
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            said = file.read().decode(errors="replace")
    except OSError:
        said = ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    is_said = lines and not lines[-1].startswith("$ ")
    return printable(lines[-1]) if is_said else f"exit code {code}"


def worker_environment(slot: int, workers: int, devices: int = 1) -> dict[str, str]:
    """Environment of a worker: its share of the cores and, where there are several, a GPU."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    named = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if workers > 1 and len(gpus) > 1 and devices == 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment
