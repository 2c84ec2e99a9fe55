"""Peak memory of a prefill, routed and full."""

import dataclasses
import statistics
from typing import Any

import torch

from pyro_meta.speed.peak_memory import added_peak_bytes, in_fresh_process
from pyro_meta.speed.scene import MIX, Scene
from pyro_meta.speed.timed_parts import prefill_calls, routed

REPEATS = 3


def prefill_memory(scene: Scene, length: int) -> dict[str, Any]:
    """Bytes that prefill adds at its peak, routed and full, on a CPU in turn in fresh processes."""
    values: dict[str, list[int | None]] = {routed(MIX): [], "full": []}
    is_cuda = scene.device == "cuda"  # which counts what is allocated, in any process
    for _ in range(1 if is_cuda else min(REPEATS, scene.repeats)):
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
