"""A run's folder: configuration, metrics, checkpoints and summary, whole at every moment.

    config.yaml           everything needed to repeat the run
    vocabulary.json       how its text becomes tokens
    origin.json           whose weights it began with (--from), if anybody's
    metrics.jsonl         one line per step
    checkpoint/step-N/    model.safetensors, optimiser.safetensors, state.json; or, of a network
                          that processes share, folders of shards (see `checkpoint_files`)
    sequences.json        the loss of every validation sequence
    posterior.nc          draws of the routes, in ArviZ's groups
    SHA256SUMS            hashes of all of these but the checkpoint, for sha256sum -c
    summary.json          the results, under stable names: written last, it says that a run is whole

A file is written under a temporary name and renamed, a checkpoint likewise as a folder, and so is
the run itself: a kill at any moment leaves the last whole one. Nothing in a run is ever unpickled,
and opening one imports nothing that pyro_meta does not ship, unless it is trusted.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pyro_meta import checksums
from pyro_meta.data.corpus import Corpus
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.folders import locked, partial_name, write_whole
from pyro_meta.guides import Guide
from pyro_meta.guides.spending import Spending
from pyro_meta.models import LanguageModel
from pyro_meta.terminal.trust import require_shipped
from pyro_meta.training.checkpoint import Checkpoints, Parts
from pyro_meta.training.checkpoint_files import weights_sha256
from pyro_meta.training.config import Config, read_options
from pyro_meta.training.metrics import Metrics
from pyro_meta.training.options import flatten
from pyro_meta.training.together import told_by_first

SUMMARY_KEYS = (
    "val_nll_soft", "val_nll_hard", "cost_nominal_soft", "cost_nominal_hard", "cost_macs_hard",
    "routing_entropy", "routing_uncertainty", "routing_information", "kl_per_token", "load",
    "load_by_layer", "hard_fraction", "tokens_seen", "seconds", "tokens_per_second", "parameters",
    "router_parameters", "device", "seed", "versions", "finished",
)  # fmt: skip
OPTIONAL_KEYS = (
    "depth", "truth", "prior", "executed", "load_by_group", "beside", "spending", "commit",
    "budget",
)  # fmt: skip
MISSING = "missing"


@dataclass(frozen=True)
class Origin:
    """Where a run has its first weights from: another run, at one of its steps."""

    run: str
    step: int
    weights: str
    """Hash of the model.safetensors, or of the shards, that they were read from."""


class Run:
    """The folder of one training run.

    Use `Run.create` for a new one and `Run.open` for one that exists.
    """

    def __init__(self, folder: Path, trusts: bool = False) -> None:
        if folder == Path():
            raise UsageError("a run needs a folder of its own: its path is empty")
        self.folder = folder
        self.trusts = trusts
        self.config_path = folder / "config.yaml"
        self._vocabulary_path = folder / "vocabulary.json"
        self.posterior_path = folder / "posterior.nc"
        self.sequences_path = folder / "sequences.json"
        self.summary_path = folder / "summary.json"
        self.origin_path = folder / "origin.json"
        self.metrics_path = folder / "metrics.jsonl"
        self._metrics = Metrics(self.metrics_path)
        self.checkpoints = Checkpoints(folder / "checkpoint")

    @classmethod
    def create(
        cls,
        folder: Path | None,
        config_yaml: str,
        corpus: Corpus,
        origin: Origin | None = None,
    ) -> "Run":
        """Make the folder of a new run, by default runs/DATE-TIME: all of it, or nothing.

        Raises
        ------
        UsageError
            The folder exists, or cannot be made.
        """
        require_new(folder)
        folder = folder or fresh_folder()
        partial = partial_name(folder)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
            corpus.vocabulary.save(partial / "vocabulary.json")
            write_whole(partial / "config.yaml", config_yaml)
            if origin is not None:
                write_whole(partial / "origin.json", checksums.sealed(vars(origin)))
            require_new(folder)  # somebody may have made it meanwhile
            partial.rename(folder)
        except OSError as error:
            raise UsageError(f"option --out: cannot make {folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(folder, trusts=True)  # its options are those of the command line

    @classmethod
    def open(cls, folder: str | Path, trusts: bool = False) -> "Run":
        """A run that exists.

        Parameters
        ----------
        folder
            Its path.
        trusts
            Import the classes that it names, also those that pyro_meta does not ship.

        Raises
        ------
        UsageError
            There is no run in `folder`.
        """
        if not str(folder):
            raise UsageError("the folder of a run is needed, and its path is empty")
        run = cls(Path(folder), trusts)
        try:
            is_run = run.config_path.is_file()
        except (OSError, ValueError) as error:  # such as a name that is too long, or has a NUL
            raise UsageError(f"{folder} is not a run: {error}") from error
        if not is_run:
            raise UsageError(f"{folder} is not a run: it has no config.yaml")
        return run

    @contextmanager
    def locked(self, waits: bool = False) -> Iterator[None]:
        """Hold the run for writing; raises `UsageError` while another process does.

        With `waits` that process is waited for.
        """
        busy = f"{self.folder} is being trained by another process"
        with locked(self.folder, busy, waits):
            yield

    # -- what it is ----------------------------------------------------------------------------

    def config_yaml(self) -> str:
        """The text of its options.

        Raises
        ------
        UsageError
            It cannot be read, or names classes that are not trusted.
        """
        try:
            checksums.require_plain(self.config_path)
            text = self.config_path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.config_path} cannot be read: {error}") from error
        if not self.trusts:
            require_shipped(text, self.folder)
        return text

    def config(self) -> Config:
        """The options of the run; raises `UsageError` as `config_yaml`."""
        self.config_yaml()
        return read_options(["--config", str(self.config_path)])[0]

    def vocabulary(self) -> Vocabulary:
        """How its text becomes tokens; raises `UsageError` where the file cannot be read."""
        return Vocabulary.load(self._vocabulary_path)

    def origin(self) -> Origin | None:
        """Where its first weights are from; None if they were drawn."""
        try:
            return Origin(**checksums.unsealed(self.origin_path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{self.origin_path} is damaged: {error}") from error

    def is_finished(self) -> bool:
        """Whether it has left its results; `damage` says whether they are whole."""
        return self.summary_path.is_file()

    def damage(self) -> str | None:
        """What is wrong with a finished run, in one line; None if all is as it was written."""
        return checksums.damage(self.folder)

    # -- metrics and checkpoints ---------------------------------------------------------------

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Log the record of a step."""
        self._metrics.append(record)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every whole record; raises `UsageError` where one before the last is damaged."""
        return self._metrics.read()

    def save_checkpoint(
        self, parts: Parts, optimiser: torch.optim.Optimizer | None, state: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint of `state["step"]`, once the disk holds the metrics that it counts.

        Older ones are then removed.
        """
        self.checkpoints.save(parts, optimiser, {**state, "metrics": self._metrics.counted()})

    def save_checkpoint_together(
        self,
        parts: Parts,
        optimiser: torch.optim.Optimizer,
        state: Mapping[str, Any],
        gathers: bool,
    ) -> None:
        """`save_checkpoint` by all processes that share a model; see `Checkpoints`."""
        counted = told_by_first(self._metrics.counted)
        state = {**state, "metrics": counted}
        self.checkpoints.save_together(parts, optimiser, state, gathers)

    def latest_checkpoint(self) -> Path | None:
        """Folder of the newest whole checkpoint."""
        return self.checkpoints.latest()

    def state(self) -> dict[str, Any]:
        """What the newest checkpoint says of itself; raises `UsageError` if none is whole."""
        return self.checkpoints.state()

    def load_checkpoint(
        self, parts: Parts, optimiser: torch.optim.Optimizer | None = None
    ) -> dict[str, Any]:
        """Load the newest checkpoint into `parts`, all or some of those saved; its state.

        Raises
        ------
        UsageError
            There is none, it is damaged, or it is of another model.
        """
        return self.checkpoints.load(parts, optimiser)

    def circumstances(self) -> dict[str, str]:
        """What a checkpoint remembers of the files beside it, to see that they have not changed."""
        config_yaml = self.config_path.read_text(encoding="utf-8")
        return {"config": config_yaml, "vocabulary": self._hash_of_vocabulary()}

    def _hash_of_vocabulary(self) -> str:
        try:
            return checksums.sha256(self._vocabulary_path)
        except OSError as error:
            raise UsageError(f"{self._vocabulary_path} cannot be read: {error}") from error

    # -- going on --------------------------------------------------------------------------------

    def whole_state(self) -> dict[str, Any]:
        """The state of the newest checkpoint, once all that belongs to it is as it was.

        Raises
        ------
        UsageError
            There is no whole checkpoint, or options or vocabulary are not its own.
        """
        state = self.state()
        self.require_same(state, self.config_yaml())
        return state

    def planned_steps(self, state: Mapping[str, Any]) -> int:
        """The steps that the run was to take when a checkpoint's `state` was saved."""
        return int(yaml.safe_load(state["config"])["steps"])

    def require_same(self, state: Mapping[str, Any], config_yaml: str) -> None:
        """Raise `UsageError` if options or vocabulary were changed under a checkpoint's `state`.

        More steps are allowed, with which a run trains longer, and other processes.
        """
        if not isinstance(state.get("config"), str):
            raise UsageError(f"{self.latest_checkpoint()} is damaged: state.json has no 'config'")
        if state.get("vocabulary") != self._hash_of_vocabulary():
            raise UsageError(f"{self._vocabulary_path} is not what was written")
        try:
            then, now = (flatten(yaml.safe_load(text)) for text in (state["config"], config_yaml))
        except yaml.YAMLError as error:
            raise UsageError(f"{self.config_path} is no YAML: {error}") from error
        for name in {**then, **now}:
            before, after = then.get(name, MISSING), now.get(name, MISSING)
            if name == "steps" and isinstance(after, int) and after >= state["step"]:
                continue
            if name == "devices" and isinstance(after, int):
                continue
            if before != after:
                raise UsageError(
                    f"{self.config_path}: {name} is {after}, and was {before} when step "
                    f"{state['step']} was saved; set it back, or begin a new run with --from "
                    f"{self.folder}"
                )

    def reopen(self, step: int, counted: dict[str, Any] | None, config_yaml: str) -> str | None:
        """Go on from `step`: drop the results, and what was logged later, which are made again.

        The mark of a finished run goes first, so that a kill leaves no results that seem whole.

        Returns
        -------
        str or None
            What the metrics lack, in one line.
        """
        self._metrics.check(step, counted)
        sums = self.folder / checksums.NAME
        results = (self.summary_path, sums, self.sequences_path, self.posterior_path)
        for path in results:  # all that may be refused is, before anything is removed
            if path.is_dir() and not path.is_symlink():
                raise UsageError(f"{path} is a folder, where a file of the run belongs")
        if not os.access(self.folder, os.W_OK):
            raise UsageError(f"option --resume: {self.folder} cannot be written to")
        for path in results:
            path.unlink(missing_ok=True)
        self.checkpoints.tidy()
        if self.config_path.read_text(encoding="utf-8") != config_yaml:
            write_whole(self.config_path, config_yaml)
        return self._metrics.cut(step, counted)

    # -- results -----------------------------------------------------------------------------

    def write_sequences(self, losses: dict[str, Any]) -> None:
        """Write sequences.json: losses by sequence, and on which sequences."""
        write_whole(self.sequences_path, json.dumps(losses) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write SHA256SUMS and, last of all files, summary.json; its keys are checked.

        They are part of the interface.
        """
        required = tuple(key for key in summary if key not in OPTIONAL_KEYS)
        if required != SUMMARY_KEYS:
            raise ValueError(f"summary has keys {list(summary)}, not {list(SUMMARY_KEYS)}")
        text = json.dumps(summary, indent=2) + "\n"
        checksums.seal(self.folder, {self.summary_path.name: text.encode()})
        write_whole(self.summary_path, text)

    def load(self) -> tuple[LanguageModel, Guide, Vocabulary, Config]:
        """The trained model and guide in evaluation mode, with vocabulary and configuration.

        They are as the last step left them, the temperature of the model among it.
        """
        config = self.config()
        state = self.whole_state()
        vocabulary = self.vocabulary()
        model, guide = config.build(vocabulary.size, vocabulary.separators)
        self.load_checkpoint({"model": model, "guide": guide})
        model.temperature = config.kl(state["step"] / self.planned_steps(state))
        guide.spending = self._spending()
        return model.eval(), guide.eval(), vocabulary, config

    def _spending(self) -> Spending | None:
        """What its routes spend at each price, if it is finished and says so."""
        if not self.is_finished():
            return None
        try:
            found = json.loads(self.summary_path.read_text(encoding="utf-8")).get("spending")
            return None if found is None else Spending(**found)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{self.summary_path} is damaged: {error}") from error

    def lend(
        self, model: LanguageModel, guide: Guide, vocabulary: Vocabulary
    ) -> tuple[Origin, list[str]]:
        """Begin another run's `model` and `guide` with the weights of this one.

        Returns
        -------
        Origin, list of str
            Where the weights are from, and the classes that begin anew.

        Raises
        ------
        UsageError
            There are no whole weights, they do not fit, or texts are cut into other tokens.
        """
        self.whole_state()
        if self.vocabulary().to_json() != vocabulary.to_json():
            raise UsageError(
                f"option --from: the text is cut into other tokens than that of {self.folder}; its "
                f"own are --data.tokens {self.folder / 'vocabulary.json'}"
            )
        state, anew = self.checkpoints.lend(model, guide)
        return Origin(str(self.folder.resolve()), state["step"], weights_sha256(state)), anew


def require_new(folder: Path | None) -> None:
    """Raise `UsageError` if a run cannot be made at `folder`, as where something is there."""
    if folder is None:
        return
    try:
        folder.lstat()
        is_there = True
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    except (OSError, ValueError) as error:  # such as a name that is too long, or has a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"option --out: cannot make {folder}: {reason}") from error
    if is_there:
        raise UsageError(f"option --out: {folder} exists; name a new folder, or --resume {folder}")


def fresh_folder(parent: Path = Path("runs")) -> Path:
    """Where a new run goes if nobody says so: DATE-TIME in `parent`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (parent / f"{stamp}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 100))))
    return next(name for name in names if not name.exists())
