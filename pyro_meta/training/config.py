"""A training run from its options: they are read, and the model and its guide are built."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

import pyro_meta
from pyro_meta.attention import find_mechanism
from pyro_meta.data.base import CutText
from pyro_meta.data.corpus import Data
from pyro_meta.data.hugging_face import HuggingFace  # noqa: F401 -- named on the command line
from pyro_meta.data.recall import Recall  # noqa: F401 -- named on the command line
from pyro_meta.data.text import Text
from pyro_meta.errors import UsageError
from pyro_meta.guides import CategoricalGuide, DirichletGuide, Guide
from pyro_meta.guides.depth import DepthGuide, find_depth_guide
from pyro_meta.inference.controllers import (
    Controller,
    Controllers,
    GateController,
    budget_controller,
)
from pyro_meta.inference.warm_start import require_startable
from pyro_meta.models import CostDirichlet, DepthPrior, LanguageModel, LoadCategorical, Prior
from pyro_meta.network.measured_costs import timed_on
from pyro_meta.network.protocol import Network
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import Transformer
from pyro_meta.own_classes import made, own_classes_named
from pyro_meta.terminal.commands import parse_exactly, unread_docstrings
from pyro_meta.terminal.mistakes import allowed_classes, explain
from pyro_meta.terminal.naming import NoSuchClass, find_class, public_path
from pyro_meta.terminal.option_files import as_word, bare, dumps
from pyro_meta.training.bfloat16 import has_bfloat16
from pyro_meta.training.options import OF_THE_COMMAND, Settled, flatten, naming, settle
from pyro_meta.training.settings import (
    DEFAULT_CLASSES,
    OF_WEIGHTS,
    Settings,
    known_options,
    train_parser,
)
from pyro_meta.training.sharding import require_shardable

PRINTING = "--print_config"
PRETRAINED = "pretrained"  # the preset that --pretrained brings along


def of_the_others_family(made_for: Any) -> Any:
    """Stands for a prior or a guide that was not named: of choices, or of weights as the other."""
    raise NotImplementedError


@dataclass
class Config(Settings):
    """A run: its settings, and the classes that it is built of."""

    data: Data = field(default_factory=Text)
    prior: Callable[[Network], Prior] = of_the_others_family
    guide: Callable[[LanguageModel], Guide] = of_the_others_family

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.data, Data):  # such as what a class of one's own makes of itself
            raise UsageError(
                f"data: an object of type {type(self.data).__name__} given; {allowed_classes(Data)}"
            )
        is_of_weights = _is_of_weights(self.prior) or _is_of_weights(self.guide)
        if self.prior is of_the_others_family:
            self.prior = CostDirichlet if is_of_weights else LoadCategorical
        if self.guide is of_the_others_family:
            self.guide = DirichletGuide if is_of_weights else CategoricalGuide
        if self.pretrained is not None:
            if isinstance(self.data, CutText):
                self.data.cut_by(self.pretrained_tokenizer)
            if self.precision == "auto":
                is_half = has_bfloat16(self.accelerator)
                self.precision = "bf16-mixed" if is_half else "32-true"
        found = find_depth_guide(self.depth)
        of_kl = () if found is None else ("run", "strength") if found.pays_kl else ("penalty",)
        self.gate.require_used(
            self.depth, () if found is None else (*of_kl, "start", "price", "skip")
        )

    def pretrained_tokenizer(self) -> Path:
        """The tokenizer.json of `--pretrained`."""
        from pyro_meta.pretrained.loading import tokenizer_file

        assert self.pretrained is not None
        return tokenizer_file(self.pretrained)

    @own_classes_named()
    def build(
        self, vocabulary: int, separators: Callable[[], Sequence[int]] = lambda: ()
    ) -> tuple[LanguageModel, Guide]:
        """The untrained model and guide; draws parameters from torch's global generator.

        Parameters
        ----------
        vocabulary
            Number of tokens.
        separators
            Gives the tokens that separate sentences; asked where a mechanism reads them.

        Raises
        ------
        UsageError
            Options that do not fit each other, a class of the wrong kind, or whatever is raised
            inside somebody's own class.
        """
        network = self._network(vocabulary, separators)
        with timed_on(self.accelerator):
            prior = made(Prior, "_network", "prior", self.prior, network)
        make_depth, gate = find_depth_guide(self.depth), self.gate
        depth_prior = None
        if make_depth is not None:
            penalty = 0.0 if make_depth.pays_kl else gate.penalty
            depth_prior = DepthPrior(network, gate.run, gate.strength, penalty=penalty)
        with timed_on(self.accelerator):
            model = LanguageModel(network, prior, depth_prior)
            if self.budget is not None:
                model.charge_compute()
        model.harden_in(self.harden.order, self.seed)
        steps = self.steps_before_refit or self.steps
        model.text_tokens = steps * self.batch * self.context
        guide = made(Guide, "is_resting", "guide", self.guide, model)
        if make_depth is not None:
            guide.depth = made(
                DepthGuide, "_parameters", "depth", make_depth, model, start=gate.start
            )
            model.gate_execution.price.fill_(gate.price)
        self.controllers(model, guide)  # refuses targets that nobody here can be moved to
        if self.starts_warm(guide):
            require_startable(guide, self.context)
        if self.optim.refit and not any(
            one.requires_grad for part in (guide, model.prior) for one in part.parameters()
        ):
            raise UsageError(
                f"optim.refit: {self.optim.refit} given, and neither {type(guide).__name__} nor "
                f"{type(model.prior).__name__} learns anything; 0 is allowed"
            )
        if self.optim.second_order and not guide.draws_choices:
            raise UsageError(
                f"optim.second_order: true given, and {type(guide).__name__} draws no choices of "
                "one mechanism; a guide that does, such as CategoricalGuide, is allowed"
            )
        if self.optim.offsets != 1 and not guide.offsets:
            raise UsageError(
                f"optim.offsets: {self.optim.offsets:g} given, and {type(guide).__name__} says "
                "nothing of all tokens alike; 1 is allowed"
            )
        if self.strategy == "fsdp":
            require_shardable(model, guide)
        return model, guide

    def starts_warm(self, guide: Guide) -> bool:
        """Whether a guide is fitted before it is trained: none that learns nothing."""
        return self.warm.texts > 0 and any(one.requires_grad for one in guide.parameters())

    def _network(self, vocabulary: int, separators: Callable[[], Sequence[int]]) -> Network:
        """The network, whose weights are drawn, or those of `--pretrained`."""
        if self.pretrained is not None:
            return self._pretrained_network(vocabulary)
        shape = Shape(
            vocabulary,
            self.context,
            self.width,
            self.layers,
            self.heads,
            self.kv_heads,
            self.window,
            self.dropout,
            self.mlp_width,
            self.chunk,
            (self.kv_heads or self.heads) if self.groups == "kv" else 1,
            self.sinks,
        )
        _require_memory(shape)
        is_asked = any(find_mechanism(name).reads_separators for name in self.mechanisms)
        return Transformer(shape, self.mechanisms, self.block, separators() if is_asked else ())

    def _pretrained_network(self, vocabulary: int) -> Network:
        from pyro_meta.pretrained import wrap
        from pyro_meta.pretrained.loading import load_model

        assert self.pretrained is not None
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32
        network = wrap(
            load_model(self.pretrained, dtype),
            self.mechanisms,
            self.window,
            self.sinks,
            self.context,
            1 if self.groups == "one" else "kv",
        )
        if vocabulary > network.shape.vocabulary:
            raise UsageError(
                f"data: {vocabulary} tokens, and the model of --pretrained knows "
                f"{network.shape.vocabulary}"
            )
        return network

    def controllers(self, model: LanguageModel, guide: Guide) -> Controllers:
        """What moves prior and gates of what `build` gave towards `--budget` and `--gate.skip`.

        Raises
        ------
        UsageError
            A target is given that has nothing to move, or that cannot be met.
        """
        found: list[Controller] = []
        if (controller := budget_controller(guide, self.budget, self.tighten)) is not None:
            found.append(controller)
        if model.gated:
            layers = model.network.shape.layers
            found.append(GateController(model.gate_execution, layers, self.gate.skip))
        return Controllers(found)


CLASS_OPTIONS: dict[str, tuple[type, str]] = {
    name: (base, DEFAULT_CLASSES[name])
    for name, base in (("data", Data), ("prior", Prior), ("guide", Guide))
}
"""Options whose value is a class: its base and its default."""


def read_options(argv: Sequence[str]) -> tuple[Config, str]:
    """The configuration that a command line asks for, and the YAML that repeats it.

    Raises
    ------
    UsageError
        Whatever is wrong with the command line or a file named in it.
    SystemExit
        The options were asked for (--print_config), or a help.
    """
    known = known_options()
    words = [word for word in argv if word != PRINTING]
    options = [word.partition("=")[0] for word in words]
    if "--pretrained" in options and not {"--preset", "--config"} & set(options):
        words = [f"--preset={PRETRAINED}", *words]
    settled = settle(words, DEFAULT_CLASSES, known)
    if _names_weights(settled):
        settled = settle(words, DEFAULT_CLASSES | OF_WEIGHTS, known)
    settled.drop_preset("tighten", unless="budget")
    settled.require_taken({name: base for name, (base, _) in CLASS_OPTIONS.items()})
    with naming(settled.source_of):
        config, config_yaml = _read(settled.parser_words(known))
    if PRINTING in argv:
        print(config_yaml, end="")
        sys.exit(0)
    return config, config_yaml


def _names_weights(settled: Settled) -> bool:
    """Whether a prior or a guide is named that is of weights."""
    ours = {name: getattr(pyro_meta, name) for name in pyro_meta.NAMED_BY_FILES}
    for name in ("prior", "guide"):
        with suppress(NoSuchClass):  # which is told of where it would be made
            if _is_of_weights(find_class(settled.chosen(name), ours, "")):
                return True
    return False


def _is_of_weights(found: object) -> bool:
    """Whether a class is a prior of weights, or a guide that goes with no other prior."""
    while isinstance(found, partial):
        found = found.func
    if isinstance(found, type) and issubclass(found, Guide):
        return found.of_choices is False and found.pays_kl
    return isinstance(found, type) and issubclass(found, Prior) and not found.of_choices


def _read(words: Sequence[str]) -> tuple[Config, str]:
    """Parse settled words, and make what they name."""
    bases = {name: base for name, (base, _) in CLASS_OPTIONS.items()}
    has_help = any(word.partition("=")[0].endswith(".help") for word in words)
    with nullcontext() if has_help else unread_docstrings():
        parser = config_parser()
        parsed = parse_exactly(parser, words, bases)
        if parsed.pretrained is not None and Path(parsed.pretrained).expanduser().is_dir():
            parsed.pretrained = str(Path(parsed.pretrained).expanduser().resolve())
        text = parser.dump(parsed, skip_unset=False, skip_validation=True)
    options: dict[str, Any] = bare(yaml.safe_load(text))
    for name in CLASS_OPTIONS:
        options[name]["class_path"] = public_path(options[name]["class_path"])
    try:
        with own_classes_named():
            chosen = parser.instantiate(bare(parsed))
        for name in (*OF_THE_COMMAND, "preset"):  # settled, and not part of the run
            options.pop(name, None)
            chosen.pop(name, None)
        config = Config(**vars(chosen))
    except (TypeError, ValueError) as error:
        raise UsageError(explain(error, parser, bases)) from error
    options.pop("out", None)  # a run is repeated in another folder
    if config.pretrained is not None:
        options["precision"] = config.precision  # whatever machine reads it: routes are of one
    return config, dumps(options)


def with_numbers(
    config: Config, config_yaml: str, steps: int | None = None, devices: int | None = None
) -> tuple[Config, str]:
    """The same options, and their YAML, for another number of steps or devices.

    Raises
    ------
    UsageError
        A number does not fit the other options.
    """
    numbers = {"steps": steps or config.steps, "devices": devices or config.devices}
    options = yaml.safe_load(config_yaml) | numbers
    return replace(config, steps=numbers["steps"], devices=numbers["devices"]), dumps(options)


def train_words(config_yaml: str) -> list[str]:
    """The shortest words from which `read_options` makes this configuration again."""
    options = yaml.safe_load(config_yaml)
    classes = (options[name]["class_path"] for name in CLASS_OPTIONS)
    plain = flatten(_defaults(options["pretrained"], *classes))
    words = {
        name: f"--{name}={as_word(value)}"
        for name, value in flatten(options).items()
        if name not in plain or plain[name] != value
    }
    if options["pretrained"] is not None:  # which brings a preset along
        words["pretrained"] = f"--pretrained={as_word(options['pretrained'])}"
    for name, implied in OF_WEIGHTS.items():  # what the other one stands for need not be named
        others = OF_WEIGHTS.keys() - {name}
        if options[name]["class_path"] == implied and others <= words.keys():
            without = [word for key, word in words.items() if key != name]
            if yaml.safe_load(read_options(without)[1])[name]["class_path"] == implied:
                return without
    return [*words.values()]


@cache
def _defaults(pretrained: str | None, *classes: str) -> dict[str, Any]:
    """What options are unless given, the default classes with arguments of the chosen ones."""
    base = [] if pretrained is None else [f"--pretrained={as_word(pretrained)}"]
    defaults = yaml.safe_load(read_options(base)[1])
    for name, chosen in zip(CLASS_OPTIONS, classes, strict=True):
        try:
            own = yaml.safe_load(read_options([*base, f"--{name}={chosen}"])[1])[name]
        except UsageError:  # it has arguments that must be given
            own = {}
        defaults[name]["init_args"] = own.get("init_args", {})
    return defaults


def _require_memory(shape: Shape) -> None:
    """Refuse a network whose weights alone this machine cannot hold, before hours are spent."""
    of_layer = 4 * shape.width**2 + 2 * shape.width * shape.hidden
    size = 4 * (shape.layers * of_layer + shape.vocabulary * shape.width)
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > most:
        raise UsageError(
            f"width, layers: {shape.width} and {shape.layers} given; such weights take about "
            f"{size / 2**30:,.0f} GiB, and this machine has {most / 2**30:,.1f}"
        )


@cache
def config_parser() -> ArgumentParser:
    """The command line of `python -m pyro_meta.train`, arguments of classes included.

    It is dear to make and holds nothing of what it has parsed, so that all readings share one.
    """
    parser = train_parser(Config)
    parser.set_defaults(dict.fromkeys(CLASS_OPTIONS))  # `settle` names the default classes
    return parser
