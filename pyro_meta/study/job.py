"""A run of a study: what it is, how far it is, and the words that train it."""

import functools
import json
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from pyro_meta.checksums import require_plain
from pyro_meta.study.plan import Group
from pyro_meta.study.wholeness import summary_of
from pyro_meta.terminal.trust import foreign_classes
from pyro_meta.training.config import train_words

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
    damage: str | None = None
    """What is not as it was written, of one that had finished."""
    is_cut_short: bool = False
    """Whether it was ended before it could save."""
    is_renewed: bool = False
    """Whether a damaged folder was set aside for it: that is done once."""

    @property
    def name(self) -> str:
        return self.group.name(self.seed)

    @property
    def steps(self) -> int:
        return self.group.config.steps

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to go on with."""
        return self.folder is not None and (self.folder / "config.yaml").is_file()

    def command(self) -> list[str]:
        """The words of `python -m` that train the run."""
        assert self.folder is not None and self.config_yaml is not None
        if not self.is_begun:
            return ["pyro_meta.train", *train_words(self.config_yaml), f"--out={self.folder}"]
        # The person asked for the classes of these very options, or said --trust to the study.
        is_foreign = any(foreign_classes([yaml.safe_load(self.config_yaml)]))
        trust = ["--trust=true"] if is_foreign else []
        return ["pyro_meta.train", f"--resume={self.folder}", *trust]

    def described(self) -> str | None:
        """The command that trains such a run, for people; None while its loads are not known."""
        if self.config_yaml is None:
            return None
        return _as_command(self.config_yaml)

    def summary(self) -> dict[str, Any] | None:
        """Results of a finished run."""
        if self.state != State.FINISHED or self.folder is None:
            return None
        try:
            return summary_of(self.folder)
        except (OSError, ValueError) as error:  # somebody has touched it since
            self.fail(f"its results cannot be read: {error}")
            return None

    def refresh(self) -> None:
        """Look at the last line that the run has logged."""
        if self.folder is None:
            return
        if record := last_record(self.folder / "metrics.jsonl"):
            self.step, self.loss = record["step"], record["loss"]

    def finish(self) -> None:
        """Take the results of a run that has ended and is whole; odd ones make it a failed one."""
        assert self.folder is not None
        self.damage, self.note = None, ""
        try:
            summary_of(self.folder)
        except (OSError, ValueError) as error:
            self.fail(f"its results cannot be read: {error}")
        else:
            self.state, self.step = State.FINISHED, self.steps

    def fail(self, note: str) -> None:
        """Take down why the run has failed."""
        self.state, self.note = State.FAILED, note


@functools.cache  # asked for every run whenever one has finished
def _as_command(config_yaml: str) -> str:
    return shlex.join(["python", "-m", "pyro_meta.train", *train_words(config_yaml)])


def last_record(path: Path) -> dict[str, Any] | None:
    """Step and loss of the last whole line of a run's metrics that has both.

    The run may be writing it, or it may be damaged: what is no such line is passed over.
    """
    try:
        size = require_plain(path)
        with open(path, "rb") as file:
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict):
            continue
        step, loss = record.get("step"), record.get("loss")
        if type(step) is int and step >= 0 and isinstance(loss, float):
            return {"step": step, "loss": loss}
    return None
