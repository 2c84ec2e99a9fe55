"""Grouped heads: several query heads read one key-value head."""

from torch import Tensor


def with_heads(x: Tensor, heads: int) -> Tensor:
    """x [B, G, T, d] as [B, H, T, d]: query head h reads key-value head h // (H / G)."""
    group = heads // x.shape[1]
    return x if group == 1 else x.repeat_interleave(group, dim=1)
