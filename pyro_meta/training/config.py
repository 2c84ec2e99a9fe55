"""The options of a training run: one dataclass, whose docstrings are the command line's help."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

from pyro_meta.attention import find_mechanism
from pyro_meta.attention.chunks.mechanisms import CHUNK
from pyro_meta.data.corpus import Data, Text
from pyro_meta.data.recall import Recall  # noqa: F401 -- named on the command line
from pyro_meta.errors import UsageError
from pyro_meta.guides import DirichletGuide, Guide
from pyro_meta.guides.depth import find_depth_guide
from pyro_meta.inference.controllers import (
    Controller,
    Controllers,
    GateController,
    budget_controller,
)
from pyro_meta.inference.schedules import HardeningSchedule, KLSchedule, Optimisation, ShortFirst
from pyro_meta.models import BudgetDirichlet, CostDirichlet, DepthPrior, LanguageModel, Prior
from pyro_meta.network.measured_costs import timed_on
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import Transformer
from pyro_meta.terminal.commands import command_parser, explain, parse
from pyro_meta.terminal.naming import public_path
from pyro_meta.training.options import as_word, flatten, preset_names, settle

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Gates:
    """Depth gates: their prior, where they start, and when a hard one is open."""

    run: float = 0.3
    """Prior probability of running a block that costs as much as one with full attention does on
    average; only where gates pay a KL, as with beta."""
    strength: float = 1.0
    """How many pseudo-draws the prior over gates is worth; likewise."""
    start: float = 3.0
    """Logit of how far gates are open at the start."""
    penalty: float = 0.05
    """Nats per token that fully open gates cost; only where they pay no KL, as with point."""
    price: float = 0.0
    """Nats by which running a block must be likelier than passing it by, once gates are hard."""
    skip: float | None = None
    """Share of all pairs of token and layer to pass by, which the price is moved to meet from its
    value on (default: as it comes)."""

    def __post_init__(self) -> None:
        if not abs(self.price) < LARGEST:  # prior and guide see to the others
            raise UsageError(f"gate.price: {self.price} given; a finite number is allowed")

    def require_used(self, depth: str, used: Collection[str]) -> None:
        """Raise `UsageError` if an option that is not `used` with `--depth` is not its default."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name not in used and value != one.default:
                raise UsageError(
                    f"gate.{one.name}: {value} given, and it does nothing with depth: {depth}"
                )


@dataclass
class Config:
    """Train a routed language model with SVI."""

    data: Data = field(default_factory=Text)
    """Where text comes from: Text, with --data.path FILE_OR_FOLDER_OR_GLOB (default: Python's own
    documentation) and --data.tokens byte|char|FILE; Recall, look-ups with a known truth (see
    --data.help Recall); or the import path of your own Data."""
    prior: Callable[[Transformer], Prior] = CostDirichlet
    """Prior over routes: CostDirichlet (default, with --prior.rate, --prior.strength, --prior.cost;
    see --prior.help), another, or the import path of your own."""
    budget: float | None = None
    """Cost to meet with hard routes, in the unit of --prior.cost, where full attention is 1; the
    prior is then BudgetDirichlet, unless --prior names another that has a budget."""
    guide: Callable[[LanguageModel], Guide] = DirichletGuide
    """Posterior over routes: DirichletGuide (default, with --guide.hidden; see --guide.help),
    another, or the import path of your own."""
    mechanisms: list[str] = field(default_factory=lambda: ["full", "window", "linear"])
    """Ways to attend that each token chooses from: full, window, linear, linear_momentum (linear,
    of momenta carried through depth), chunk, chunk_sliding, chunk_sentence, chunk_learned, or
    import paths."""
    block: str = "residual"
    """What a layer is: residual (an ordinary pre-norm block), momentum (tokens carry a velocity
    through depth), plain_momentum (the same without a norm), or the import path of your own."""
    depth: str = "none"
    """How tokens may pass layers by: beta (a Beta posterior over depth gates), point (gates without
    a prior), none, or the import path of your own DepthGuide."""
    gate: Gates = Gates()
    """Depth gates; only with --depth."""
    window: int = 32
    """Keys that `window` sees, the token itself included."""
    chunk: int = CHUNK
    """Tokens in a chunk of `chunk` and `chunk_sliding`, about as many in `chunk_sentence` and
    `chunk_learned`."""
    context: int = 512
    """Tokens in a training sequence."""
    width: int = 64
    """Width of the residual stream."""
    layers: int = 4
    """Number of layers."""
    heads: int = 4
    """Query heads."""
    kv_heads: int | None = None
    """Key-value heads, a divisor of heads (default: as many)."""
    mlp_width: int | None = None
    """Hidden width of the MLP (default: 4 x width)."""
    dropout: float = 0.0
    """Dropout probability."""
    steps: int = 1000
    """Optimiser steps."""
    batch: int = 8
    """Sequences per step, over all devices."""
    accumulate: int = 1
    """Micro-batches per step and device whose gradients are summed."""
    short: ShortFirst = ShortFirst()
    """Shorter sequences at first."""
    optim: Optimisation = Optimisation()
    """AdamW and its schedule."""
    kl: KLSchedule = KLSchedule()
    """Weight of the KL term over training."""
    harden: HardeningSchedule = HardeningSchedule()
    """When soft routes turn hard."""
    seed: int = 0
    """Seed of parameters, order of data, draws and dropout."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device; auto: CUDA where there is one."""
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
        if self.seed >= 1 << 63:
            raise UsageError(f"seed: {self.seed} given; below 2**63 is allowed")
        if self.budget is not None and self.prior is CostDirichlet:
            self.prior = BudgetDirichlet
        at_least = {"steps": 1, "batch": 1, "accumulate": 1, "devices": 1, "checkpoint_every": 1}
        at_least |= {"validate_every": 0, "validation_tokens": 1, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UsageError(
                    f"{name}: {getattr(self, name)} given; at least {least} is allowed"
                )

        if self.context % self.short.factor:
            raise UsageError(
                f"context: {self.context} given; it must be divisible by short.factor = "
                f"{self.short.factor} (1: whole sequences from the start)"
            )
        if self.kl.begin >= self.optim.router_end < 1:
            raise UsageError(
                f"kl.begin: {self.kl.begin} given; below optim.router_end = "
                f"{self.optim.router_end} is allowed (once the guide stops the KL moves nothing)"
            )
        found = find_depth_guide(self.depth)
        of_kl = () if found is None else ("run", "strength") if found.pays_kl else ("penalty",)
        self.gate.require_used(
            self.depth, () if found is None else (*of_kl, "start", "price", "skip")
        )

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
            self.mlp_width,
            self.chunk,
        )
        is_asked = any(find_mechanism(name).reads_separators for name in self.mechanisms)
        network = Transformer(shape, self.mechanisms, self.block, separators() if is_asked else ())
        with timed_on(self.accelerator):
            prior = self.prior(network)
        make_depth, gate = find_depth_guide(self.depth), self.gate
        depth_prior = None
        if make_depth is not None:
            penalty = 0.0 if make_depth.pays_kl else gate.penalty
            depth_prior = DepthPrior(network, gate.run, gate.strength, penalty=penalty)
        model = LanguageModel(network, prior, depth_prior)
        guide = self.guide(model)
        if make_depth is not None:
            guide.depth = make_depth(model, start=gate.start)
            guide.gate_execution.price.fill_(gate.price)
        self.controllers(model, guide)  # refuses targets that nobody here can be moved to
        return model, guide

    def controllers(self, model: LanguageModel, guide: Guide) -> Controllers:
        """What moves prior and gates of what `build` gave towards `--budget` and `--gate.skip`.

        Raises
        ------
        UsageError
            A target is given that has nothing to move, or that cannot be met.
        """
        found: list[Controller] = []
        if (controller := budget_controller(model.prior, self.budget)) is not None:
            found.append(controller)
        if model.gated:
            layers = model.network.shape.layers
            found.append(GateController(guide.gate_execution, layers, self.gate.skip))
        return Controllers(found)


