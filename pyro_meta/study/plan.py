"""From a study to its groups of runs: variants x grid, and the baselines that judge them.

A group is one setting under several seeds. Every routed group gets its baselines:

    mechanism   each of its mechanisms alone; whatever steers routes is left out
    fixed       its own loads, as a fixed mixture in every token
    random      its own loads, drawn anew for every token
    prior       routes from its prior: the router that learns nothing
    point       the router without a prior
    split       the learned static split: one route for each layer and group of heads
    periodic    every 2nd and every 4th layer full, the others windows

What would train the same thing twice is one group.
"""

import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from pyro_meta.contracts.admission import require_sound
from pyro_meta.errors import UsageError
from pyro_meta.study.description import WITH_LOADS, Study
from pyro_meta.terminal.mistakes import near
from pyro_meta.terminal.option_files import as_word
from pyro_meta.training.config import CLASS_OPTIONS, Config, read_options
from pyro_meta.training.options import Options, flatten, layered, preset, read_file
from pyro_meta.training.settings import DEFAULT_CLASSES

Kind = Literal[
    "variant", "mechanism", "fixed", "random", "prior", "point", "split", "periodic", "also"
]

LOAD_GUIDES = {"fixed": "FixedGuide", "random": "RandomGuide"}
"""Guides, with an argument `loads` [layers, mechanisms], of the baselines with learned loads."""

ROUTER = ("optim.router", "optim.router_begin", "optim.router_end")
"""Options of what learns to route."""

ROUTING = ("prior", "guide", "kl", "harden", "budget", *ROUTER)
"""Options that steer routes: without effect where there is one mechanism."""

PLAIN_GUIDES: dict[Kind, str] = {
    "prior": "PriorGuide",
    "point": "PointGuide",
    "split": "LoadGuide",
}
"""Guides of the baselines that take nothing from a run."""

LEARNED: tuple[Kind, ...] = ("point", "split")
"""Kinds of baselines that learn to route."""

NOT_SHARED: dict[Kind, tuple[str, ...]] = {
    "prior": ("guide", "kl", "budget", *ROUTER),
    "point": ("guide",),
    "split": ("guide",),
}
"""Options of a variant that its baseline does not take over, since they do nothing there.

Each has the very prior of its variant. One that learns from the KL of a guide says nothing where
there is none: `SAYS_LITTLE` stands in.
"""

OF_A_FREE_ROUTER = ("kl",)
"""Options that do nothing for a router without a prior, unless compute has a price."""

SAYS_LITTLE = "pyro_meta.CostDirichlet"
"""The prior beside a guide that pays no KL, where the variant's own would charge or learn from one:
it charges nothing."""

WITHOUT_LEARNING: Options = {"target": "text", "budget": None, "tighten": None, "steps": 1}
"""What holds of a pretrained network, which is as it is, where no guide learns either: one step
looks at it."""

SPLIT_PRESET = "head_split"
"""Says how the static split of a pretrained network is learned."""

PERIODS = (2, 4)
"""Of the periodic baselines: every so many-th layer is full."""

MOST_LETTERS = 120
"""Of a label in the name of a folder: 255 are allowed, and more is added to it now and then."""

MOST_NAMED = 12
"""Settings that an error names."""

Loads = list[list[float]]
"""Share of each mechanism in each layer."""


