"""Models of transformers by folder or name, from this machine alone.

Nothing is ever fetched: a name is looked up in the cache of the hub.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from pyro_meta.errors import UsageError

TOKENIZER = "tokenizer.json"


def load_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Parameters
    ----------
    name
        A folder as `save_pretrained` leaves one, or a name in the cache of the hub.
    dtype
        Of its weights.

    Raises
    ------
    UsageError
        There is none, or it cannot be read.
    """
    disable_progress_bar()
    require_place(name)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            _at_home(name), dtype=dtype, local_files_only=True, attn_implementation="sdpa",
            adapter_kwargs={"local_files_only": True},  # else an adapter is asked for on the hub
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(f"pretrained: {name} cannot be loaded: {_line(error)}") from error
    found: PreTrainedModel = model.eval()
    return found


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a model; raises `UsageError` if it has none."""
    require_place(name)
    try:
        found = cached_file(_at_home(name), TOKENIZER, local_files_only=True)
    except OSError as error:
        raise UsageError(f"pretrained: {name} has no {TOKENIZER}: {_line(error)}") from error
    assert found is not None
    return Path(found)


def _at_home(name: str) -> str:
    return str(Path(name).expanduser()) if name.startswith("~") else name


def require_place(name: str) -> None:
    """Raise `UsageError` for a name that can only be a folder, where there is none."""
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
    if is_path and not Path(name).expanduser().is_dir():
        raise UsageError(f"pretrained: {name} is no folder")


def _line(error: BaseException) -> str:
    """The first line of what a library says."""
    return next(iter(str(error).splitlines()), type(error).__name__)
