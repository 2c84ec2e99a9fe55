"""The options of a training run by name, with their help; nothing here needs PyTorch.

So `--help` and a mistyped option are answered at once. `pyro_meta.training.config` adds what takes
the classes that a run is built of.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

from jsonargparse import ArgumentParser

from pyro_meta.errors import UsageError
from pyro_meta.inference.schedules import (
    LARGEST,
    HardeningSchedule,
    KLSchedule,
    Optimisation,
    ShortFirst,
    Tightening,
    WarmStart,
)
from pyro_meta.terminal.commands import TRUST_HELP, command_parser
from pyro_meta.terminal.help import reword
from pyro_meta.training.options import Known, preset_names

DEFAULT_CLASSES = {
    "data": "pyro_meta.Text",
    "prior": "pyro_meta.LoadCategorical",
    "guide": "pyro_meta.CategoricalGuide",
}
"""Options whose value is a class, and the class that each means unless one is named."""
OF_WEIGHTS = {"prior": "pyro_meta.CostDirichlet", "guide": "pyro_meta.DirichletGuide"}
"""What prior and guide mean instead where the other one is named, and is of weights."""


ALLOWED: dict[str, tuple[int, int]] = {
    "steps": (1, 100_000_000),
    "batch": (1, 1_000_000),
    "accumulate": (1, 1_000_000),
    "devices": (1, 4096),
    "checkpoint_every": (1, 1_000_000_000),
    "validate_every": (0, 1_000_000_000),
    "validation_tokens": (1, 1_000_000_000_000),
    "seed": (0, (1 << 63) - 1),
    "window": (1, 1 << 24),
    "sinks": (0, 1 << 24),
    "chunk": (1, 1 << 24),
    "context": (1, 1 << 24),
    "width": (1, 1 << 16),
    "heads": (1, 1 << 12),
    "kv_heads": (1, 1 << 12),
    "mlp_width": (1, 1 << 20),
    "layers": (1, 1000),
}
"""Least and most of whole numbers: beyond, a machine would be at work for nothing."""
OF_OWN_NETWORK = (
    "block", "depth", "chunk", "width", "layers", "heads", "kv_heads", "mlp_width", "dropout",
    "compile",
)  # fmt: skip
"""Options that make our own transformer, and say nothing of a pretrained one."""
MOST_TOKENS = 1 << 26
"""In a step, over all devices."""


@dataclass(frozen=True)
class Gates:
    """Depth gates: their prior, where they start, and when a hard one is open."""

    run: float = 0.3
    """Probability, between 0 and 1, that the prior gives to running a layer of average cost with
    full attention; below 0.5, layers that cost more are run less. Only with --depth beta."""
    strength: float = 1.0
    """How firmly the prior over gates is held, as if it had been seen in so many examples. Only
    with --depth beta."""
    start: float = 3.0
    """How far gates are open when training begins, as a logit: 0 is half open, 3 is 95% open."""
    penalty: float = 0.05
    """Loss added for open gates: nats per token (natural-log units) if all are fully open. Only
    with --depth point, which has no prior."""
    price: float = 0.0
    """Once gates are hard (run or skip, see --harden), a token runs a layer if ln(P(run) / P(skip))
    is above this; the higher, the more layers are skipped."""
    skip: float | None = None
    """Share of all pairs of token and layer to skip once gates are hard; --gate.price is then moved
    until the share is met (default: no target, the price stays)."""

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


@dataclass(frozen=True)
class Readout:
    """What is drawn from the posterior at the end: each draw is a forward pass."""

    draws: int = 100
    """Draws of all routes of some held-out text, at least 2."""
    tokens: int = 4096
    """Tokens of that text at most: whole sequences, if one fits."""
    block_draws: int = 256
    """Draws of short blocks of tokens, for importance weights; 0: none are weighed, else at least
    32."""

    def __post_init__(self) -> None:
        for name, least in (("draws", 2), ("tokens", 1)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"readout.{name}: {getattr(self, name)} given; at least {least} is allowed"
                )
        if self.block_draws < 0 or 0 < self.block_draws < 32:
            raise UsageError(
                f"readout.block_draws: {self.block_draws} given; 0, or at least 32, is allowed"
            )


@dataclass
class Settings:
    """What to train, on what, and how.

    `data`, `prior` and `guide` are classes: `Config` says of which kind, and their defaults.
    """

    data: Any = None
    """What to train on. Text (default): UTF-8 text; --data.path names a file, a folder or a glob
    (default: Python's own documentation), --data.tokens how to cut it: byte (default), char or a
    tokenizer.json, and --data.validation the share at its end that is held out (default: 0.1).
    HuggingFace: a dataset of Hugging Face's datasets, on disk, of the hub or streamed; --data.path
    names it, and --data.column its column of text. Recall: made-up look-up tasks whose answers are
    known. Or the import path of a class of your own, such as my_file.MyData. --data.help NAME lists
    the options of each."""
    prior: Any = None
    """Which routes to favour before the text is read (a route is how a token attends in a layer):
    LoadCategorical (default; what the layer does as a rule, at a price) and CostCategorical (what
    costs less), of choices, where a token runs one mechanism as the guide learns; of weights, where
    it mixes all, CostDirichlet (default beside a guide of weights), LoadDirichlet,
    SymmetricDirichlet (none), LearnedDirichlet (learns which), LogisticNormalPrior, PaperDirichlet;
    or the import path of your own. --prior.help NAME lists the options of each, such as
    --prior.rate."""
    pretrained: str | None = None
    """Causal language model of transformers to route, a folder or a name in the hub's cache. Its
    weights stay as they are; --preset pretrained holds unless another is named. Sizes of the
    network (--width, --layers, --heads, --kv_heads, --mlp_width) and tokens are then its own."""
    target: Literal["text", "model"] = "text"
    """What routes are to predict: the next token of the text, or (model) what the network itself
    says of it when every token attends fully, which is far less noisy. The latter is for
    --pretrained, whose weights stay as they are."""
    budget: float | None = None
    """Cost of attention to end at, once routes are hard (see --harden): 1 is full attention in
    every layer and token, 0.5 costs half, in the unit of --prior.cost. With any prior: the price of
    compute beside it is moved until the budget is met (default: no budget)."""
    tighten: Tightening = Tightening()
    """How the budget falls to --budget (only with one)"""
    guide: Any = None
    """Network that reads the text so far and says how likely each route is, and how sure it is (the
    posterior over routes): CategoricalGuide (default), of choices; of weights, DirichletGuide
    (default beside a prior of weights), ConcreteGuide, LogisticNormalGuide, PaperGuide,
    TokenTableGuide; to compare with, LoadGuide (one route for each layer), PointGuide (a router
    that is never unsure), PriorGuide, LayersGuide, PeriodicGuide, FixedGuide and RandomGuide; or
    the import path of your own. --guide.help NAME lists the options of each, such as
    --guide.hidden."""
    mechanisms: list[str] = field(default_factory=lambda: ["full", "window", "linear"])
    """Ways to attend that tokens mix at first, and each token later picks from: full (all earlier
    tokens), window (the nearest ones), linear (a running summary of all of them), linear_momentum
    (the same, of momenta that tokens carry from layer to layer), chunk, chunk_sliding,
    chunk_sentence and chunk_learned (near tokens one by one, older ones in summarised chunks), or
    import paths of your own."""
    block: str = "residual"
    """What a layer is: residual (an ordinary pre-norm transformer block), momentum (tokens carry a
    velocity from layer to layer), plain_momentum (the same without a norm on the velocity), or the
    import path of your own."""
    depth: str = "none"
    """Whether tokens may skip layers, by a gate in each layer but the first: none, beta (random
    gates that are held to a prior), point (plain gates with a penalty), or the import path of your
    own DepthGuide."""
    gate: Gates = Gates()
    """Skipping layers (only with --depth)"""
    window: int = 32
    """Tokens that window attention sees, the token itself included."""
    sinks: int = 0
    """First tokens of the text that window attention sees beside those (attention sinks)."""
    chunk: int = 16
    """Tokens in a chunk of the chunk mechanisms; of chunk_sentence and chunk_learned, about as
    many on average."""
    context: int = 512
    """Tokens in a whole training sequence; at first sequences are shorter (see --short)."""
    width: int = 64
    """Width of the network: how many numbers stand for a token between layers."""
    layers: int = 4
    """Number of layers."""
    heads: int = 4
    """Attention heads in a layer; width must be divisible by twice as many."""
    kv_heads: int | None = None
    """Heads of keys and values, each shared by a group of heads; must divide heads (default: as
    many as heads, none is shared)."""
    groups: Literal["one", "kv"] = "one"
    """Which heads take a route together: all heads of a layer (one), or those of each key-value
    head (kv)."""
    mlp_width: int | None = None
    """Hidden width of the feed-forward part of a layer (default: 4 x width)."""
    dropout: float = 0.0
    """Share of activations that training drops at random, from 0 to below 1."""
    steps: int = 1000
    """Optimiser steps to train for."""
    batch: int = 8
    """Whole sequences in a step, over all devices together."""
    accumulate: int = 1
    """Parts that each device cuts its share of a batch into, to save memory; their gradients are
    summed before the step."""
    short: ShortFirst = ShortFirst()
    """Short sequences first"""
    warm: WarmStart = WarmStart()
    """What the guide learns before training (only with --pretrained)"""
    optim: Optimisation = Optimisation()
    """The optimiser, AdamW, and its learning rates"""
    kl: KLSchedule = KLSchedule()
    """Weight of the KL term, which holds the guide to the prior, as training goes on"""
    harden: HardeningSchedule = HardeningSchedule()
    """When a token stops mixing mechanisms and uses one alone (a hard route)"""
    seed: int = 0
    """Seed of all randomness: first parameters, order of the data, draws of routes, dropout."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto is a CUDA GPU where there is one, else the CPU."""
    devices: int = 1
    """Processes to train with, one device each."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: the whole network (ddp), or a share of every layer
    (fsdp), which it gathers when that layer runs, for a network too large for one device."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Arithmetic: 32-true (single precision), bf16-mixed (faster on a GPU), or auto: bf16-mixed on
    CUDA, else 32-true. A pretrained model is then in bfloat16, by auto also on a processor that has
    instructions for it."""
    compile: bool = False
    """Compile the layers with torch.compile: a slow start, then faster steps."""
    validate_every: int = 200
    """Steps from one validation to the next; 0: only at the end."""
    validation_tokens: int = 65_536
    """At most so many held-out tokens are read in a validation."""
    readout: Readout = Readout()
    """What is drawn from the posterior at the end"""
    checkpoint_every: int = 200
    """Steps between checkpoints, at least 1; --resume goes on from the last one."""
    out: Path | None = None
    """Folder to write the run to; it must not exist yet (default: a fresh one under runs/)."""
    debug: bool = False
    """Check every shape, support and value (by Pyro): slower, but finds mistakes in classes of your
    own."""

    def __post_init__(self) -> None:
        for name, (least, most) in ALLOWED.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name}: {value} given; at least {least} is allowed")
            if value is not None and value > most:
                raise UsageError(f"{name}: {_of_size(value)} given; at most {most:,} is allowed")
        if (tokens := self.batch * self.context) > MOST_TOKENS:
            raise UsageError(
                f"batch, context: {self.batch} x {self.context} = {tokens:,} tokens in a step "
                f"given; at most {MOST_TOKENS:,} are allowed"
            )
        if self.context % self.short.factor:
            raise UsageError(
                f"context: {self.context} given; it must be divisible by short.factor = "
                f"{self.short.factor} (1: whole sequences from the start)"
            )
        if self.budget is None and self.tighten != Tightening():
            raise UsageError("tighten: it is given without budget, and does nothing; add --budget")
        self._require_pretrained()
        if self.strategy == "fsdp" and self.optim.second_order:
            raise UsageError(
                "optim.second_order: true given, which goes backward within the forward pass, and "
                "layers that are shared out cannot; --strategy ddp is allowed"
            )
        if self.strategy == "fsdp" and self.compile:
            raise UsageError(
                "compile: true given, and layers that are shared out are gathered as they run; "
                "--strategy ddp is allowed"
            )
        if self.optim.refit > self.steps:
            raise UsageError(
                f"optim.refit: {self.optim.refit} given; at most steps = {self.steps}, of which "
                "they are the last, is allowed"
            )
        if self.kl.begin >= self.optim.router_end < 1:
            raise UsageError(
                f"kl.begin: {self.kl.begin} given; below optim.router_end = "
                f"{self.optim.router_end} is allowed (once the guide stops the KL moves nothing)"
            )

    @property
    def steps_before_refit(self) -> int:
        """Steps in which the network learns."""
        return self.steps - self.optim.refit

    def progress(self, step: int) -> float:
        """The share of training that is done after `step` steps; above 1 while it refits."""
        return self.optim.progress(step, self.steps)

    def _require_pretrained(self) -> None:
        """Raise `UsageError` for options that do not go with --pretrained, or only with it."""
        if self.pretrained is None:
            if self.target == "model":
                raise UsageError(
                    "target: model given, and the network learns; text is allowed without "
                    "--pretrained"
                )
            if self.warm != WarmStart():
                raise UsageError("warm: it is given, and does nothing without --pretrained")
            return
        if self.strategy == "fsdp":
            raise UsageError(
                "strategy: fsdp given, and the network of --pretrained is not shared out: its "
                "weights stay as they are, and take no gradients or moments; ddp is allowed"
            )
        if self.optim.refit:
            raise UsageError(
                f"optim.refit: {self.optim.refit} given, and the network of --pretrained is frozen "
                "from the start; more --steps are allowed"
            )
        if self.target == "model" and "full" not in self.mechanisms:
            raise UsageError(
                "target: model given, which attends fully, and full is not among --mechanisms"
            )
        for one in fields(Settings):
            value = getattr(self, one.name)
            if one.name in OF_OWN_NETWORK and value != one.default:
                raise UsageError(
                    f"{one.name}: {value} given, and it does nothing with --pretrained, whose "
                    "network is as it is"
                )


