"""What tests start has one thread and does not outlive them."""

import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import finish, nothing_stays, started

TESTS = Path(__file__).parent

# Both ignore SIGTERM and lock a file each; the grandchild is out of the group's reach.
FAMILY = """
import fcntl, signal, subprocess, sys

signal.signal(signal.SIGTERM, signal.SIG_IGN)
own, *others = sys.argv[1:]
file = open(own, "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
if others:
    subprocess.Popen([sys.executable, __file__, *others], start_new_session=True)
signal.pause()
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A child that starts a grandchild, and the files that they lock."""
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    return [sys.executable, str(script), str(tmp_path / "child"), str(tmp_path / "grandchild")]


def wait_for_both(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["locked\n"] * 2


def is_locked(path: str) -> bool:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@pytest.mark.parametrize("error", [None, AssertionError, KeyboardInterrupt])
def test_a_grandchild_is_gone_afterwards(
    words: list[str], error: type[BaseException] | None
) -> None:
    with ExitStack() as stack:
        if error is not None:
            stack.enter_context(pytest.raises(error))
        process = stack.enter_context(started(words, stdout=subprocess.PIPE))
        wait_for_both(process)
        assert all(map(is_locked, words[2:]))
        if error is not None:
            raise error
    assert not any(map(is_locked, words[2:]))
    assert process.returncode is not None and process.stdout is not None and process.stdout.closed


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_what_a_killed_child_has_left_is_gone_too(words: list[str]) -> None:
    with started(words, stdout=subprocess.PIPE) as process:
        wait_for_both(process)
        process.kill()
        process.wait()
        assert [is_locked(path) for path in words[2:]] == [False, True]
    assert not any(map(is_locked, words[2:]))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_processes_that_others_start_are_ended(words: list[str]) -> None:
    """As those of a study that runs in this process; what was there before stays."""
    with started([*words[:-1]], stdout=subprocess.PIPE) as before:
        assert before.stdout is not None and before.stdout.readline() == "locked\n"
        with nothing_stays():
            other = subprocess.Popen([*words[:2], words[3]], stdout=subprocess.PIPE, text=True)
            assert other.stdout is not None and other.stdout.readline() == "locked\n"
        assert [is_locked(path) for path in words[2:]] == [True, False]
        assert before.poll() is None
        with other:
            assert other.wait() == -9


def test_the_environment_is_ours_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    code = "import os, sys; print(os.environ['OURS'], os.environ['MORE']); sys.exit(int('3'))"
    done = finish([sys.executable, "-c", code], {"MORE": "2"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "1 2\n", "")
    assert not [name for name in os.environ if name.startswith("STARTED_BY_A_TEST_")]


def test_a_test_worker_and_its_children_have_one_thread() -> None:
    """Whatever the environment of pytest says, and before any fixture sets it."""
    child = "import os; print(os.environ['OMP_NUM_THREADS'])"
    code = f"""
import conftest, subprocess, sys, torch
print(torch.get_num_threads(), flush=True)
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    more = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    done = finish([sys.executable, "-c", code], more, cwd=TESTS)
    assert done.stdout.split() == ["1", "1"], done.stderr
