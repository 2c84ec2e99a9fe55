"""Processes that tests start: each is ended and waited for, with all that it started in turn.

Nothing here has a time limit: the one of pytest-timeout, against hanging, holds for all tests.
"""

import os
import select
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def others_may_read(folder: str | Path) -> bool:
    """Whether another user could run what is in a folder: CI's environment may be its maker's."""
    places = [Path(folder).resolve(), *Path(folder).resolve().parents]
    return all(place.stat().st_mode & 0o005 == 0o005 for place in places)


@contextmanager
def nothing_stays() -> Iterator[None]:
    """End what is started within, by us or by what we started, and in whatever session.

    Processes are known by a variable that each inherits, which Linux shows in /proc; elsewhere
    only `started` ends anything.
    """
    mark = f"STARTED_BY_A_TEST_{uuid.uuid4().hex}"
    os.environ[mark] = "1"
    try:
        yield
    finally:
        del os.environ[mark]
        while found := [pid for pid in _processes() if _carries(pid, mark)]:
            for pid in found:
                _end(pid, mark)


@contextmanager
def started(
    words: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process with `env` beside our environment; its group and all that it started are ended."""
    with (
        nothing_stays(),
        subprocess.Popen(
            words,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **options,
        ) as process,
    ):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError, PermissionError):  # nothing is left of the group
                os.killpg(process.pid, signal.SIGKILL)


def finish(
    words: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `words` to the end and return what it said."""
    pipe = subprocess.PIPE
    with started(words, env, stdout=pipe, stderr=pipe, **options) as process:
        out, error = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, error)


def _processes() -> list[int]:
    with suppress(FileNotFoundError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _carries(pid: int, mark: str) -> bool:
    """Whether a process lives and has inherited `mark`."""
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is another user's
        return False


def _end(pid: int, mark: str) -> None:
    """Kill a process and wait for its end, be it our child or not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _carries(pid, mark):  # still the same process
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll()  # readable when it has ended
    finally:
        os.close(handle)
