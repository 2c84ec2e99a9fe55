"""How near attention comes to what the machine can do.

    limit = max(2 MACs / FLOP/s of a large product, bytes / bytes/s of a large copy)
    attained = limit / seconds

MACs are those of the routes (causal: the keys that are seen). Bytes are q, k and v read once and
the result written once, 4 T D numbers. Both rates are measured here, in the benchmark's precision,
so that no data sheet is needed. `targets.py` writes it down.
"""

from typing import Any

import torch

from pyro_meta.attention import Sizes, build_mechanisms
from pyro_meta.attention.clock import medians
from pyro_meta.network.macs import attention_macs
from pyro_meta.speed.scene import FULL, MIX, Scene

PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows of a square matrix
COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}


def machine_rates(scene: Scene) -> dict[str, float]:
    """FLOP/s of a large product of matrices, bytes/s (read and written) of a large copy."""
    n, size = PRODUCT[scene.device], COPY_BYTES[scene.device]
    a = torch.randn(n, n, device=scene.device, dtype=scene.dtype)
    b = torch.randn(n, n, device=scene.device, dtype=scene.dtype)
    source = torch.zeros(size, dtype=torch.uint8, device=scene.device)
    target = torch.empty_like(source)
    times = medians(scene.time({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}))
    return {
        "flops_per_second": 2 * n**3 / times["product"],
        "bytes_per_second": 2 * size / times["copy"],
    }


def attained(scene: Scene, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Limits beside the measured `points` of attention: full, and routed at the targets' share."""
    rates = machine_rates(scene)
    sizes = Sizes(scene.head_width, scene.window)
    built: list[Any] = list(build_mechanisms(scene.mechanisms, sizes))
    rows = []
    for point in points:
        is_full = point["route"] == "full"
        if point["part"] != "attention" or not (is_full or point["share_of_full"] == MIX):
            continue
        T = point["length"]
        choice = torch.full((1, T), FULL) if is_full else scene.choices(MIX, T)[0].cpu()
        macs = attention_macs(built, scene.heads, choice)
        moved = 4 * T * scene.width * scene.dtype.itemsize
        by_arithmetic = 2 * macs / rates["flops_per_second"]
        by_memory = moved / rates["bytes_per_second"]
        limit = max(by_arithmetic, by_memory)
        rows.append(
            {
                "route": point["route"],
                "length": T,
                "bound_by": "arithmetic" if by_arithmetic > by_memory else "memory",
                "limit_seconds": limit,
                "attained": limit / point["seconds"],
            }
        )
    formula = (
        "attained = max(2 MACs / flops_per_second, 4 T D itemsize / bytes_per_second) / seconds; "
        "rates measured with a large product and a large copy on the same machine"
    )
    return {"formula": formula, "machine": rates, "attention": rows}
