"""Checkpoints written and loaded: weights, moments and the state of a run.

A checkpoint is written under a temporary name, and is there once that is renamed. Of the folder
`checkpoint` nothing is ever removed but what we wrote under such names. Nothing is ever unpickled.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyro_meta import checksums
from pyro_meta.errors import UsageError
from pyro_meta.folders import PARTIAL, flush, partial_name, write_whole
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.terminal.naming import public_name
from pyro_meta.training.checkpoint_files import (
    MOMENTS,
    STATE,
    WEIGHTS,
    damage_named,
    found,
    is_ours,
    latest,
    read_state,
    step_of,
)

Parts = Mapping[str, nn.Module]
"""What a checkpoint holds by name: model and guide, and in training the controllers."""


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    folder
        Where they are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> Path | None:
        """Folder of the newest checkpoint."""
        return latest(self.folder)

    def save(
        self, parts: Parts, optimiser: torch.optim.Optimizer | None, state: Mapping[str, Any]
    ) -> None:
        """Write the checkpoint of `state["step"]`, then remove the older ones.

        Raises
        ------
        OSError
            It cannot be written; the older ones stand.
        """
        final = self.folder / f"step-{state['step']:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = partial_name(final)
        try:
            partial.mkdir()
            tensors = {WEIGHTS: _weights(parts)}
            if optimiser is not None:
                tensors[MOMENTS] = _optimiser_tensors(parts, optimiser)
            for name, values in tensors.items():
                _save(values, partial / name)
                flush(partial / name)
            files = {
                name: {"bytes": (partial / name).stat().st_size,
                       "sha256": checksums.sha256(partial / name)}
                for name in tensors
            }  # fmt: skip
            whole = {**state, "model": identity(parts), "files": files}
            write_whole(partial / STATE, checksums.sealed(whole))
            if final.exists():  # made again, as where a run is closed once more
                _remove(final)
            partial.rename(final)
            flush(self.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for older in found(self.folder):
            if step_of(older) < state["step"] and is_ours(older):
                _remove(older)

    def tidy(self) -> None:
        """Remove what killed processes left: older checkpoints, and half-written ones.

        Only who holds the run, and has read its newest checkpoint, may ask it.
        """
        newest = self.latest()
        for older in found(self.folder):
            if older != newest and is_ours(older):
                _remove(older)
        for path in self.folder.glob(f".step-*{PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)

    def state(self, folder: Path | None = None) -> dict[str, Any]:
        """What the newest checkpoint, or that in `folder`, says of itself.

        Raises
        ------
        UsageError
            There is no checkpoint, or its files are not what was written.
        """
        folder = folder or self.latest()
        if folder is None:
            raise UsageError(f"{self.folder.parent} has no checkpoint yet; --resume begins it anew")
        return read_state(folder)

    def load(self, parts: Parts, optimiser: torch.optim.Optimizer | None = None) -> dict[str, Any]:
        """Load the newest checkpoint into `parts`, all or some of those saved; its state.

        Raises
        ------
        UsageError
            There is none, it is damaged, or it is of another model.
        """
        folder, state, weights = self._read()
        with damage_named(folder, SafetensorError):
            needs_moments = optimiser is not None and state["step"] > 0
            moments = load_file(folder / MOMENTS) if needs_moments else {}
        then, now = state["model"], identity(parts)
        for key in now:
            if then.get(key) != now[key]:
                raise UsageError(
                    f"checkpoint {folder} is of another model: its {key} is {then.get(key)}, and "
                    f"that of config.yaml is {now[key]}"
                )
        try:
            for name, module in parts.items():
                module.load_state_dict(_of_part(weights, name))
        except RuntimeError as error:
            raise UsageError(f"checkpoint {folder} is of another model: {error}") from error
        if optimiser is not None and needs_moments:
            _load_optimiser(parts, optimiser, moments)
        return state

    def lend(self, model: LanguageModel, guide: Guide) -> tuple[dict[str, Any], list[str]]:
        """Begin `model` and `guide` with the newest weights; its state, and what begins anew.

        The network has to fit. What prior, depth prior and guide have learned is taken over where
        they are of the same classes and sizes; prices and costs are as the new options say.

        Raises
        ------
        UsageError
            There is no checkpoint, it is damaged, or its network is another.
        """
        folder, state, weights = self._read()
        of_model, of_guide = _of_part(weights, "model"), _of_part(weights, "guide")
        own = {name: value for name, value in of_model.items() if name.startswith("network.")}
        expected = {k: v for k, v in model.state_dict().items() if k.startswith("network.")}
        for name in sorted(own.keys() | expected.keys()):
            found, needed = own.get(name), expected.get(name)
            if found is None or needed is None or found.shape != needed.shape:
                raise UsageError(
                    f"option --from: the network of {folder} is another: {name} is "
                    f"{_shape(found)} there, and {_shape(needed)} here"
                )
        model.load_state_dict(own, strict=False)
        anew = []
        others = {k: v for k, v in of_model.items() if k not in own}
        for module, there in ((model, others), (guide, of_guide)):
            here = {k: v.shape for k, v in module.state_dict().items() if k not in own}
            if {k: v.shape for k, v in there.items()} == here:
                # the rest is as the options say
                learned = {*dict(module.named_parameters()), *getattr(module, "fitted", ())}
                taken = {k: v for k, v in there.items() if k in learned}
                module.load_state_dict(taken, strict=False)
            else:
                anew.append(type(guide if module is guide else model.prior).__name__)
        return state, anew

    def _read(self) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
        folder = self.latest()
        state = self.state(folder)
        assert folder is not None
        with damage_named(folder, SafetensorError):
            return folder, state, load_file(folder / WEIGHTS)


def identity(parts: Parts) -> dict[str, Any]:
    """What has to agree for weights to mean the same."""
    model, guide = cast(LanguageModel, parts["model"]), cast(Guide, parts["guide"])
    return {
        "prior": public_name(type(model.prior)),
        "guide": public_name(type(guide)),
        "depth": None if guide.depth is None else public_name(type(guide.depth)),
        **model.network.describe(),
    }


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # as where the disk is full
        raise OSError(f"{path.parent.parent}: cannot write a checkpoint: {error}") from error


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint of ours: at once by name, so that a kill leaves none of half its files.

    What a kill leaves has the name of what is half-written, which `tidy` removes.
    """
    leaving = partial_name(checkpoint)
    with suppress(OSError):
        checkpoint.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _weights(parts: Parts) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value.detach().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def _of_part(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _named_parameters(parts: Parts) -> dict[Tensor, str]:
    return {
        parameter: f"{part}.{name}"
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
    }


def _optimiser_tensors(parts: Parts, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as NAME/KEY -> tensor."""
    names = _named_parameters(parts)
    return {
        f"{names[parameter]}/{key}": value.detach().contiguous()
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    }


def _load_optimiser(
    parts: Parts, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Give every parameter its moments; raises `UsageError` unless they are its own.

    A parameter that never had a gradient has none.
    """
    left = dict(tensors)
    for parameter, name in _named_parameters(parts).items():
        own = {
            key: left.pop(f"{name}/{key}")
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{name}/{key}" in left
        }
        shapes = {key: value.shape for key, value in own.items() if key != "step"}
        if own and (len(own) != 3 or set(shapes.values()) != {parameter.shape}):
            raise UsageError(f"optimiser.safetensors is of another model: {name} does not fit")
        if own:
            optimiser.state[parameter] = {
                key: value.to(parameter.device) for key, value in own.items()
            }
    if left:
        raise UsageError(f"optimiser.safetensors is of another model: it has {sorted(left)[0]}")
