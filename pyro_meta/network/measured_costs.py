"""Costs by the clock: how long each mechanism attends on this machine, over full attention.

Timed once for a device and a shape, and kept in `costs/` of the cache folder; remove the file, or
set PYRO_META_REFRESH_COSTS=1, to have it timed again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_meta.attention import Full, Mechanism, carries
from pyro_meta.attention.clock import Calls, interleaved, medians
from pyro_meta.folders import kept_once
from pyro_meta.network.protocol import Network

BATCH, REPEATS = 4, 15
REFERENCE = "full, for comparison"
REFRESH = "PYRO_META_REFRESH_COSTS"
_accelerator: ContextVar[str] = ContextVar("accelerator", default="auto")


@contextmanager
def timed_on(accelerator: str) -> Iterator[None]:
    """Time on `cpu`, `cuda`, or with `auto` on CUDA where there is one."""
    token = _accelerator.set(accelerator)
    try:
        yield
    finally:
        _accelerator.reset(token)


def measure_costs(network: Network, refresh: bool = False) -> list[float]:
    """Forward time of each mechanism of `network`, over that of full attention.

    One query's share of attending to a whole context: the same at all positions, and 1 for full
    attention, which is timed for comparison if it is not among the mechanisms. Processes of one
    machine that ask at once get the same numbers.

    Parameters
    ----------
    network
        Gives mechanisms, context, heads and head width.
    refresh
        Time again, whatever the cache holds.
    """
    device = _device()

    def find_out() -> dict[str, Any]:
        return {"costs": _time(network, device)}

    def is_whole(kept: dict[str, Any]) -> bool:
        return len(kept["costs"]) == len(network.mechanisms) and min(kept["costs"]) > 0

    refresh = refresh or os.environ.get(REFRESH, "") not in ("", "0")
    kept = kept_once("costs", _conditions(network, device), find_out, is_whole, refresh)
    costs: list[float] = kept["costs"]
    return costs


def _device() -> torch.device:
    kind = _accelerator.get()
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


def _conditions(network: Network, device: torch.device) -> dict[str, Any]:
    """Whatever a time depends on."""
    shape = network.shape
    classes = [type(mechanism) for mechanism in network.mechanisms]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "context": shape.context,
        "heads": shape.heads,
        "head_width": shape.head_width,
        "window": shape.window,
        "sinks": shape.sinks,
        "chunk": shape.chunk,
        "mechanisms": [f"{one.__module__}.{one.__qualname__}" for one in classes],
    }


def _time(network: Network, device: torch.device) -> list[float]:
    """Medians of interleaved repetitions, each over that of full attention."""
    shape = network.shape
    timed: dict[str, Mechanism] = {REFERENCE: Full(shape.head_width, shape.window)}
    timed |= zip(network.mechanism_names, network.mechanisms, strict=True)
    size = (3, BATCH, shape.heads, shape.context, shape.head_width)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(size, generator=generator).to(device)
    home = network.device
    calls: Calls = {name: partial(_attend, one.to(device), q, k, v) for name, one in timed.items()}
    with torch.no_grad():
        times = medians(interleaved(calls, REPEATS, 3, device))
    for mechanism in network.mechanisms:
        mechanism.to(home)
    return [
        1.0 if type(one) is Full else times[name] / times[REFERENCE]
        for name, one in list(timed.items())[1:]
    ]


def _attend(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor) -> None:
    if carries(mechanism):
        v = mechanism.kick(q, v, v, 1, mechanism)
    mechanism(q, k, v)
