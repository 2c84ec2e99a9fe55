"""The shards of a study as jobs of Slurm, or as processes of this machine, through submitit.

Each job is `python -m pyro_meta.ablate --out STUDY --shard i/n`. Where Slurm takes its node away or
its time is over, it saves, and submitit queues it again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_meta.errors import UsageError

DEFAULTS: Mapping[str, Any] = {"name": "pyro-meta", "timeout_min": 24 * 60}
"""What a job asks for, unless it is said otherwise."""
ONE_EACH = ("nodes", "tasks_per_node")
POLL_SECONDS = 0.2
GOOD = (0, 1)
"""Exit codes of a shard that has done what it could: 1 says that a run has failed."""


def submit(
    cluster: str, logs: Path, commands: Sequence[Sequence[str]], asked: Mapping[str, Any]
) -> list[str]:
    """Hand in one job for each command; their ids.

    Parameters
    ----------
    cluster
        `slurm`, or `local` for processes of this machine.
    logs
        Folder of what the jobs say.
    commands
        The words of each.
    asked
        Parameters of submitit, such as `timeout_min` or `slurm_partition`.

    Raises
    ------
    UsageError
        submitit is not installed, there is no such cluster here, or a parameter is not known or
        asks for several tasks.
    """
    for name in ONE_EACH:
        if asked.get(name, 1) != 1:
            raise UsageError(
                f"option --launcher_options: {name}: {asked[name]} given; 1 is allowed, since a "
                "job is one command"
            )
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise UsageError(
            f"option --launcher: {cluster} needs submitit; pip install 'pyro-meta[cluster]'"
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**{**DEFAULTS, **asked})
        with executor.batch():
            jobs = [executor.submit(Command(words, Path.cwd())) for words in commands]
    except Exception as error:  # submitit raises many kinds, by cluster
        raise UsageError(
            f"option --launcher: {cluster} takes no jobs: {' '.join(str(error).split())}"
        ) from error
    return [str(job.job_id) for job in jobs]


class Command:
    """A command of a shard, which can be stopped and begun again.

    Parameters
    ----------
    words
        Behind `python`.
    folder
        Where it is given.
    """

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.words, self.folder = list(words), folder
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it to its end; its exit code.

        Raises
        ------
        RuntimeError
            It was refused or interrupted: the scheduler then knows that the job has failed.
        """
        # submitit's signal goes to all processes of a job; blocked here, it is blocked in the child
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            self._process = subprocess.Popen([sys.executable, *self.words], cwd=self.folder)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while (code := self._process.poll()) is None:  # `checkpoint` may be called in between
            time.sleep(POLL_SECONDS)
        if code not in GOOD:
            raise RuntimeError(f"python {' '.join(self.words)} has ended with code {code}")
        return code

    def checkpoint(self) -> Any:
        """Have it save and end; what submitit is to queue again."""
        import submitit

        if self._process is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGTERM)
                # without its locks, one of which `__call__` may hold
                ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED)
                self._process.returncode = None if ended is None else ended.si_status
        return submitit.helpers.DelayedSubmission(Command(self.words, self.folder))
