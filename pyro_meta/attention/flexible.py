"""Softmax attention for some of the tokens on `flex_attention`: what a GPU runs.

Queries are sorted by position, so that a block of 128 of them meets few blocks of keys in part, and
the block mask follows from the positions at the ends of each block. One compiled callable serves
all layers and mechanisms: the window is data (the lowest key of each query), and lengths come in
multiples of 128.

Shapes: B sequences, H query heads, G key-value heads, T tokens, N queries, d head width, m places
for queries and S for keys, both multiples of 128.
"""

from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pyro_meta.attention.queries import Blocks, Queries

BUCKET = 128


def softmax_attention_of(
    q: Tensor, k: Tensor, v: Tensor, queries: Queries, window: int | None = None
) -> Tensor:
    """Causal softmax attention over the last `window` keys (all, if None), self included.

    q [N, H, d], k and v [B, G, T, d] -> [N, H, d]. Without a compiler for the device (a CPU has one
    for inference alone) it runs eagerly, which costs O(N T) memory.
    """
    B, G, T, _ = k.shape
    table = Blocks(queries, B, 1, T)  # a row for each sequence
    room = -table.places % BUCKET
    last = F.pad(table.offsets(), (0, room))  # [B, m]
    lowest = torch.zeros_like(last) if window is None else (last - window + 1).clamp(min=0)
    spare = (0, 0, 0, -T % BUCKET)
    k, v = F.pad(k, spare), F.pad(v, spare)
    rows = F.pad(table.pack(q), (0, 0, 0, 0, 0, room)).transpose(1, 2).contiguous()
    is_used = F.pad(table.pack(torch.ones_like(queries.position)), (0, room)) > 0
    out = _kernel(q.device.type)(
        rows,
        k,
        v,
        block_mask=block_mask(last, lowest, is_used, k.shape[2]),
        enable_gqa=q.shape[1] != G,
    )
    return table.unpack(cast(Tensor, out).transpose(1, 2)[:, : table.places])


def block_mask(last: Tensor, lowest: Tensor, is_used: Tensor, keys: int) -> BlockMask:
    """The mask of queries that see the keys lowest .. last, [B, m] each, of `keys` S keys.

    Blocks of keys that every query of a block sees are told apart from those that some see, which
    alone have their elements masked. Places that are not used count for nothing; they see key 0.
    """
    B, m = last.shape
    far = torch.iinfo(last.dtype).max

    def ends(x: Tensor) -> tuple[Tensor, Tensor]:
        by_block = x.view(B, -1, BUCKET)
        used = is_used.view(B, -1, BUCKET)
        least = by_block.masked_fill(~used, far).amin(-1)
        return least[..., None], by_block.masked_fill(~used, -1).amax(-1)[..., None]

    (last_min, last_max), (lowest_min, lowest_max) = ends(last), ends(lowest)  # [B, m / 128, 1]
    first = torch.arange(0, keys, BUCKET, device=last.device)  # of each block of keys
    final = first + BUCKET - 1
    is_met = (first <= last_max) & (final >= lowest_min)
    is_whole = is_met & (final <= last_min) & (first >= lowest_max)

    def sees(b: Tensor, h: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        return (kv_index <= last[b, q_index]) & (kv_index >= lowest[b, q_index])

    return BlockMask.from_kv_blocks(
        *_listed(is_met & ~is_whole),
        *_listed(is_whole),
        BLOCK_SIZE=BUCKET,
        mask_mod=sees,
        seq_lengths=(m, keys),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [B, 1, r] and indices [B, 1, r, c] of the chosen of [B, r, c], in order."""
    count = chosen.sum(-1, dtype=torch.int32)
    index = chosen.int().argsort(dim=-1, descending=True, stable=True).int()
    return count[:, None], index[:, None]


@cache
def _kernel(device_type: str) -> Any:
    return flex_attention if device_type == "cpu" else torch.compile(flex_attention)
