"""Which checkpoints a run has, and whether their files are what was written; without PyTorch.

checkpoint/step-00000200/
    model.safetensors, optimiser.safetensors
    state.json            what it is of, and size and hash of every file beside it

Of a model that several processes share (FSDP), there may be a folder model.shards or
optimiser.shards in place of a file, with a file of each process (see `pyro_meta.training.shards`).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
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
_SHARD = re.compile(r"shard-[0-9]{5,}-model-00001-of-00001\.safetensors")


def shards_of(name: str) -> str:
    """The folder of shards that stands for a file of tensors."""
    return name.replace(".safetensors", ".shards")


def shard_name(process: int) -> str:
    """The file of a process in a folder of shards, as `torch.distributed.checkpoint` names it."""
    return f"shard-{process + 1:05d}-model-00001-of-00001.safetensors"


def of_tensors(name: str, files: Iterable[str]) -> list[str]:
    """Those of a checkpoint's `files` that hold the tensors called `name`: it, or its shards."""
    folder = shards_of(name)
    return sorted(
        one
        for one in files
        if one == name
        or (one.startswith(f"{folder}/") and _SHARD.fullmatch(one.removeprefix(f"{folder}/")))
    )


def weights_sha256(state: Mapping[str, Any]) -> str:
    """The hash of the weights of a checkpoint, given its state: of the file, or of all shards'."""
    files = state["files"]
    hashes = [files[name]["sha256"] for name in of_tensors(WEIGHTS, files)]
    return hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest()


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
    names = _names(checkpoint)
    known = {STATE, *of_tensors(WEIGHTS, names), *of_tensors(MOMENTS, names)}
    return names == known and (checkpoint / STATE).is_file()


def _names(checkpoint: Path) -> set[str]:
    """What is in a checkpoint and its folders of shards, by names such as `state.json`."""
    names: set[str] = set()
    for path in checkpoint.iterdir():
        of_shards = path.name in (shards_of(WEIGHTS), shards_of(MOMENTS)) and not path.is_symlink()
        if of_shards and path.is_dir():
            names |= {f"{path.name}/{one.name}" for one in path.iterdir()}
        else:
            names.add(path.name)
    return names


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
        weights, moments = (of_tensors(name, files) for name in (WEIGHTS, MOMENTS))
        if not weights or set(files) != {*weights, *moments}:
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
