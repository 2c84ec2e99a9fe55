"""Peak memory of a call, best taken in a fresh process: what ran before leaves its mark."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_meta.network.clock import finish


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
    """What `function` returns for `arguments` in a new process; both travel as JSON.

    Raises
    ------
    RuntimeError
        It failed; with the last line that it wrote.
    """
    code = (
        "import json, sys; from importlib import import_module; "
        "module, name, arguments = json.loads(sys.argv[1]); "
        "print(json.dumps(getattr(import_module(module), name)(**arguments)))"
    )
    task = json.dumps([function.__module__, function.__qualname__, arguments])
    words = [sys.executable, "-c", code, task]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"{function.__qualname__} failed in a fresh process: {last}")
    return json.loads(done.stdout)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
