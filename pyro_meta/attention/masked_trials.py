"""What one masked call takes on this machine, beside full attention of all tokens.

Half of the tokens, drawn at random, chose full attention and half a window. The mask alone is timed
as well: it is made once for all heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention.clock import ratio
from pyro_meta.attention.ops.dense import full_attention
from pyro_meta.attention.ops.masked import masked_attention, row_blocks, row_mask

HEADS, WIDTH, WINDOW = 4, 32, 64
SIZES = ((1, 512), (1, 1024), (1, 2048), (8, 256))
"""Sequences and their length."""


class MaskedTimes(NamedTuple):
    """Times over those of full attention of all tokens."""

    mask: float
    """Making the mask."""
    plain: float
    """The masked call with its mask, without gradients."""
    traced: float
    """Likewise, forward and backward, over full attention forward and backward."""


def tried_masked(sequences: int, length: int) -> MaskedTimes:
    """One trial, on tokens of a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    shape = (3, sequences, HEADS, length, WIDTH)
    q, k, v = torch.randn(shape, generator=draw, dtype=torch.float32)
    kind = (torch.rand(sequences, length, generator=draw) < 0.5).long()
    reaches, sinks = (length, WINDOW), (0, 0)

    def mask() -> None:
        for block in row_blocks(sequences, length):
            row_mask(kind, block, reaches, sinks, q.dtype)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return masked_attention(q, k, v, kind, reaches, sinks)

    with torch.no_grad():
        making = ratio(mask, lambda: full_attention(q, k, v))
        plain = ratio(lambda: masked(q, k, v), lambda: full_attention(q, k, v))
    with torch.enable_grad():
        read = [x.requires_grad_() for x in (q, k, v)]
        traced = ratio(
            lambda: torch.autograd.grad(masked(*read).sum(), read),
            lambda: torch.autograd.grad(full_attention(*read).sum(), read),
        )
    return MaskedTimes(making, plain, traced)
