"""Routed attention against full, window and linear alone, by length and by share of full."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from pyro_meta.speed.arithmetic import attention_ratios, ratios_of_parts
from pyro_meta.speed.scene import Scene
from pyro_meta.speed.timed_parts import PARTS, in_seconds, routed
from pyro_meta.speed.trained_run import trained_run
from pyro_meta.terminal.progress import Tell
from pyro_meta.training.run import Run

LENGTHS = {
    "cpu": [512, 1024, 2048, 4096, 8192, 16384],
    "cuda": [512, 2048, 8192, 32768, 131072],
}
SHARES = [0.0, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 1.0]


def steps_of(lengths: Sequence[int], parts: Sequence[str], has_run: bool) -> int:
    """How often `bench_routed` says what comes next."""
    return len(parts) * len(lengths) + has_run


def bench_routed(
    scene: Scene,
    lengths: Sequence[int],
    shares: Sequence[float],
    parts: Sequence[str],
    run: Run | None,
    tell: Tell,
) -> dict[str, Any]:
    """Everything that routed.json says, without what it says of the machine.

    Parameters
    ----------
    scene
        Sizes, device, precision, repetitions.
    lengths
        T of every part.
    shares
        Shares of full attention, each within 0 and 1.
    parts
        Of `PARTS`.
    run
        A trained run whose own routes are measured too, on its validation text.
    tell
        Told of the progress.
    """
    if run is not None:  # first, since it may be at fault
        tell("the trained run")
    trained = {"trained_run": trained_run(run, scene)} if run is not None else {}
    points: list[dict[str, Any]] = []
    for part in parts:
        for length in lengths:
            tell(f"{part}, {length:,} tokens")
            points += _points(scene, part, length, shares)
    return {
        "setting": dataclasses.asdict(scene) | {"batch": 1, "head_width": scene.head_width},
        "points": points,
        "macs_ratio_to_full": {
            length: attention_ratios(scene, length, shares) for length in lengths
        },
        "macs_ratio_of_parts": {
            length: ratios_of_parts(scene, length, shares, parts) for length in lengths
        },
        "break_even_share": {
            part: {length: _break_even(points, part, length) for length in lengths}
            for part in parts
        },
        **trained,
    }


def _points(scene: Scene, part: str, length: int, shares: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each route of a part at a length, all timed in turn."""
    own = PARTS[part]
    repeats = min(scene.repeats, max(3, scene.repeats // 3)) if own.is_slow else scene.repeats
    seconds = scene.time(own.calls(scene, length, shares), repeats)
    full = statistics.median(seconds["full"])
    share_of = {name: float(name == "full") for name in scene.mechanisms}
    share_of |= {routed(share): share for share in shares}
    rows = []
    for route, times in seconds.items():
        rows.append(
            {
                "part": part,
                "length": length,
                "route": route,
                "share_of_full": share_of[route],
                "ratio_to_full": statistics.median(times) / full,
                **in_seconds(times, own.tokens(length)),
            }
        )
    return rows


def _break_even(points: list[dict[str, Any]], part: str, length: int) -> float | None:
    own = [
        point
        for point in points
        if (point["part"], point["length"]) == (part, length)
        and point["route"].startswith("routed")
    ]
    return break_even([p["share_of_full"] for p in own], [p["ratio_to_full"] for p in own])


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
