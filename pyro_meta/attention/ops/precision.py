"""Numbers in half precision are raised to float32 where they are summed or decided upon."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, raised to float32 if its precision is half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
