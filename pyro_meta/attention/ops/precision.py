"""Numbers in half precision are raised to float32 where they are summed or decided upon."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, raised to float32 if its precision is half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Where nothing is cast; of a decoded token, to turn off what is off takes as long as a sum."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
