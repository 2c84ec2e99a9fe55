"""Peak memory of a call, best taken in a fresh process: what ran before leaves its mark."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pyro_meta.attention.clock import finish


def added_peak_bytes(call: Callable[[], object], device: str | torch.device = "cpu") -> int | None:
    """Bytes by which `call` raises this process's memory at its peak.

    Resident memory on a CPU (None where Linux's /proc is not there), allocated memory on CUDA.
    """
    device = torch.device(device)
    if device.type == "cuda":
        finish(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        finish(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    call()
    return max(0, _status_bytes("VmHWM") - before)


def in_fresh_process(function: Callable[..., Any], **arguments: Any) -> Any:
    """What `function`, of a module's top level, returns for `arguments` in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, **arguments).result()


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