def _of_size(value: int) -> str:
    """A number too long to be read by its digits."""
    return f"{value:,}" if value < 10**15 else f"a number of {len(str(value))} digits"


def known_options(of: type = Settings) -> Known:
    """The options of a run, except those whose value is a class."""
    kinds: dict[str, Any] = {}
    for one in fields(of):
        if is_dataclass(one.type):
            kinds |= {f"{one.name}.{name}": kind for name, kind in known_options(
                cast(type, one.type)).kinds.items()}  # fmt: skip
        elif one.name not in DEFAULT_CLASSES:
            kinds[one.name] = one.type
    return Known(kinds)


def train_parser(options: type[Settings] = Settings) -> ArgumentParser:
    """The command line of `python -m pyro_meta.train`.

    Of `Settings` it knows the name and the help of every option but the arguments of classes; of
    `pyro_meta.training.config.Config` it reads them all.
    """
    parser = command_parser(
        "train",
        "Train a transformer whose every token chooses how it attends. Without options: a small "
        "network on Python's own documentation, minutes on a CPU.",
        has_own_debug=True,
        usage="python -m pyro_meta.train [--data.path TEXT] [--steps N] [--out RUN] [options]",
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="YAML file of options, by the names below; what comes later on the command line wins.",
    )
    presets = ", ".join(preset_names())
    parser.add_argument(
        "--preset", help=f"Named set of options: {presets} (default: none of them)."
    )
    parser.add_argument(
        "--resume", metavar="RUN",
        help="Folder of a run to go on with, as it was begun; --steps N trains it longer, and "
        "--devices N with another number of processes.",
    )  # fmt: skip
    parser.add_argument(
        "--from", metavar="RUN",
        help="Folder of a run whose weights a new one begins with; its options hold unless others "
        "are given, such as --data.path.",
    )  # fmt: skip
    parser.add_argument(
        "--trust", type=bool, default=False,
        help="With --resume or --from. " + TRUST_HELP,
    )  # fmt: skip
    parser.add_argument(
        "--logger", metavar="NAME", type=str,
        help="Log the figures of every step besides: csv, tensorboard, or the import path of "
        "another logger of Fabric (default: metrics.jsonl alone).",
    )  # fmt: skip
    parser.add_class_arguments(options)
    groups = (f"--{one.name}" for one in fields(options) if is_dataclass(one.type))
    reword(parser, dict.fromkeys(groups, "YAML file of the options below, by last names."), "FILE")
    printing = "Print all options with their values, as a file for --config, and exit."
    reword(parser, {"--print_config": printing}, "")
    return parser
