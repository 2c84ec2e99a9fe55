"""Running the project's commands as a person would, on a model of a moment."""

import importlib
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from processes import finish

import pyro_meta.train as train_command
from pyro_meta.terminal.commands import run_command

# Options of a run that takes a second.
MOMENT = [
    "--context=16", "--window=4", "--width=16", "--layers=2", "--heads=2", "--batch=4",
    "--steps=12", "--validate_every=5", "--validation_tokens=256", "--checkpoint_every=4",
    "--accelerator=cpu", "--readout.draws=4", "--readout.block_draws=0",
]  # fmt: skip
# Beside them: enough draws for every figure of a report.
READ_OUT = ["--readout.draws=24", "--readout.block_draws=32"]
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 40


def command(module: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", f"pyro_meta.{module}", *map(str, words)]


def run(
    module: str, *words: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m pyro_meta.MODULE WORDS` and return what it printed."""
    return finish(command(module, *words), cwd=cwd)


def run_here(module: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """As `run`, in this process: faster than a new one, for what needs no new one."""
    main = importlib.import_module(f"pyro_meta.{module}").main
    argv = [module, *map(str, words)]
    out, error = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(error),
        mock.patch.object(sys, "argv", argv),
        pytest.raises(SystemExit) as stop,
    ):
        run_command(main)
    return subprocess.CompletedProcess(
        argv, int(stop.value.code or 0), out.getvalue(), error.getvalue()
    )


def train(*words: str | Path) -> int:
    """Train in this process: faster than a new one, and monkeypatched code is used."""
    return train_command.main([str(word) for word in words])


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error; fails unless the command exited with code 2 and one line."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]