CLASS_OPTIONS: dict[str, tuple[type, str]] = {
    "data": (Data, "pyro_meta.Text"),
    "prior": (Prior, "pyro_meta.CostDirichlet"),
    "guide": (Guide, "pyro_meta.DirichletGuide"),
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
    words = settle(argv, default_classes())
    if _has_budget(words):
        words = settle(argv, default_classes(has_budget=True))
    parsed = parse(parser, words, bases)
    options: dict[str, Any] = yaml.safe_load(parser.dump(parsed, skip_unset=False))
    for name in CLASS_OPTIONS:
        options[name]["class_path"] = public_path(options[name]["class_path"])
    try:
        chosen = parser.instantiate(parsed)
        for name in ("config", "preset", "resume"):  # settled, and not part of the run
            options.pop(name, None)
            chosen.pop(name, None)
        config = Config(**vars(chosen))
    except (TypeError, ValueError) as error:
        raise UsageError(explain(error, parser, bases)) from error
    options.pop("out", None)  # whoever repeats the run names another folder
    return config, yaml.safe_dump(options, sort_keys=False)


def train_words(config_yaml: str) -> list[str]:
    """The shortest words from which `read_options` makes this configuration again."""
    options = yaml.safe_load(config_yaml)
    plain = flatten(_defaults(*(options[name]["class_path"] for name in CLASS_OPTIONS)))
    return [
        f"--{name}={as_word(value)}"
        for name, value in flatten(options).items()
        if name not in plain or plain[name] != value
    ]


@cache
def _defaults(*classes: str) -> dict[str, Any]:
    """What options are unless given, the default classes with arguments of the chosen ones."""
    defaults = yaml.safe_load(read_options([])[1])
    for name, chosen in zip(CLASS_OPTIONS, classes, strict=True):
        try:
            own = yaml.safe_load(read_options([f"--{name}={chosen}"])[1])[name]
        except UsageError:  # it has arguments that must be given
            own = {}
        defaults[name]["init_args"] = own.get("init_args", {})
    return defaults


def default_classes(has_budget: bool = False) -> dict[str, str]:
    """The class that each class option means unless it is named; a budget needs its own prior."""
    classes = {name: default for name, (_, default) in CLASS_OPTIONS.items()}
    return classes | ({"prior": "pyro_meta.BudgetDirichlet"} if has_budget else {})


def _has_budget(words: Sequence[str]) -> bool:
    """Whether settled words, files among them, ask for a budget."""
    files = (word.partition("=")[2] for word in words if word.startswith("--config="))
    return any(word.partition("=")[0] == "--budget" for word in words) or any(
        "budget" in yaml.safe_load(file) for file in files
    )


def config_parser() -> ArgumentParser:
    """The command line of `python -m pyro_meta.train`."""
    parser = command_parser(
        "train",
        "Train a transformer whose every token chooses how it attends.",
        usage="python -m pyro_meta.train [--data.path TEXT] [--steps N] [--out RUN] [options]",
    )
    parser.add_argument("--config", action="config", help="YAML file of options.")
    parser.add_argument("--preset", help=f"Named set of options: {', '.join(preset_names())}.")
    parser.add_argument("--resume", metavar="RUN", help="Run to take up again; no other option.")
    parser.add_class_arguments(Config)
    parser.set_defaults(dict.fromkeys(CLASS_OPTIONS))  # `settle` names the default classes
    return parser
