"""What this project holds itself to on the clock, and whether it is met on this machine.

    python benchmarks/targets.py [benchmarks/results]

Reads what `python -m pyro_meta.bench` and `benchmarks/svi.py` have left in the folder: routed.json,
mechanisms.json and svi.json, those that are there. Looks closer, at the sizes of routed.json, at
what it does not say: how much of routed attention is bookkeeping, the peak memory of prefill, and
how near attention comes to the machine's limits. Writes targets.json beside them.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from bookkeeping import bookkeeping
from limits import attained
from prefill_memory import prefill_memory
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scripts import Parser, a_folder, run_script

from pyro_meta.speed import MECHANISMS
from pyro_meta.speed.mechanisms_by_length import CHUNKS
from pyro_meta.speed.scene import MIX, Scene
from pyro_meta.speed.timed_parts import routed
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.terminal.tables import table_of_figures

Points = list[dict[str, Any]]
FILES = ("routed.json", "mechanisms.json", "svi.json")
SHORTEST = 512
"""Below this length nothing is promised."""
CLOSE_LENGTH = 8192
"""Where bookkeeping and memory are looked at; the longest measured length if that is shorter."""

PARTS = {
    "attention": "attention alone at T={}",
    "prefill": "whole-model prefill at T={}",
    "training": "a training step with given routes at T={}",
    "decoding": "decoding after {} tokens, full with its cache",
}
SPEED_UPS = {
    "cpu": (
        ("attention", 8192, 3.3),
        ("attention", 16384, 5.0),
        ("prefill", 8192, 2.2),
        ("training", 2048, 1 / 0.7),
        ("decoding", 16384, 3.3),
    ),
    "cuda": (("attention", 32768, 4.0), ("prefill", 32768, 2.0)),
}
"""Part, length and how many times as fast as full it has to be."""
OVER_FULL, OVER_FULL_WITH_LINEAR = 1.15, 1.3
"""The most time of attention over that of full, at any share and length."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A measured figure and its bound; `measured` is None where it was not measured.

    `by_arithmetic` is what multiply-accumulates alone would give, where that says something.
    """

    what: str
    measured: float | None
    at_least: float | None = None
    at_most: float | None = None
    by_arithmetic: float | None = None

    def as_json(self) -> dict[str, Any]:
        bounds = {"at_least": self.at_least, "at_most": self.at_most}
        limit = {"by_arithmetic": self.by_arithmetic, "share_of_it": self.share_of_arithmetic}
        return {
            "target": self.what,
            **{name: bound for name, bound in bounds.items() if bound is not None},
            "measured": self.measured,
            "met": self.met,
            **({} if self.by_arithmetic is None else limit),
        }

    @property
    def share_of_arithmetic(self) -> float | None:
        if self.measured is None or self.by_arithmetic is None:
            return None
        return self.measured / self.by_arithmetic

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        is_enough = self.at_least is None or self.measured >= self.at_least
        return is_enough and (self.at_most is None or self.measured <= self.at_most)


def look_closer(facts: dict[str, Any]) -> dict[str, Any]:
    """`bookkeeping`, `memory` and `limits` at the setting of routed.json, of the parts in it."""
    names = {field.name for field in dataclasses.fields(Scene)}
    of_scene = {name: value for name, value in facts["setting"].items() if name in names}
    scene = Scene(**of_scene | {"mechanisms": mechanisms_of(facts)})
    torch.set_num_threads(facts["hardware"]["threads"])
    parts = {point["part"] for point in facts["points"]}
    length = min(CLOSE_LENGTH, max(point["length"] for point in facts["points"]))
    found: dict[str, Any] = {}
    if "attention" in parts:
        found["bookkeeping"] = bookkeeping(scene, length)
        found["limits"] = attained(scene, facts["points"])
    if "prefill" in parts:
        found["memory"] = prefill_memory(scene, length)
    return found


def of_routed(facts: dict[str, Any], closer: dict[str, Any]) -> Iterator[Target]:
    """Targets of hard routes, for the device that routed.json was measured on."""
    points, device = facts["points"], facts["setting"]["device"]
    mechanisms = mechanisms_of(facts)
    mixed = mix_of(mechanisms)
    for part, length, bound in SPEED_UPS[device]:
        what = f"{PARTS[part].format(length)}, {mixed}: times as fast as full"
        macs = (
            facts.get("macs_ratio_of_parts", {}).get(str(length), {}).get(part, {}).get(f"{MIX:g}")
        )
        limit = None if macs is None else 1 / macs
        measured = speed_up(points, part, length)
        yield Target(what, measured, at_least=bound, by_arithmetic=limit)

    def at_close_length(section: str, figure: str) -> float | None:
        own = closer.get(section, {})
        return own[figure] if own.get("length") == CLOSE_LENGTH else None

    if device == "cpu":
        what = f"attention alone, any share, any T >= {SHORTEST}: time over that of full"
        bound = OVER_FULL_WITH_LINEAR if "linear" in mechanisms else OVER_FULL
        yield Target(what, slowest(points, "attention"), at_most=bound)
        what = f"bookkeeping at T={CLOSE_LENGTH}, {mixed}: share of routed attention's time"
        yield Target(what, at_close_length("bookkeeping", "share_of_time"), at_most=0.10)
    what = f"peak memory of prefill at T={CLOSE_LENGTH}, {mixed}: over that of full"
    yield Target(what, at_close_length("memory", "ratio_to_full"), at_most=1.0)


def mechanisms_of(facts: dict[str, Any]) -> tuple[str, ...]:
    """What the timed routes chose from; an earlier file does not say it."""
    return tuple(facts["setting"].get("mechanisms", MECHANISMS))


def mix_of(mechanisms: tuple[str, ...]) -> str:
    """The routes that targets speak of, in words."""
    first, *others = mechanisms
    each = (1 - MIX) / len(others)
    return ", ".join([f"{MIX:.0%} {first}", *(f"{each:.0%} {name}" for name in others)])


def of_mechanisms(facts: dict[str, Any]) -> Iterator[Target]:
    """Targets of each mechanism alone."""
    for name in ("window", "linear"):
        growth = facts["growth_exponent_forward_backward"].get(name)
        yield Target(f"{name}: growth exponent, forward and backward", growth, at_most=1.15)
    ratios = facts["forward_ratio_to_full"].get("4096", {})
    for name, bound in (("window", 0.35), ("linear", 0.25)):
        what = f"{name}: forward time over that of full at T=4096"
        yield Target(what, ratios.get(name), at_most=bound)
    macs = facts.get("macs_ratio_to_full", {}).get("1024", {})
    memory = facts.get("peak_memory_share_of_dense_scores", {}).get("8192", {})
    for name in CHUNKS:
        yield Target(f"{name}: MACs over those of full at T=1024", macs.get(name), at_most=0.35)
        what = f"{name}: peak memory over that of dense scores at T=8192"
        yield Target(what, memory.get(name), at_most=0.4)


def of_svi(facts: dict[str, Any]) -> Iterator[Target]:
    """The target of a training step."""
    bound, what = facts["target_ratio_at_most"], "SVI step over the same step in plain PyTorch"
    yield Target(what, facts["ratio_of_medians"], at_most=bound)


def speed_up(points: Points, part: str, length: int, share: float = MIX) -> float | None:
    """How many times faster than full attention; None if it was not measured."""
    for point in points:
        if (point["part"], point["length"], point["route"]) == (part, length, routed(share)):
            return 1 / point["ratio_to_full"]
    return None


def slowest(points: Points, part: str) -> float | None:
    """Largest time over that of full attention, at all shares and lengths from 512 up."""
    ratios = [
        point["ratio_to_full"]
        for point in points
        if point["part"] == part
        and point["route"].startswith("routed")
        and point["length"] >= SHORTEST
    ]
    return max(ratios, default=None)


def table(targets: list[Target]) -> Table:
    shown = table_of_figures("targets", "target", ("bound", "measured", "by arithmetic", "met"))
    words = {True: "[green]yes[/green]", False: "[bold red]no[/bold red]", None: "-"}
    for one in targets:
        bound = f"<= {one.at_most:.3g}" if one.at_least is None else f">= {one.at_least:.3g}"
        figures = (
            "-" if found is None else f"{found:.3g}" for found in (one.measured, one.by_arithmetic)
        )
        shown.add_row(escape(one.what), bound, *figures, words[one.met])
    return shown


def main() -> None:
    parser = Parser(__doc__)
    default = "benchmarks/results"
    parser.add_argument("folder", type=a_folder, nargs="?", default=default)
    folder = parser.parse_args().folder
    files = [folder / name for name in FILES]
    found = {path.name: json.loads(path.read_text("utf-8")) for path in files if path.is_file()}
    if not found:
        sys.exit(f"{folder} has none of {', '.join(FILES)}")
    closer: dict[str, Any] = {}
    targets: list[Target] = []
    if facts := found.get("routed.json"):
        closer = look_closer(facts)
        targets += of_routed(facts, closer)
    if facts := found.get("mechanisms.json"):
        targets += of_mechanisms(facts)
    if facts := found.get("svi.json"):
        targets += of_svi(facts)
    facts = measured_by(["python", "benchmarks/targets.py", *sys.argv[1:]])
    judged = {"targets": [target.as_json() for target in targets]}
    write_measured(folder / "targets.json", facts | closer | judged)
    out = Console()
    out.print(table(targets))
    out.print(f"wrote {escape(str(folder / 'targets.json'))}", soft_wrap=True)


if __name__ == "__main__":
    run_script(main)
