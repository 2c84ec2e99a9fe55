"""What the routed benchmark is held to, beside what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyro_meta.speed.timed_parts import routed
from pyro_meta.speed.scene import MIX

Points = list[dict[str, Any]]
SHORTEST = 512
"""Below this length nothing is promised."""


@dataclass(frozen=True)
class Target:
    """A measured figure and its bound; `measured` is None where it was not measured."""

    what: str
    measured: float | None
    at_least: float | None = None
    at_most: float | None = None

    def as_json(self) -> dict[str, Any]:
        bounds = {"at_least": self.at_least, "at_most": self.at_most}
        return {
            "target": self.what,
            **{name: bound for name, bound in bounds.items() if bound is not None},
            "measured": self.measured,
            "met": self.met,
        }

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        is_enough = self.at_least is None or self.measured >= self.at_least
        return is_enough and (self.at_most is None or self.measured <= self.at_most)


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


def targets(points: Points, bookkept: float | None, memory: float | None, device: str) -> Points:
    """The targets of the routed benchmark, as rows for its JSON.

    Parameters
    ----------
    points
        What was timed.
    bookkept
        Share of routed attention's time that is bookkeeping, at T=8192.
    memory
        Peak memory of routed prefill over that of full attention's, at T=8192.
    device
        `cpu` or `cuda`, which have their own.
    """
    mix = f"{MIX:.0%} full, {(1 - MIX) / 2:.0%} window, {(1 - MIX) / 2:.0%} linear"
    if device == "cuda":
        own = [
            Target(
                f"attention alone at T=32768, bfloat16, {mix}: times as fast as full",
                speed_up(points, "attention", 32768),
                at_least=4.0,
            ),
            Target(
                f"whole-model prefill at T=32768, bfloat16, {mix}: times as fast as full",
                speed_up(points, "prefill", 32768),
                at_least=2.0,
            ),
        ]
    else:
        own = [
            *(
                Target(
                    f"attention alone at T={length}, {mix}: times as fast as full",
                    speed_up(points, "attention", length),
                    at_least=bound,
                )
                for length, bound in ((8192, 3.0), (16384, 5.0))
            ),
            Target(
                f"whole-model prefill at T=8192, {mix}: times as fast as full",
                speed_up(points, "prefill", 8192),
                at_least=2.0,
            ),
            Target(
                f"decoding after 16384 tokens, {mix}: times as fast as full with its cache",
                speed_up(points, "decoding", 16384),
                at_least=3.0,
            ),
            Target(
                f"attention alone, any share, any T >= {SHORTEST}: time over that of full",
                slowest(points, "attention"),
                at_most=1.1,
            ),
            Target(
                f"bookkeeping at T=8192, {mix}: share of routed attention's time",
                bookkept,
                at_most=0.10,
            ),
        ]
    of_memory = Target(
        f"peak memory of prefill at T=8192, {mix}: over that of full",
        memory,
        at_most=1.0,
    )
    return [target.as_json() for target in (*own, of_memory)]


def break_even(shares: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The largest measured share of full attention at which routing is still no slower than full.

    No smaller measured share is slower. None if the smallest is slower already, or none was
    measured; between this share and the next nothing is known.
    """
    reached: float | None = None
    for share, ratio in sorted(zip(shares, ratios, strict=True)):
        if ratio > 1:
            break
        reached = share
    return reached
