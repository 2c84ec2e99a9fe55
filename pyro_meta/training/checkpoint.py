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
from safetensors.torch import save_file
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
    shard_name,
    shards_of,
    step_of,
)
from pyro_meta.training.sharding import gathered_by_first, is_sharded
from pyro_meta.training.shards import Stored, write_shards
from pyro_meta.training.together import is_first, rank, told_by_all, told_by_first

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
        final, partial = self._begin(state)
        try:
            files = _write(partial, WEIGHTS, _weights(parts))
            if optimiser is not None:
                files |= _write(partial, MOMENTS, _optimiser_tensors(parts, optimiser))
            self._finish(final, partial, {**state, "model": identity(parts), "files": files})
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def save_together(
        self,
        parts: Parts,
        optimiser: torch.optim.Optimizer,
        state: Mapping[str, Any],
        gathers: bool,
    ) -> None:
        """`save`, by all processes that share a model: each writes what it has.

        Parameters
        ----------
        parts, optimiser, state
            As of `save`; the state is that of the first process.
        gathers
            Whether weights are gathered into one file, as a run leaves them at its end.
        """
        final, partial = told_by_first(lambda: self._begin(state))
        try:
            weights = _weights(parts)
            if gathers:
                gathered = gathered_by_first(weights)
                files = told_by_first(lambda: _write(partial, WEIGHTS, gathered))
            else:
                files = _write_shards(partial, WEIGHTS, weights)
            files |= _write_shards(partial, MOMENTS, _optimiser_tensors(parts, optimiser))
            whole = {**state, "model": identity(parts), "files": files}
            told_by_first(lambda: self._finish(final, partial, whole))
        finally:
            if is_first():
                shutil.rmtree(partial, ignore_errors=True)

    def _begin(self, state: Mapping[str, Any]) -> tuple[Path, Path]:
        """The folder of a checkpoint that is to be, and where it is written until then."""
        final = self.folder / f"step-{state['step']:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = partial_name(final)
        partial.mkdir()
        return final, partial

    def _finish(self, final: Path, partial: Path, state: Mapping[str, Any]) -> None:
        """Have a checkpoint stand whose tensors are written; then remove the older ones."""
        write_whole(partial / STATE, checksums.sealed(state))
        if final.exists():  # made again, as where a run is closed once more
            _remove(final)
        partial.rename(final)
        flush(self.folder)
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
        folder, state = self._newest()
        files = state["files"]
        of_weights, of_moments = (Stored(folder, name, files) for name in (WEIGHTS, MOMENTS))
        is_shared = any(map(is_sharded, parts.values()))
        needs_moments = optimiser is not None and state["step"] > 0
        with damage_named(folder, SafetensorError):
            weights = {} if is_shared else of_weights.whole()
            moments = of_moments.whole() if needs_moments and not is_shared else {}
        then, now = state["model"], identity(parts)
        for key in now:
            if then.get(key) != now[key]:
                raise UsageError(
                    f"checkpoint {folder} is of another model: its {key} is {then.get(key)}, and "
                    f"that of config.yaml is {now[key]}"
                )
        try:
            if is_shared:
                with damage_named(folder, SafetensorError):
                    _read_weights(of_weights, parts)
                    if needs_moments:
                        moments = _read_moments(of_moments, parts)
            else:
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
            found, needed = (one[name].shape if name in one else None for one in (own, expected))
            if found != needed:
                raise UsageError(
                    f"option --from: the network of {folder} is another: {name} is "
                    f"{_size(found)} there, and {_size(needed)} here"
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
        folder, state = self._newest()
        with damage_named(folder, SafetensorError):
            return folder, state, Stored(folder, WEIGHTS, state["files"]).whole()

    def _newest(self) -> tuple[Path, dict[str, Any]]:
        folder = self.latest()
        state = self.state(folder)
        assert folder is not None
        return folder, state


def identity(parts: Parts) -> dict[str, Any]:
    """What has to agree for weights to mean the same."""
    model, guide = cast(LanguageModel, parts["model"]), cast(Guide, parts["guide"])
    return {
        "prior": public_name(type(model.prior)),
        "guide": public_name(type(guide)),
        "depth": None if guide.depth is None else public_name(type(guide.depth)),
        **model.network.describe(),
    }


def _size(size: torch.Size | None) -> str:
    return "missing" if size is None else str(list(size))


def _write(checkpoint: Path, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write whole tensors to a file; by its name, its size and hash."""
    try:
        save_file(tensors, checkpoint / name)
    except SafetensorError as error:  # as where the disk is full
        raise OSError(f"{checkpoint.parent}: cannot write a checkpoint: {error}") from error
    return {name: _written(checkpoint / name)}


def _write_shards(checkpoint: Path, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write tensors that processes share, each what it has; by names, sizes and hashes of files."""
    folder = checkpoint / shards_of(name)
    told_by_first(folder.mkdir)
    write_shards(folder, tensors)

    def own() -> dict[str, Any]:
        path = folder / shard_name(rank())
        return {f"{folder.name}/{path.name}": _written(path)} if path.exists() else {}

    files = {key: one for some in told_by_all(own) for key, one in some.items()}
    told_by_first(lambda: flush(folder))  # who is first may then rename it
    return files


def _written(path: Path) -> dict[str, Any]:
    """Size and hash of a file, which the disk then holds."""
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": checksums.sha256(path)}


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint of ours: at once by name, so that a kill leaves none of half its files.

    What a kill leaves has the name of what is half-written, which `tidy` removes.
    """
    leaving = partial_name(checkpoint)
    with suppress(OSError):
        checkpoint.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _weights(parts: Parts) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in _in_place(parts).items()}


def _in_place(parts: Parts) -> dict[str, Tensor]:
    """What the modules hold; who writes to it moves them."""
    return {
        f"{part}.{name}": value.detach()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def _read_weights(stored: Stored, parts: Parts) -> None:
    """Read what each process has of parts that are shared; raises `RuntimeError` for others."""
    here = _in_place(parts)
    sizes = {k: size for k, size in stored.sizes().items() if k.partition(".")[0] in parts}
    for name in sorted(sizes.keys() | here.keys()):
        then, now = sizes.get(name), here[name].shape if name in here else None
        if then != now:
            raise RuntimeError(f"{name} is {_size(then)} there, and {_size(now)} here")
    stored.read_into(here)


def _read_moments(stored: Stored, parts: Parts) -> dict[str, Tensor]:
    """What each process has of the moments of parameters that are shared."""
    parameters = {name: parameter for parameter, name in _named_parameters(parts).items()}
    tensors: dict[str, Tensor] = {}
    for key, size in stored.sizes().items():
        like = parameters.get(key.rpartition("/")[0])
        if like is not None and like.shape == size:
            tensors[key] = torch.zeros_like(like.detach())
        else:  # a number of steps; or it is not of these parameters, which is told where it is used
            tensors[key] = torch.zeros(size)
    stored.read_into(tensors)
    return tensors


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
