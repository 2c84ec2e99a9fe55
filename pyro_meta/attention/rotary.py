"""Rotary positions (Su et al. 2021, arXiv 2104.09864): scores depend on distances alone.

Half of a head's channels turn with position. The other half carry content whatever the distance: a
look-up hundreds of tokens back is learned on those, while turned channels scramble it (partial
rotary positions: Black et al. 2022, arXiv 2204.06745; Barbero et al. 2024, arXiv 2410.06205).
"""

import torch
from torch import Tensor


def rotation(positions: Tensor, head_width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T, r], of positions [T] at r = d/4 (at least 1) frequencies."""
    count = _pairs(head_width)
    frequency = base ** (-torch.arange(count, device=positions.device).double() / count)
    angle = positions.double()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + r}), i < r, of x [..., T, d] by its position's angle.

    In float32 at least: rounded angles would make scores depend on absolute positions.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(wide), sin.to(wide)
    r = cos.shape[-1]
    first, second, still = x.split([r, r, x.shape[-1] - 2 * r], dim=-1)
    first, second = first.to(wide), second.to(wide)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([turned.to(x.dtype), still], dim=-1)


def unturned(x: Tensor) -> Tensor:
    """The channels of x [..., d] that no position turns, a view [..., d - 2 r]."""
    return x[..., 2 * _pairs(x.shape[-1]) :]


def _pairs(head_width: int) -> int:
    return max(1, head_width // 4)