@dataclass
class Group:
    """One setting under several seeds.

    Attributes
    ----------
    label
        What people read, unique in the study.
    kind
        `variant`, or what kind of baseline.
    layers
        Its options, without seed; of a baseline with learned loads, without guide.
    config
        Its resolved options; of a baseline with learned loads, under equal loads.
    seeds
        Seeds to run.
    is_routed
        There are several mechanisms, and a guide that learns.
    has_posterior
        It is routed, and its guide is a distribution that can collapse to its prior.
    learns_from_kl
        Its prior does.
    is_charged
        Compute has a price beside the prior.
    can_be_followed
        It has one, and its routes are choices: a guide may have the price in its posterior.
    depth
        Layers that are routed.
    loads_of
        The group whose loads this one takes, seed by seed.
    baselines
        The groups that judge this one, and as what. A variant may be another's baseline.
    reference
        The setting of the study that this one is compared to; None of itself and of baselines.
    """

    label: str
    kind: Kind
    layers: list[Options]
    config: Config
    config_yaml: str
    seeds: list[int]
    is_routed: bool
    has_posterior: bool
    learns_from_kl: bool
    is_charged: bool
    can_be_followed: bool
    depth: int
    loads_of: "Group | None" = None
    baselines: "list[tuple[Kind, Group]]" = field(default_factory=list)
    reference: "Group | None" = None

    def name(self, seed: int) -> str:
        """Name of the run's folder: of plain letters, and short enough for any disk."""
        plain = re.sub(r"[^A-Za-z0-9._=+-]+", "-", self.label).strip("-") or "run"
        if len(plain) > MOST_LETTERS:
            digest = hashlib.sha256(self.label.encode(errors="backslashreplace")).hexdigest()
            plain = f"{plain[:MOST_LETTERS]}-{digest[:8]}"
        return f"{plain}-s{seed}"

    def run_yaml(self, seed: int, loads: Loads | None = None) -> str:
        """Configuration of one run; `loads` are those of the run that it takes after."""
        config_yaml = self.config_yaml
        if loads is not None:
            config_yaml = settle_layers([*self.layers, _load_guide(self.kind, loads)])[1]
        options = yaml.safe_load(config_yaml)
        options["seed"] = seed
        return yaml.safe_dump(options, sort_keys=False)


def settle_layers(layers: Iterable[Options]) -> tuple[Config, str]:
    """The configuration that layers of options give; raises `UsageError` as `read_options`."""
    return read_options(layered(layers, DEFAULT_CLASSES))


def expand(study: Study) -> list[Group]:
    """All groups of a study, variants first, each with the baselines that judge it.

    Every option is parsed and every model built once, so that mistakes show before the first run.

    Raises
    ------
    UsageError
        Options that are wrong or do not fit each other; the message names the group.
    """
    groups = _Groups()
    settle_layers(study.base)  # mistakes of the base, before another class can hide them
    own_layers = list(_variants(study))
    variants = {label: groups.add("variant", label, [*study.base, *own], study.seeds)
                for label, own in own_layers}  # fmt: skip
    _require_known(study, variants)
    for label, own in own_layers:
        if variants[label].is_routed:
            _add_baselines(groups, study, variants[label], own)
    seeds = _baseline_seeds(study, "also")
    for name, options in study.baselines.also.items():
        also = groups.add("also", name, [*study.base, options], seeds)
        for group in variants.values():
            group.baselines.append(("also", also))
    for group in groups.all:
        group.baselines = [judge for judge in group.baselines if judge[1] is not group]
    _distinguish(groups.all)
    reference = _reference(study, variants)
    for group in variants.values():
        group.reference = None if group is reference else reference
    return groups.all


class _Groups:
    """The groups so far; the same configuration is the same group."""

    def __init__(self) -> None:
        self.all: list[Group] = []

    def add(
        self,
        kind: Kind,
        label: str,
        layers: list[Options],
        seeds: list[int],
        loads_of: Group | None = None,
    ) -> Group:
        parsed = layers
        if loads_of is not None:
            K, L = len(loads_of.config.mechanisms), loads_of.depth
            parsed = [*layers, _load_guide(kind, [[1 / K] * K] * L)]
        try:
            config, config_yaml = settle_layers([*parsed, {"seed": 0}])
            model, guide = config.build(2, lambda: [0])
            require_sound(model, guide)
            config.controllers(model, guide).require_reachable()
        except UsageError as error:
            raise UsageError(f"{label}: {error}") from error
        for group in self.all:
            if group.config_yaml == config_yaml and group.loads_of is loads_of:
                group.seeds += [seed for seed in seeds if seed not in group.seeds]
                return group
        learns = any(parameter.requires_grad for parameter in guide.parameters())
        is_routed = learns and len(config.mechanisms) > 1
        learns_from_kl = model.prior.learns_from_kl
        group = Group(
            label,
            kind,
            layers,
            config,
            config_yaml,
            list(seeds),
            is_routed,
            is_routed and guide.pays_kl,
            learns_from_kl,
            model.compute is not None,
            model.compute is not None and model.prior.of_choices,
            model.network.shape.layers,
            loads_of,
        )
        self.all.append(group)
        return group


