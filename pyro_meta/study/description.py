"""What a person asks a study for: options, a grid over them, variants, seeds and baselines."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_meta.errors import UsageError
from pyro_meta.terminal.mistakes import near
from pyro_meta.terminal.option_files import Plain, as_word, dumps
from pyro_meta.training.options import Options

KEYS = ("base", "grid", "variants", "seeds", "baselines", "reference")
"""Keys of the file of a study."""

KINDS = ("mechanisms", "fixed", "random", "prior", "point", "split", "periodic", "also")
"""Kinds of baselines."""

WITH_LOADS = ("fixed", "random")
"""Baselines that take the loads of a routed group, all of them or those of some variants."""

MOST_RUNS = 10_000
"""Runs of a study, besides its baselines."""

OF_A_RUN = ("out", "resume", "config", "preset", "from", "trust")
"""Options of `train` that say how to run, and not what."""


@dataclass(frozen=True)
class Baselines:
    """Which baselines a study has."""

    mechanisms: bool = True
    """Each mechanism alone."""
    fixed: bool | list[str] = True
    """The fixed mixture with the learned loads: of every routed group, or of those named."""
    random: bool | list[str] = True
    """Random routes with the learned loads: of every routed group, or of those named."""
    prior: bool = True
    """Routes from the prior."""
    point: bool = True
    """The router without a prior."""
    split: bool = True
    """The learned static split: one route for each layer and group of heads."""
    periodic: bool = True
    """Every 2nd and every 4th layer full, the others windows."""
    seeds: dict[str, list[int]] = field(default_factory=dict)
    """Kind of baseline -> its seeds, out of the study's (default: all of them)."""
    also: dict[str, Options] = field(default_factory=dict)
    """More baselines: named sets of options over the base."""


