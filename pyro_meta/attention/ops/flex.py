"""Softmax attention for some of the tokens on `flex_attention`: what a GPU runs.

Queries are sorted by position, so that a block of 128 of them meets few blocks of keys in part, and
the block mask follows from the positions at the ends of each block. One compiled callable serves
all layers and mechanisms: the window is data (the lowest key of each query), and so are the sinks
(the first keys of a text, seen beside the window); lengths come in multiples of 128.

Shapes: B sequences, H query heads, G key-value heads, T tokens, N queries, d head width, m places
for queries and S for keys, both multiples of 128.
"""

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pyro_meta.attention.ops.queries import Blocks, Queries

BUCKET = 128
_parameters = signature(BlockMask.from_kv_blocks).parameters
FORWARD_ALONE: dict[str, Any] = (
    {"compute_q_blocks": False} if "compute_q_blocks" in _parameters else {}
)
"""Spares the tables that only the backward pass reads, where PyTorch can be told so."""


def softmax_attention_of(
    q: Tensor, k: Tensor, v: Tensor, queries: Queries, window: int | None = None, sinks: int = 0
) -> Tensor:
    """Causal softmax attention over the last `window` keys (all, if None), self included.

    And over the first `sinks` of the text. q [N, H, d], k and v [B, G, T, d] -> [N, H, d]. Without
    a compiler for the device (a CPU has one for inference alone) it runs eagerly, which costs
    O(N T) memory.
    """
    B, G, T, _ = k.shape
    table = Blocks(queries, B, 1, T, multiple=BUCKET)  # a row for each sequence
    # Empty places, behind all others, see what the last query of their row sees.
    last = table.offsets().cummax(-1).values  # [B, m]
    lowest = torch.zeros_like(last) if window is None else (last - window + 1).clamp_(min=0)
    spare = -T % BUCKET
    if spare:
        k, v = F.pad(k, (0, 0, 0, spare)), F.pad(v, (0, 0, 0, spare))
    if not torch.is_grad_enabled():  # flex_attention looks at what inputs say, not at the mode
        k, v = k.detach(), v.detach()
    rows = table.pack(q).transpose(1, 2).contiguous()
    mask = block_mask(last, lowest, last.new_full((B,), sinks), k.shape[2])
    out = _compiled(flex_attention, q.device.type)(
        rows, k, v, block_mask=mask, enable_gqa=q.shape[1] != G
    )
    return table.unpack(cast(Tensor, out).transpose(1, 2))


def block_mask(last: Tensor, lowest: Tensor, sinks: Tensor, keys: int) -> BlockMask:
    """The mask of queries that see the keys lowest .. last, and of those up to the last the first
    `sinks` [B] of their row, of `keys` S keys.

    `last` and `lowest` [B, m] ascend along the rows, so that the ends of a block of queries say
    which blocks of keys it meets, and which of them all of its queries see in full: two intervals,
    one within the other; and before them the blocks of the sinks. Elements are masked in all but
    the inner interval.
    """
    plan = _compiled(_blocks_of_keys, last.device.type)
    part_count, part, full_count, full = plan(last, lowest, sinks, keys // BUCKET)

    def sees(b: Tensor, h: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        is_near = kv_index >= lowest[b, q_index]
        return (kv_index <= last[b, q_index]) & (is_near | (kv_index < sinks[b]))

    return BlockMask.from_kv_blocks(
        part_count,
        part,
        full_count,
        full,
        BLOCK_SIZE=BUCKET,
        mask_mod=sees,
        seq_lengths=(last.shape[1], keys),
        **({} if torch.is_grad_enabled() else FORWARD_ALONE),
    )


def _blocks_of_keys(
    last: Tensor, lowest: Tensor, sinks: Tensor, blocks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each block of queries: how many blocks of keys it meets in part, and which; and how many
    in full, and which. Numbers [B, 1, r] and indices [B, 1, r, c], of which those count."""
    begin, end = lowest[:, ::BUCKET] // BUCKET, last[:, BUCKET - 1 :: BUCKET] // BUCKET + 1
    before = torch.minimum((sinks[:, None] + BUCKET - 1) // BUCKET, begin)  # of sinks alone
    whole_begin = (lowest[:, BUCKET - 1 :: BUCKET] + BUCKET - 1) // BUCKET
    whole_begin = torch.minimum(whole_begin, end)
    whole_end = torch.minimum((last[:, ::BUCKET] + 1) // BUCKET, end)
    whole = (whole_end - whole_begin).clamp(min=0)
    block = torch.arange(blocks, device=last.device)
    in_part = torch.where(block < before[..., None], block, block + (begin - before)[..., None])
    is_before = in_part < whole_begin[..., None]
    in_part = torch.where(is_before, in_part, in_part + whole[..., None])
    in_full = block + whole_begin[..., None]

    def listed(index: Tensor) -> Tensor:
        return index.clamp(max=blocks - 1)[:, None].int()

    part = before + end - begin - whole
    return part[:, None].int(), listed(in_part), whole[:, None].int(), listed(in_full)


@cache
def _compiled(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """`function`, compiled but on a CPU, where it runs eagerly."""
    return function if device_type == "cpu" else torch.compile(function, dynamic=True)
