"""Which checkpoints a run has, and whether their files are what was written; without PyTorch.

checkpoint/step-00000200/
    model.safetensors, optimiser.safetensors
    state.json            what it is of, and size and hash of every file beside it
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_meta import checksums
from pyro_meta.errors import UsageError

WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimiser.safetensors", "state.json"
KINDS: dict[str, type | tuple[type, ...]] = {
    "step": int, "seconds": (int, float), "corpus": str, "processes": int, "model": dict,
    "files": dict,
}  # fmt: skip
"""Keys of state.json that every checkpoint has, and the types of their values."""
_OURS = re.compile(r"step-[0-9]{8,}")


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder by our own names, in no order."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        Path(one.path)
        for one in entries
        if _OURS.fullmatch(one.name) and one.is_dir(follow_symlinks=False)
    ]


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in a folder.

    One that has no state.json is somebody else's, unless there is no other.
    """
    return max(found(folder), key=lambda one: ((one / STATE).exists(), step_of(one)), default=None)


def step_of(checkpoint: Path) -> int:
    """The step that the name of a checkpoint says."""
    return int(checkpoint.name.removeprefix("step-"))


def is_ours(checkpoint: Path) -> bool:
    """Whether we wrote a folder of such a name, and nobody keeps something else in it."""
    names = {path.name for path in checkpoint.iterdir()}
    return names <= {WEIGHTS, MOMENTS, STATE} and (checkpoint / STATE).is_file()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises
    ------
    UsageError
        Its files are not what was written.
    """
    with damage_named(checkpoint):
        state = checksums.unsealed(checkpoint / STATE)
        for key, kind in KINDS.items():
            if not isinstance(state.get(key), kind):
                raise ValueError(f"{STATE} has no valid {key!r}")
        if state["step"] != step_of(checkpoint):
            raise ValueError(f"{STATE} is of step {state['step']}: it was put here by hand")
        files = state["files"]
        if WEIGHTS not in files or not set(files) <= {WEIGHTS, MOMENTS}:
            raise ValueError(f"{STATE} lists {sorted(files)}; {WEIGHTS}, {MOMENTS} are allowed")
        for name, written in files.items():
            is_whole = checksums.require_plain(checkpoint / name) == written["bytes"]
            if not is_whole or checksums.sha256(checkpoint / name) != written["sha256"]:
                raise ValueError(f"{name} is not what was written")
    return state


@contextmanager
def damage_named(checkpoint: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Say of which checkpoint a file cannot be read; `kinds` are errors besides Python's own."""
    told: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, LookupError)
    told += (AttributeError, *kinds)
    try:
        yield
    except told as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"checkpoint {checkpoint} is damaged: {reason}") from error