@dataclass(frozen=True)
class Study:
    """What to compare, before it is taken apart into runs."""

    base: list[Options]
    """Layers of training options that all runs share."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted training options and the values of each: all combinations are run."""
    variants: dict[str, Options] = field(default_factory=dict)
    """Named sets of options, each crossed with the grid."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    baselines: Baselines = Baselines()
    reference: str | None = None
    """Label of the setting that the others are compared to (default: the first)."""

    @classmethod
    def read(cls, given: Mapping[str, Any], source: str) -> "Study":
        """The study that a mapping describes; `source` names it in errors.

        Raises
        ------
        UsageError
            An unknown key, or a value of the wrong kind.
        """
        _require_keys(given, KEYS, source)
        given = {key: value for key, value in given.items() if value is not None}
        base = given.get("base", {})
        layers = base if isinstance(base, list) else [base]
        for layer in layers:
            _require_options(layer, f"{source}: base", may_seed=True)
        grid = dict(_require_mapping(given.get("grid", {}), f"{source}: grid"))
        variants = _require_mapping(given.get("variants", {}), f"{source}: variants")
        named = {
            str(name): _require_options(options or {}, f"{source}: variants: {name}")
            for name, options in variants.items()
        }
        seeds = given.get("seeds")
        if "seed" in grid:
            if seeds is not None:
                raise UsageError(f"{source}: seeds and grid.seed are both given; one is allowed")
            seeds = grid.pop("seed")
        if seeds is None:
            fixed = [layer["seed"] for layer in layers if layer.get("seed") is not None]
            seeds = fixed[-1:] or [0, 1, 2]
        for option, values in grid.items():
            _require_axis(option, values, source)
            grid[option] = list({as_word(value): value for value in values}.values())
        seeds = read_seeds(seeds, f"{source}: seeds")
        _require_few(grid, named, seeds, source)
        baselines = _read_baselines(given.get("baselines", True), seeds, source)
        reference = _read_reference(given.get("reference"), source)
        return cls(layers, grid, named, seeds, baselines, reference)

    def as_yaml(self) -> str:
        """A file from which `read` makes this study again."""
        chosen = {key: value for key, value in vars(self.baselines).items() if value is not None}
        return dumps(vars(self) | {"baselines": chosen})


def _require_few(
    grid: Mapping[str, list[Any]], variants: Collection[str], seeds: list[int], source: str
) -> None:
    """Refuse more runs than anybody trains, before they are written out."""
    runs = math.prod(map(len, grid.values())) * max(1, len(variants)) * len(seeds)
    if runs > MOST_RUNS:
        raise UsageError(
            f"{source}: {runs:,} runs of grid, variants and seeds are asked for; at most "
            f"{MOST_RUNS:,} are allowed"
        )


def read_seeds(given: Any, source: str) -> list[int]:
    """Seeds from a list, or from how many there are."""
    if _is_count(given) and given > MOST_RUNS:
        raise UsageError(f"{source}: {given} given; at most {MOST_RUNS:,} are allowed")
    seeds = list(range(given)) if _is_count(given) else given
    if not isinstance(seeds, list) or not all(_is_count(seed) for seed in seeds) or not seeds:
        raise UsageError(f"{source}: {_shown(given)} given; a number of seeds or a list is allowed")
    if (largest := max(seeds)) >= 1 << 63:
        raise UsageError(f"{source}: {_shown(largest)} given; below 2**63 is allowed")
    return list(dict.fromkeys(seeds))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(value: Any) -> str:
    """A value for an error, shortened."""
    text = value if isinstance(value, str) else as_word(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _read_reference(given: Any, source: str) -> str | None:
    if given is not None and not isinstance(given, str):
        raise UsageError(
            f"{source}: reference: {_shown(given)} given; the name of a setting is needed, as the "
            "table has it (in quotes, if need be)"
        )
    return given


def _read_baselines(given: Any, seeds: list[int], source: str) -> Baselines:
    kinds = KINDS[:-1]  # what `also` names is wanted
    where = f"{source}: baselines"
    if isinstance(given, bool):
        given = list(kinds) if given else []
    if isinstance(given, list):
        _require_keys({str(kind): True for kind in given}, kinds, where)
        chosen: dict[str, Any] = {kind: kind in given for kind in kinds}
        return Baselines(**chosen)
    chosen = dict(_require_mapping(given, where))
    _require_keys(chosen, (*kinds, "seeds", "also"), where)
    for kind in kinds:
        value = chosen.get(kind, True)
        if isinstance(value, Plain):  # such as yes
            value = chosen[kind] = value.value
        may_be_list = kind in WITH_LOADS and all(
            isinstance(name, str) for name in (value if isinstance(value, list) else [])
        )
        if not isinstance(value, bool) and not (may_be_list and isinstance(value, list)):
            allowed = "true, false or a list of variants" if may_be_list else "true or false"
            raise UsageError(f"{where}: {kind}: {_shown(value)} given; {allowed} is allowed")
    if chosen.get("seeds") is not None:
        chosen["seeds"] = _read_own_seeds(chosen["seeds"], seeds, f"{where}: seeds")
    else:
        chosen.pop("seeds", None)
    also = _require_mapping(chosen.get("also") or {}, f"{where}: also")
    named = {
        str(name): _require_options(options or {}, f"{where}: also: {name}")
        for name, options in also.items()
    }
    return Baselines(**chosen | {"also": named})


def _read_own_seeds(given: Any, seeds: list[int], where: str) -> dict[str, list[int]]:
    """Seeds of each kind of baseline, from a mapping, or from what holds for all of them."""
    by_kind = given if isinstance(given, Mapping) else dict.fromkeys(KINDS, given)
    _require_keys(by_kind, KINDS, where)
    read = {kind: read_seeds(own, where) for kind, own in by_kind.items()}
    for own in read.values():
        if not set(own) <= set(seeds):
            raise UsageError(
                f"{where}: {_shown(given)} given; of the study's {_shown(seeds)} are allowed"
            )
    return read


def _require_keys(given: Mapping[str, Any], allowed: Sequence[str], source: str) -> None:
    given = _require_mapping(given, source)
    for key in given.keys() - set(allowed):
        raise UsageError(
            f"{source}: {key!r} given; {', '.join(allowed)} are allowed{near(str(key), allowed)}"
        )


def _require_mapping(given: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"{source}: {_shown(given)} given; a mapping is needed")
    for key in given:
        if not isinstance(key, str):
            raise UsageError(f"{source}: {key!r} given; names are text (in quotes, if need be)")
    return given


def _require_options(given: Any, source: str, may_seed: bool = False) -> Options:
    options = dict(_require_mapping(given, source))
    for name in OF_A_RUN:
        if name in options:
            raise UsageError(f"{source}: {name!r} given; options of a run are allowed, without it")
    if "seed" in options and not may_seed:
        raise UsageError(f"{source}: 'seed' given; seeds stand under seeds")
    return options


def _require_axis(option: str, values: Any, source: str) -> None:
    if option in OF_A_RUN:
        raise UsageError(f"{source}: grid.{option} given; options of a run are allowed, without it")
    if not isinstance(values, list) or not values:
        raise UsageError(
            f"{source}: grid.{option}: {_shown(values)} given; a list of values such as [a,b] is "
            "needed"
        )
