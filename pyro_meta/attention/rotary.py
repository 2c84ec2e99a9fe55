"""Rotary positions (Su et al. 2021, arXiv 2104.09864): scores depend on distances alone."""

import torch
from torch import Tensor


def rotation(positions: Tensor, head_width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T, d/2], of positions [T] at the d/2 rotary frequencies."""
    half = head_width // 2
    frequency = base ** (-torch.arange(half, device=positions.device).double() / half)
    angle = positions.double()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of x [..., T, d] by its position's angle.

    In float32 at least: rounded angles would make scores depend on absolute positions.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(wide), sin.to(wide)
    first, second = x.to(wide).chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)
