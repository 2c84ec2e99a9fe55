"""Times that can be compared: calls taken in turn, medians of several."""

import gc
import math
import statistics
import time
from collections.abc import Callable

import torch

MOST = 8
ROUNDS, WARM_UP = 7, 1  # of a ratio
Calls = dict[str, Callable[[], object]]


def interleaved(
    calls: Calls,
    repeats: int,
    warm_up: int = 2,
    device: str | torch.device = "cpu",
    longer_s: float = 0.0,
    enough_s: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each call, all taken in turn: what slows a machine down slows all of them.

    Parameters
    ----------
    calls
        By name. Every second round runs them in reverse.
    repeats
        Rounds that count: so many, but for the next two.
    warm_up
        Rounds before those.
    device
        Whose work is waited for.
    longer_s
        Further rounds until so many seconds have passed, at most `MOST` times as many: short calls
        need more of them.
    enough_s
        No further round is begun after so many seconds, once one has counted.
    """
    device = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    gc.disable()
    try:
        for round_ in range(warm_up + MOST * repeats):
            elapsed_s, counted = time.perf_counter() - began, round_ - warm_up
            if counted >= repeats and elapsed_s > longer_s:
                break
            if counted >= 1 and elapsed_s > enough_s:
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


def ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """How long `one` takes over `other`, by turns: the median of a few rounds."""
    ratios = []
    for turn in range(WARM_UP + ROUNDS):
        found = _seconds(one) / _seconds(other)
        if turn >= WARM_UP:
            ratios.append(found)
    return statistics.median(ratios)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """`call` as one CUDA graph: what the device does, without the host that launches it.

    Raises
    ------
    RuntimeError
        The call looks at what the device computes, or compiles.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def noise(ones: list[float], others: list[float]) -> float:
    """How much a ratio of times varies between rounds: its interquartile range over its median."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    if len(ratios) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return (high - low) / middle


def finish(device: torch.device) -> None:
    """Wait for what a device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
