"""Views of keys and values for many small calls, with gradients that are summed in place.

Autograd gives the view of a tensor a gradient of the whole tensor's size, and adds these up: with n
views of T keys that is O(n T) work for gradients that are nearly all zeros. Here one node has all
views as its outputs, so that its backward pass gets all their gradients at once, and adds each to
its own places of one tensor: O(n size + T).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slice(NamedTuple):
    """Some rows of a batch, and in them some places that follow each other."""

    row: int
    rows: int
    first: int
    size: int


def slices(x: Tensor, where: Sequence[Slice]) -> tuple[Tensor, ...]:
    """Views [rows, G, size, d] of x [B, G, T, d], which may overlap."""
    return _Slices.apply(x, list(where))


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, where: list[Slice]) -> tuple[Tensor, ...]:
        ctx.where, ctx.like = where, (x.shape, x.dtype)
        return tuple(x.narrow(0, s.row, s.rows).narrow(2, s.first, s.size) for s in where)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shape, dtype = ctx.like
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros(shape, dtype=wide, device=grads[0].device)  # many halves are summed
        for s, grad in zip(ctx.where, grads, strict=True):
            total[s.row : s.row + s.rows, :, s.first : s.first + s.size] += grad
        return total.to(dtype), None
