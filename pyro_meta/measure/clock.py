"""Times that can be compared: calls taken in turn, medians of several."""

import gc
import statistics
import time
from collections.abc import Callable

import torch

Calls = dict[str, Callable[[], object]]


def interleaved(
    calls: Calls,
    repeats: int,
    warm_up: int = 2,
    device: str | torch.device = "cpu",
    enough_s: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, all taken in turn: what slows a machine down slows all of them.

    Parameters
    ----------
    calls
        By name. Every second round runs them in reverse.
    repeats
        Rounds that count.
    warm_up
        Rounds before those.
    device
        Whose work is waited for.
    enough_s
        No further round is begun after so many seconds, warm-up included, once one has counted.
    """
    device = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for round_ in range(repeats + warm_up):
            is_late = enough_s is not None and time.perf_counter() - began > enough_s
            if is_late and round_ > warm_up:
                break
            for name in list(calls) if round_ % 2 else list(calls)[::-1]:
                finish(device)
                started = time.perf_counter()
                calls[name]()
                finish(device)
                elapsed = time.perf_counter() - started
                if round_ >= warm_up:
                    seconds[name].append(elapsed)
    finally:
        gc.enable()
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish(device: torch.device) -> None:
    """Wait for what a device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
