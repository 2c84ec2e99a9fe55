"""A run's folder: configuration, metrics, checkpoints and summary, whole at every moment.

    config.yaml           everything needed to repeat the run
    vocabulary.json       how its text becomes tokens
    metrics.jsonl         one line per step
    checkpoint/step-N/    model.safetensors, optimiser.safetensors, state.json
    posterior.nc          draws of the routes, in ArviZ's groups
    sequences.json        the loss of every validation sequence
    summary.json          the results, under stable names

A file is written under a temporary name and renamed, a checkpoint likewise as a folder: a kill at
any moment leaves the last whole one. Nothing in a run is ever unpickled.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyro_meta.data.corpus import Corpus
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.folders import flush, write_whole
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.terminal.naming import public_name
from pyro_meta.training.config import Config, read_options

Parts = Mapping[str, nn.Module]
"""What a checkpoint holds by name: model and guide, and in training the controllers."""
STATE_KINDS: dict[str, type | tuple[type, ...]] = {
    "step": int, "seconds": (int, float), "corpus": str, "processes": int, "model": dict,
    "files": dict,
}  # fmt: skip
SUMMARY_KEYS = (
    "val_nll_soft", "val_nll_hard", "cost_nominal_soft", "cost_nominal_hard", "cost_macs_hard",
    "routing_entropy", "routing_uncertainty", "routing_information", "kl_per_token", "load",
    "load_by_layer", "hard_fraction", "tokens_seen", "seconds", "tokens_per_second", "parameters",
    "router_parameters", "device", "seed", "versions",
)  # fmt: skip
OPTIONAL_KEYS = ("depth", "truth", "prior", "executed")


class Run:
    """The folder of one training run.

    Use `Run.create` for a new one and `Run.open` for one that exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self.posterior_path = folder / "posterior.nc"
        self.sequences_path = folder / "sequences.json"
        self.summary_path = folder / "summary.json"
        self._checkpoints = folder / "checkpoint"

    @classmethod
    def create(cls, folder: Path | None, config_yaml: str, corpus: Corpus) -> "Run":
        """Make the folder of a new run, by default runs/DATE-TIME.

        Raises
        ------
        UsageError
            The folder exists, or cannot be made.
        """
        folder = folder or _fresh(Path("runs"))
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise UsageError(
                f"option --out: {folder} exists; name a new folder, or --resume {folder}"
            ) from error
        except OSError as error:
            raise UsageError(f"option --out: cannot make {folder}: {error.strerror}") from error
        run = cls(folder)
        corpus.vocabulary.save(folder / "vocabulary.json")
        write_whole(folder / "config.yaml", config_yaml)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """A run that exists; raises `UsageError` if `folder` holds none."""
        run = cls(Path(folder))
        if not (run.folder / "config.yaml").is_file():
            raise UsageError(f"{folder} is not a run: it has no config.yaml")
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; raises `UsageError` while another process does."""
        with open(self.folder / "config.yaml", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(f"{self.folder} is being trained by another process") from error
            yield

    def config(self) -> Config:
        """The options of the run."""
        return read_options(["--config", str(self.folder / "config.yaml")])[0]

    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.folder / "vocabulary.json")

    # -- metrics -----------------------------------------------------------------------------

    def append_metrics(self, record: dict[str, Any]) -> None:
        with open(self.metrics_path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every whole record; a last line that a kill cut short is passed over.

        Raises
        ------
        UsageError
            A line before the last is damaged.
        """
        if not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                if number < len(lines):
                    raise UsageError(
                        f"{self.metrics_path} is damaged at line {number}: {error}"
                    ) from error

    def rewind(self, step: int) -> None:
        """Drop results, and what was logged after `step`: a resumed run makes them again."""
        for path in (self.summary_path, self.sequences_path, self.posterior_path):
            path.unlink(missing_ok=True)
        kept = [record for record in self.metrics() if record["step"] <= step]
        write_whole(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))

    # -- checkpoints -------------------------------------------------------------------------

    def save_checkpoint(
        self, parts: Parts, optimiser: torch.optim.Optimizer | None, state: dict[str, Any]
    ) -> None:
        """Write a checkpoint of `state["step"]`, then drop the older ones."""
        final = self._checkpoints / f"step-{state['step']:08d}"
        partial = self._checkpoints / f".partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_weights(parts), partial / "model.safetensors")
        if optimiser is not None:
            moments = _optimiser_tensors(parts, optimiser)
            save_file(moments, partial / "optimiser.safetensors")
        files = {file.name: _sha256(file) for file in partial.iterdir()}
        whole = state | {"model": _identity(parts), "files": files}
        (partial / "state.json").write_text(json.dumps(whole), encoding="utf-8")
        for file in [*partial.iterdir(), partial]:
            flush(file)
        partial.rename(final)
        flush(self._checkpoints)
        for older in self._checkpoints.iterdir():
            if older != final:
                shutil.rmtree(older, ignore_errors=True)

    def latest_checkpoint(self) -> Path | None:
        """Folder of the newest whole checkpoint."""
        return max(self._checkpoints.glob("step-*"), default=None)

    def state(self, folder: Path | None = None) -> dict[str, Any]:
        """What the newest checkpoint, or that in `folder`, says of itself.

        Raises
        ------
        UsageError
            There is no checkpoint, or its files are not what was written.
        """
        folder = folder or self.latest_checkpoint()
        if folder is None:
            raise UsageError(f"{self.folder} has no checkpoint yet; --resume begins it anew")
        with _damage_named(folder):
            state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            for key, kind in STATE_KINDS.items():
                if not isinstance(state.get(key), kind):
                    raise ValueError(f"state.json has no valid {key!r}")
            for name, sha256 in state["files"].items():
                if _sha256(folder / name) != sha256:
                    raise ValueError(f"{name} is not what was written")
        return state

    def load_checkpoint(
        self, parts: Parts, optimiser: torch.optim.Optimizer | None = None
    ) -> dict[str, Any]:
        """Load the newest checkpoint into `parts`, all or some of those saved; its state.

        Raises
        ------
        UsageError
            There is none, it is damaged, or it is of another model.
        """
        folder = self.latest_checkpoint()
        state = self.state(folder)
        assert folder is not None
        with _damage_named(folder):
            weights = load_file(folder / "model.safetensors")
            moments = load_file(folder / "optimiser.safetensors") if optimiser else {}
        then, now = state["model"], _identity(parts)
        for key in now:
            if then.get(key) != now[key]:
                raise UsageError(
                    f"checkpoint {folder} is of another model: its {key} is {then.get(key)}, and "
                    f"that of config.yaml is {now[key]}"
                )
        try:
            for name, module in parts.items():
                own = {k: v for k, v in weights.items() if k.startswith(f"{name}.")}
                module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in own.items()})
        except RuntimeError as error:
            raise UsageError(f"checkpoint {folder} is of another model: {error}") from error
        if optimiser is not None and state["step"] > 0:
            _load_optimiser(parts, optimiser, moments)
        return state

    # -- results -----------------------------------------------------------------------------

    def write_sequences(self, losses: dict[str, Any]) -> None:
        """Write sequences.json: losses by sequence, and on which sequences."""
        write_whole(self.sequences_path, json.dumps(losses) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json; its keys are part of the interface and checked."""
        required = tuple(key for key in summary if key not in OPTIONAL_KEYS)
        if required != SUMMARY_KEYS:
            raise ValueError(f"summary has keys {list(summary)}, not {list(SUMMARY_KEYS)}")
        write_whole(self.summary_path, json.dumps(summary, indent=2) + "\n")

    def load(self) -> tuple[LanguageModel, Guide, Vocabulary, Config]:
        """The trained model and guide in evaluation mode, with vocabulary and configuration."""
        config, vocabulary = self.config(), self.vocabulary()
        model, guide = config.build(vocabulary.size, vocabulary.separators)
        self.load_checkpoint({"model": model, "guide": guide})
        return model.eval(), guide.eval(), vocabulary, config


def _fresh(parent: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (parent / f"{stamp}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 100))))
    return next(name for name in names if not name.exists())


def _weights(parts: Parts) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value.detach().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Say of which checkpoint a file cannot be read."""
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise UsageError(f"checkpoint {folder} is damaged: {error}") from error


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


def _identity(parts: Parts) -> dict[str, Any]:
    """What has to agree for weights to mean the same."""
    model, guide = cast(LanguageModel, parts["model"]), cast(Guide, parts["guide"])
    return {
        "prior": public_name(type(model.prior)),
        "guide": public_name(type(guide)),
        "depth": None if guide.depth is None else public_name(type(guide.depth)),
        **model.network.describe(),
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
