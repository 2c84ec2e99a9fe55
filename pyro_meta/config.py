"""The options of a training run: one dataclass, whose docstrings are the command line's help."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from pyro_meta.console import parse
from pyro_meta.corpus import Data, Text
from pyro_meta.errors import UsageError
from pyro_meta.guides import DirichletGuide, Guide
from pyro_meta.models import CostDirichlet, LanguageModel, Prior
from pyro_meta.svi import HardeningSchedule, KLSchedule, Optimisation
from pyro_meta.transformer import Shape, Transformer

PRESETS = Path(__file__).parent / "presets"


@dataclass
class Config:
    """Train a routed language model with SVI."""

    data: Data = field(default_factory=Text)
    """Where text comes from: Text (the default) or the import path of your own Data."""
    prior: Callable[[Transformer], Prior] = CostDirichlet
    """Prior over routes: CostDirichlet (the default), another, or the import path of your own."""
    guide: Callable[[LanguageModel], Guide] = DirichletGuide
    """Posterior over routes: DirichletGuide (the default), another, or your own's import path."""
    mechanisms: list[str] = field(default_factory=lambda: ["full", "window", "linear"])
    """Ways to attend that each token chooses from: full, window, linear, or import paths."""
    window: int = 64
    """Keys that `window` sees, the token itself included."""
    context: int = 256
    """Tokens in a training sequence."""
    width: int = 128
    """Width of the residual stream."""
    layers: int = 4
    """Number of layers."""
    heads: int = 4
    """Query heads."""
    kv_heads: int | None = None
    """Key-value heads, a divisor of heads (default: as many)."""
    dropout: float = 0.0
    """Dropout probability."""
    steps: int = 1000
    """Optimiser steps."""
    batch: int = 16
    """Sequences per step, over all devices."""
    accumulate: int = 1
    """Micro-batches per step and device whose gradients are summed."""
    optim: Optimisation = Optimisation()
    """AdamW and its schedule."""
    kl: KLSchedule = KLSchedule()
    """Weight of the KL term over training."""
    harden: HardeningSchedule = HardeningSchedule()
    """When soft routes turn hard."""
    seed: int = 0
    """Seed of parameters, order of data, draws and dropout."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: int = 1
    """Processes to train on, one device each."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Arithmetic of the network; auto: bf16-mixed on CUDA, else 32-true."""
    compile: bool = False
    """Compile the network's blocks with torch.compile."""
    validate_every: int = 200
    """Steps between validations (0: only at the end)."""
    validation_tokens: int = 65_536
    """Most tokens of the validation text that a validation reads."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    out: Path | None = None
    """Folder of the run; must not exist (default: a fresh one under runs/)."""
    debug: bool = False
    """Turn on Pyro's validation of shapes, supports and values (slower)."""

    def __post_init__(self) -> None:
        at_least = {"steps": 1, "batch": 1, "accumulate": 1, "devices": 1, "checkpoint_every": 1}
        at_least |= {"validate_every": 0, "validation_tokens": 1, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UsageError(
                    f"{name}: {getattr(self, name)} given; at least {least} is allowed"
                )

    def build(self, vocabulary: int) -> tuple[LanguageModel, Guide]:
        """The untrained model and guide; draws parameters from torch's global generator.

        Raises
        ------
        UsageError
            Options that do not fit each other, or a class of the wrong kind.
        """
        shape = Shape(
            vocabulary,
            self.context,
            self.width,
            self.layers,
            self.heads,
            self.kv_heads,
            self.window,
            self.dropout,
        )
        network = Transformer(shape, self.mechanisms)
        model = LanguageModel(network, self.prior(network))
        return model, self.guide(model)


CLASS_OPTIONS: dict[str, tuple[type, str]] = {
    "data": (Data, "pyro_meta.corpus.Text"),
    "prior": (Prior, "pyro_meta.models.CostDirichlet"),
    "guide": (Guide, "pyro_meta.guides.DirichletGuide"),
}
"""Options whose value is a class: its base and its default."""


def read_options(argv: Sequence[str]) -> tuple[Config, str]:
    """The configuration that a command line asks for, and the YAML that repeats it.

    Raises
    ------
    UsageError
        Whatever is wrong with the command line or a file named in it.
    """
    parser = config_parser()
    bases = {name: base for name, (base, _) in CLASS_OPTIONS.items()}
    parsed = parse(parser, _resolve(argv), bases)
    options: dict[str, Any] = yaml.safe_load(parser.dump(parsed))
    chosen = parser.instantiate(parsed)
    for name in ("config", "preset", "resume"):  # said once, and not part of the run
        options.pop(name, None)
        chosen.pop(name, None)
    options.pop("out", None)  # whoever repeats the run names another folder
    return Config(**vars(chosen)), yaml.safe_dump(options, sort_keys=False)


def config_parser() -> ArgumentParser:
    """The command line of `python -m pyro_meta.train`."""
    parser = ArgumentParser(
        prog="python -m pyro_meta.train",
        description="Train a transformer whose every token chooses how it attends.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of options.")
    parser.add_argument("--preset", help=f"Named set of options: {', '.join(_preset_names())}.")
    parser.add_argument("--resume", metavar="RUN", help="Run to take up again; no other option.")
    parser.add_class_arguments(Config)
    parser.set_defaults(dict.fromkeys(CLASS_OPTIONS))  # `_resolve` names the default classes
    return parser


def _resolve(argv: Sequence[str]) -> list[str]:
    """Read presets and files, and settle which class each class option means.

    The last class that is named wins, and takes only the arguments given after it: an argument of
    the same name that was meant for another class, or its default, is never carried over.
    """
    classes = {name: default for name, (_, default) in CLASS_OPTIONS.items()}
    arguments: dict[str, dict[str, str]] = {name: {} for name in CLASS_OPTIONS}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        option, has_value, value = word.removeprefix("--").partition("=")
        name, _, argument = option.partition(".")
        is_ours = word.startswith("--") and (name in (*CLASS_OPTIONS, "config", "preset"))
        if not is_ours or argument == "help":
            rest.append(word)
            continue
        if not has_value:
            if not words:
                raise UsageError(f"option --{option}: a value is missing")
            value = words.pop(0)
        if option in ("config", "preset"):
            path = Path(value) if option == "config" else _preset(value)
            options = _read_yaml(path, option)
            for class_option in CLASS_OPTIONS.keys() & options.keys():
                chosen, given = _class_in_file(options.pop(class_option))
                if chosen:
                    classes[class_option], arguments[class_option] = chosen, {}
                arguments[class_option].update(given)
            rest.append(f"--config={yaml.safe_dump(options)}")
        elif argument:
            arguments[name][argument] = value
        else:
            classes[name], arguments[name] = value, {}
    settled = []
    for name, chosen in classes.items():
        settled.append(f"--{name}={chosen}")
        settled += [f"--{name}.{key}={value}" for key, value in arguments[name].items()]
    return settled + rest


def _class_in_file(value: Any) -> tuple[str | None, dict[str, str]]:
    """Class and arguments of a class option in YAML: a name, or class_path and init_args."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict):
        raise UsageError(f"a class option in a file is {value!r}; a name or a mapping is allowed")
    given = value.get("init_args", {}) or {} if "class_path" in value else value
    words = {
        key: item if isinstance(item, str) else json.dumps(item) for key, item in given.items()
    }
    return value.get("class_path"), words


def _read_yaml(path: Path, option: str) -> dict[str, Any]:
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"option --{option}: cannot read {path}: {error}") from error
    if not isinstance(options, dict):
        raise UsageError(f"option --{option}: {path} holds no mapping of options")
    return options


def _preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _preset(name: str) -> Path:
    if name not in _preset_names():
        raise UsageError(
            f"option --preset: {name!r} given; {', '.join(_preset_names())} are allowed"
        )
    return PRESETS / f"{name}.yaml"