def _variants(study: Study) -> Iterable[tuple[str, list[Options]]]:
    """Label and layers over the base of every variant and combination of the grid."""
    grid = dict(sorted(study.grid.items(), key=lambda axis: "." in axis[0]))  # classes first
    for name, options in (study.variants or {"": {}}).items():
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            parts = [_describe(option, value) for option, value in point.items()
                     if len(grid[option]) > 1]  # fmt: skip
            label = " ".join([name] * bool(name) + parts) or "routed"
            yield label, [options, *({option: value} for option, value in point.items())]


def _describe(option: str, value: Any) -> str:
    """A value of the grid in a label: classes and lists speak for themselves."""
    if isinstance(value, Mapping) and "class_path" in value:
        flat = flatten({option: value})
        arguments = [f"{key.rpartition('.')[2]}={as_word(v)}" for key, v in list(flat.items())[1:]]
        return " ".join([flat[option].rpartition(".")[2], *arguments])
    if isinstance(value, list):
        return "+".join(str(part).rpartition(".")[2] if isinstance(part, str) else str(part)
                        for part in value)  # fmt: skip
    if option in CLASS_OPTIONS:
        return str(value).rpartition(".")[2]
    return f"{option}={as_word(value)}"


def _add_baselines(groups: _Groups, study: Study, group: Group, own: list[Options]) -> None:
    chosen = study.baselines
    is_kept_whole = group.config.pretrained is not None

    def add(
        kind: Kind, label: str, layers: list[Options], seeds: list[int], of: Group | None = None
    ) -> None:
        if is_kept_whole and kind not in LEARNED:
            layers = [*layers, WITHOUT_LEARNING]
        if group.config.optim.refit and kind not in LEARNED:
            layers = [*layers, _without_refit(group)]
        group.baselines.append((kind, groups.add(kind, label, layers, seeds, of)))

    if chosen.mechanisms:
        shared = [_without(layer, (*ROUTING, "mechanisms")) for layer in [*study.base, *own]]
        for mechanism in group.config.mechanisms:
            alone = {"mechanisms": [mechanism], "guide": "PriorGuide"}
            label = f"{mechanism.rpartition('.')[2]} alone"
            add("mechanism", label, [*shared, alone], _baseline_seeds(study, "mechanisms"))
    if chosen.periodic and {"full", "window"} <= set(group.config.mechanisms):
        shared = [_without(layer, (*ROUTING, "mechanisms")) for layer in [*study.base, *own]]
        for every in PERIODS:
            if every <= group.depth:
                periodic: Options = {"class_path": "PeriodicGuide", "init_args": {"every": every}}
                label = f"every {'2nd' if every == 2 else f'{every}th'} layer full"
                both: Options = {"mechanisms": ["full", "window"], "guide": periodic}
                add("periodic", label, [*shared, both], _baseline_seeds(study, "periodic"))
    is_wanted: dict[Kind, bool] = {
        "prior": chosen.prior,
        "point": chosen.point,
        "split": chosen.split,
    }
    for kind, guide in PLAIN_GUIDES.items():
        if is_wanted[kind]:
            shared = _shared(study, own, kind, group)
            label = "static split" if kind == "split" else guide
            steered: Options = {"guide": guide}
            if is_kept_whole and kind == "split" and group.can_be_followed:
                steered = _split_by_heads()
            add(kind, label, [*shared, steered], _baseline_seeds(study, kind))
    with_loads: tuple[tuple[Kind, bool | list[str]], ...]
    with_loads = ("fixed", chosen.fixed), ("random", chosen.random)
    for kind, wanted in with_loads:
        if wanted is True or (wanted and (group.label in wanted or _stem(group, study) in wanted)):
            unused = ("guide", "prior", "kl", "budget", *ROUTER)
            shared = [_without(layer, unused) for layer in [*study.base, *own]]
            own_seeds = [s for s in _baseline_seeds(study, kind) if s in group.seeds]
            add(kind, f"{kind} loads of {group.label}", shared, own_seeds, group)


def _without_refit(group: Group) -> Options:
    """Options of what has no routes to refit: its network takes as many steps as the group's."""
    return {"optim.refit": 0, "steps": group.config.steps_before_refit}


def _split_by_heads() -> Options:
    """The options of `SPLIT_PRESET`, but for the preset that it stands on."""
    options = read_file(preset(SPLIT_PRESET), "preset")
    return {name: value for name, value in options.items() if name != "preset"}


