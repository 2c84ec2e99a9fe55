"""Tensors of a checkpoint by name: in one file, or in a folder to which each process adds its own.

    model.safetensors                                              whole tensors, or
    model.shards/shard-00001-model-00001-of-00001.safetensors      what process 0 has of each, ...

Both are read by any number of processes, each of which takes what it needs. Shards are those of
`torch.distributed.checkpoint`, in its format of safetensors: nothing is pickled.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pyro_meta.training.checkpoint_files import of_tensors


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what this process has of `tensors` to a folder; all processes do it together.

    Raises
    ------
    OSError
        A process cannot write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _of_one_clause(OSError):
        save(dict(tensors), storage_writer=writer)


class Stored:
    """Tensors that a checkpoint holds.

    Parameters
    ----------
    checkpoint
        Its folder.
    name
        That of the file of whole tensors, or for which shards stand.
    files
        What its state lists: nothing else is read.
    """

    def __init__(self, checkpoint: Path, name: str, files: Iterable[str]) -> None:
        names = of_tensors(name, files)
        self._whole = checkpoint / name if name in names else None
        self._paths = [checkpoint / one for one in ([name] if self._whole else names)]

    def sizes(self) -> dict[str, torch.Size]:
        """Sizes of whole tensors by name."""
        return {name: found.size for name, found in self._found().items()}

    def whole(self) -> dict[str, Tensor]:
        """All of them, whole, in the memory of this process."""
        if self._whole is not None:
            return load_file(self._whole)
        tensors = {
            name: torch.empty(found.size, dtype=found.properties.dtype)
            for name, found in self._found().items()
        }
        self.read_into(tensors)
        return tensors

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, each with what it has a place for.

        Raises
        ------
        ValueError
            One is not there, or of another size.
        """
        with _of_one_clause(ValueError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(dict(tensors), storage_reader=_reader(self._paths), no_dist=True)

    def _found(self) -> dict[str, TensorStorageMetadata]:
        described = _reader(self._paths).read_metadata().state_dict_metadata
        return {k: v for k, v in described.items() if isinstance(v, TensorStorageMetadata)}


class _Only(FileSystem):
    """Some files of a folder, as if there were no others."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [str(one) for one in self._paths]


def _reader(paths: Sequence[Path]) -> HuggingFaceStorageReader:
    reader = HuggingFaceStorageReader(str(paths[0].parent) if paths else "")
    reader.fs = _Only(paths)
    return reader


@contextmanager
def _of_one_clause(kind: type[Exception]) -> Iterator[None]:
    """Raise `kind` with what went wrong in the first process, in place of all their tracebacks."""
    try:
        yield
    except CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values()]
        said = str(reasons[0]).strip().split("\n", maxsplit=1)[0] if reasons else str(error)
        raise kind(said) from error
