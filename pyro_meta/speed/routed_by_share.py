"""Routed attention against full, window and linear alone, by length and by share of full."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_meta.speed.bookkeeping import bookkeeping
from pyro_meta.speed.limits import attained
from pyro_meta.speed.peak_memory import added_peak_bytes, in_fresh_process
from pyro_meta.speed.timed_parts import PARTS, prefill_calls, routed
from pyro_meta.speed.scene import MIX, Scene
from pyro_meta.speed.targets import break_even, targets
from pyro_meta.speed.trained_run import trained_run

LENGTHS = {
    "cpu": [512, 1024, 2048, 4096, 8192, 16384],
    "cuda": [512, 2048, 8192, 32768, 131072],
}
SHARES = [0.0, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 1.0]
CLOSE_LENGTH = 8192
"""Where bookkeeping and memory are looked at; the longest measured length if that is shorter."""
MEMORY_REPEATS = 3

Step = Callable[[str], None]
"""Called with what comes next, before it is done."""


def steps_of(lengths: Sequence[int], parts: Sequence[str], has_run: bool) -> int:
    """How often `bench_routed` says what comes next."""
    return len(parts) * len(lengths) + 2 * ("attention" in parts) + ("prefill" in parts) + has_run


def bench_routed(
    scene: Scene,
    lengths: Sequence[int],
    shares: Sequence[float],
    parts: Sequence[str],
    run: Path | None,
    step: Step,
) -> dict[str, Any]:
    """Everything that routed.json says but for the machine.

    Parameters
    ----------
    scene
        Sizes, device, precision, repetitions.
    lengths
        T of every part.
    shares
        Shares of full attention, each within 0 and 1.
    parts
        Of `PARTS`. Bookkeeping and limits belong to `attention`, memory to `prefill`.
    run
        A trained run whose own routes are measured too, on its validation text.
    step
        Told of the progress.
    """
    if run is not None:  # first, since it may be at fault
        step("the trained run")
    trained = {"trained_run": trained_run(run, scene)} if run is not None else {}
    points: list[dict[str, Any]] = []
    for part in parts:
        for length in lengths:
            step(f"{part}, {length:,} tokens")
            points += _points(scene, part, length, shares)
    close = min(CLOSE_LENGTH, max(lengths))
    looks: dict[str, dict[str, Any]] = {}
    if "attention" in parts:
        step(f"bookkeeping, {close:,} tokens")
        looks["bookkeeping"] = bookkeeping(scene, close)
    if "prefill" in parts:
        step(f"memory, {close:,} tokens")
        looks["memory"] = prefill_memory(scene, close)
    if "attention" in parts:
        step("limits of the machine")
        looks["limits"] = attained(scene, points)
    result = {
        "setting": dataclasses.asdict(scene) | {"batch": 1, "head_width": scene.head_width},
        "points": points,
        "break_even_share": {
            part: {length: _break_even(points, part, length) for length in lengths}
            for part in parts
        },
        **looks,
        **trained,
    }
    is_there = close == CLOSE_LENGTH
    result["targets"] = targets(
        points,
        looks.get("bookkeeping", {}).get("share_of_time") if is_there else None,
        looks.get("memory", {}).get("ratio_to_full") if is_there else None,
        scene.device,
    )
    return result


def _points(scene: Scene, part: str, length: int, shares: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each route of a part at a length, all timed in turn."""
    own = PARTS[part]
    repeats = min(scene.repeats, max(3, scene.repeats // 3)) if own.is_slow else scene.repeats
    seconds = scene.time(own.calls(scene, length, shares), repeats)
    full = statistics.median(seconds["full"])
    share_of = {"full": 1.0, "window": 0.0, "linear": 0.0} | {routed(s): s for s in shares}
    rows = []
    for route, times in seconds.items():
        median = statistics.median(times)
        rows.append(
            {
                "part": part,
                "length": length,
                "route": route,
                "share_of_full": share_of[route],
                "seconds": median,
                "seconds_range": [min(times), max(times)],
                "tokens_per_second": own.tokens(length) / median,
                "ratio_to_full": median / full,
                "repeats": len(times),
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


def prefill_memory(scene: Scene, length: int) -> dict[str, Any]:
    """Bytes that prefill adds at its peak, routed and full, on a CPU in turn in fresh processes."""
    values: dict[str, list[int | None]] = {routed(MIX): [], "full": []}
    is_cuda = scene.device == "cuda"  # which counts what is allocated, in any process
    for _ in range(1 if is_cuda else min(MEMORY_REPEATS, scene.repeats)):
        for name, own in values.items():
            arguments: dict[str, Any] = {
                "scene": dataclasses.asdict(scene),
                "length": length,
                "name": name,
                "threads": torch.get_num_threads(),
            }
            own.append(
                prefill_peak_bytes(**arguments)
                if is_cuda
                else in_fresh_process(prefill_peak_bytes, **arguments)
            )
    known = {name: [v for v in own if v is not None] for name, own in values.items()}
    middle = {name: statistics.median(own) if own else None for name, own in known.items()}
    routed_bytes, full_bytes = middle[routed(MIX)], middle["full"]
    return {
        "length": length,
        "share_of_full": MIX,
        "peak_bytes_routed": routed_bytes,
        "peak_bytes_full": full_bytes,
        "all_bytes_routed": known[routed(MIX)],
        "all_bytes_full": known["full"],
        "ratio_to_full": routed_bytes / full_bytes if routed_bytes and full_bytes else None,
    }


def prefill_peak_bytes(scene: dict[str, Any], length: int, name: str, threads: int) -> int | None:
    """Bytes that one prefill adds to this process at its peak; weights and tokens are not among."""
    torch.set_num_threads(threads)
    here = Scene(**scene)
    prefill_calls(here, min(256, length), [MIX])[name]()  # libraries load before, not in between
    return added_peak_bytes(prefill_calls(here, length, [MIX])[name], here.device)