def _shared(study: Study, own: list[Options], kind: Kind, group: Group) -> list[Options]:
    """The base, and what a baseline takes over from a variant."""
    unused = NOT_SHARED[kind]
    if kind == "point" and not group.is_charged:
        unused += OF_A_FREE_ROUTER
    layers = [*study.base, *(_without(layer, unused) for layer in own)]
    prior = yaml.safe_load(group.config_yaml)["prior"]  # whichever names it, or stands for it
    is_free = kind == "point" and not group.is_charged
    if is_free or (group.learns_from_kl and kind != "split"):
        prior = {"class_path": SAYS_LITTLE, "init_args": {}}
    return [*(_without(layer, ("prior",)) for layer in layers), {"prior": prior}]


def _without(layer: Options, names: Sequence[str]) -> Options:
    """The options of a layer that are none of those named, nor parts of them."""

    def is_meant(option: str) -> bool:
        parts = option.split(".")
        return any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))

    kept: Options = {}
    for key, value in layer.items():
        if is_meant(key):
            continue
        if isinstance(value, Mapping) and "class_path" not in value:
            value = {k: v for k, v in value.items() if not is_meant(f"{key}.{k}")}
        kept[key] = value
    return kept


def _load_guide(kind: str, loads: Loads) -> Options:
    return {"guide": {"class_path": LOAD_GUIDES[kind], "init_args": {"loads": loads}}}


def _baseline_seeds(study: Study, kind: str) -> list[int]:
    return study.baselines.seeds.get(kind, study.seeds)


def _stem(group: Group, study: Study) -> str:
    """The variant whose name begins the label."""
    return next((name for name in study.variants if f"{group.label} ".startswith(f"{name} ")), "")


def _reference(study: Study, variants: Mapping[str, Group]) -> Group:
    """The setting that a study names, else the first."""
    if study.reference is None:
        return next(iter(variants.values()))
    known = {**variants, **{group.label: group for group in variants.values()}}
    if study.reference not in known:
        raise UsageError(
            f"reference: {study.reference!r} given; {_allowed(known)}{near(study.reference, known)}"
        )
    return known[study.reference]


def _allowed(names: Collection[str]) -> str:
    """The names of settings in a line; of many the first."""
    shown, left = list(names)[:MOST_NAMED], len(names) - MOST_NAMED
    more = f" and {left} more, which --dry_run true lists" if left > 0 else ""
    return f"allowed are {', '.join(shown)}{more}"


def _require_known(study: Study, variants: Mapping[str, Group]) -> None:
    for kind in WITH_LOADS:
        wanted = getattr(study.baselines, kind)
        for name in wanted if isinstance(wanted, list) else []:
            if name not in variants and name not in study.variants:
                known = dict.fromkeys([*study.variants, *variants])
                raise UsageError(
                    f"baselines: {kind}: {name!r} given; {_allowed(known)}{near(name, known)}"
                )


def _differing(flats: Sequence[Options]) -> list[str]:
    """The names of flat options that are not the same in all."""
    names = {name: None for flat in flats for name in flat}
    return [name for name in names if len({as_word(flat.get(name)) for flat in flats}) > 1]


def _distinguish(groups: list[Group]) -> None:
    """Add to labels that several groups share the options in which those differ."""
    by_label: dict[str, list[Group]] = {}
    for group in groups:
        by_label.setdefault(group.label, []).append(group)
    for label, alike in by_label.items():
        if len(alike) == 1:
            continue
        flats = [flatten(yaml.safe_load(group.config_yaml)) for group in alike]
        differing = _differing(flats)
        classes = [name for name in differing if name in CLASS_OPTIONS]
        for group, flat in zip(alike, flats, strict=True):
            peers = [one for one in flats if all(one[name] == flat[name] for name in classes)]
            told = [  # arguments of a class tell apart those that have it
                name
                for name in differing
                if name.partition(".")[0] not in classes or name in (*classes, *_differing(peers))
            ]
            parts = [_describe(name, flat[name]) for name in told if name in flat]
            group.label = " ".join([label, *parts])
    seen: set[str] = set()
    for group in groups:
        numbers = (f"{group.label} ({i})" for i in itertools.count(2))
        label = (
            group.label if group.label not in seen else next(n for n in numbers if n not in seen)
        )
        group.label = label
        seen.add(label)
