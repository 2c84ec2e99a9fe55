"""Causal attention for some of the tokens: K and V of all, queries of those alone.

The counterparts of `functional`, with work that follows the number of queries.

Shapes: B sequences, H query heads, G key-value heads, T tokens, N queries, d head width,
W window, P positions in a block, n blocks, m places in a block. All functions take q [N, H, d], k
and v [B, G, T, d] and return [N, H, d]; a query depends on the keys up to its position alone.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention.functional import (
    feature_map,
    in_single_precision,
    linear_states,
    normalised,
)
from pyro_meta.attention.queries import Blocks, Queries

FULL_CHUNK, WINDOW_CHUNK = 64, 32  # queries; the more, the more keys that only some of them see
WINDOW_REACH = 512  # positions that a chunk of a window's queries may span
FAR = 1e38  # from 1 position on, below every score, and finite: 0 times it is 0
LINEAR_BLOCK = 64
LINEAR_CACHE = 1 << 16  # numbers of phi(k) at a time


def softmax_attention_of(
    q: Tensor, k: Tensor, v: Tensor, queries: Queries, window: int | None = None
) -> Tensor:
    """Causal softmax attention over the last `window` keys (all, if None), self included.

    Chunks of neighbouring queries meet the keys between the first and the last that any of them
    sees, and no others.
    """
    chunks = _chunks(queries, k.shape[0], k.shape[2], window)
    keys, values = _slices(k, chunks), _slices(v, chunks)
    masks = _Masks(queries, k.shape[2], window, q.dtype)
    out = [
        F.scaled_dot_product_attention(
            q[chunk.start : chunk.stop].transpose(0, 1)[None],
            some_keys,
            some_values,
            attn_mask=masks.of(chunk),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        for chunk, some_keys, some_values in zip(chunks, keys, values, strict=True)
    ]
    return torch.cat(out, 2)[0].transpose(0, 1)


class _Chunk(NamedTuple):
    """Queries start .. stop - 1, all of one sequence, and the keys that they meet."""

    start: int
    stop: int
    sequence: int
    first_query: int  # position
    first_key: int
    last_key: int  # that of the last query


def _chunks(queries: Queries, sequences: int, length: int, window: int | None) -> list[_Chunk]:
    reach = length if window is None else max(window, WINDOW_REACH)
    size = FULL_CHUNK if window is None else WINDOW_CHUNK
    blocks = -(-length // reach)
    block = queries.sequence * blocks + torch.div(queries.position, reach, rounding_mode="floor")
    counts = torch.bincount(block, minlength=sequences * blocks).tolist()
    starts, stops, owners = [], [], []
    begin = 0
    for row, count in enumerate(counts):
        end = begin + count
        for start in range(begin, end, size):
            starts.append(start)
            stops.append(min(start + size, end))
            owners.append(row // blocks)
        begin = end
    device = queries.position.device
    first = queries.position[torch.tensor(starts, device=device)].tolist()
    last = queries.position[torch.tensor(stops, device=device) - 1].tolist()
    past = length if window is None else window - 1
    return [
        _Chunk(start, stop, sequence, low, max(0, low - past), high)
        for start, stop, sequence, low, high in zip(starts, stops, owners, first, last, strict=True)
    ]


class _Masks:
    """Masks of chunks: 0 where a query sees a key, and below every score where it does not.

    In floating-point arithmetic, which on a CPU is several times faster than comparing and
    filling. Positions are counted from the first key of a chunk, so that they are exact.
    """

    def __init__(self, queries: Queries, length: int, window: int | None, dtype: torch.dtype):
        self._position = queries.position[:, None]  # [N, 1], integer
        self._keys = torch.arange(length, dtype=torch.float32, device=queries.position.device)
        self._window, self._dtype = window, dtype

    def of(self, chunk: _Chunk) -> Tensor:
        """[m, keys of the chunk]."""
        first, count = chunk.first_key, chunk.last_key + 1 - chunk.first_key
        position = (self._position[chunk.start : chunk.stop] - first).float()
        if self._window is None:  # every query sees the keys up to the first
            mask = position.new_zeros(len(position), count)
            seen = chunk.first_query - first
            unseen = mask[:, seen:]
            unseen.add_((position - self._keys[seen:count]).clamp_(max=0))
            unseen.mul_(FAR)
        else:
            distance = position - self._keys[:count]
            mask = (self._window - 1 - distance).clamp_(max=0)
            mask.add_(distance.clamp_(max=0)).mul_(FAR)
        return mask.to(self._dtype)


def _slices(x: Tensor, chunks: list[_Chunk]) -> tuple[Tensor, ...]:
    """The keys or values that each chunk meets, views [1, G, s, d] of x [B, G, T, d]."""
    return _Slices.apply(x, [(c.sequence, c.first_key, c.last_key + 1) for c in chunks])


class _Slices(torch.autograd.Function):
    """Views of x, whose gradients are summed where they lie.

    The gradient of an ordinary slice is a tensor of the size of x, nearly all of it zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: list[tuple[int, int, int]]) -> tuple[Tensor, ...]:
        ctx.where, ctx.like = where, (x.shape, x.dtype)
        return tuple(x[row : row + 1, :, first:end] for row, first, end in where)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shape, dtype = ctx.like
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros(shape, dtype=wide, device=grads[0].device)
        for (row, first, end), grad in zip(ctx.where, grads, strict=True):
            total[row : row + 1, :, first:end] += grad
        return total.to(dtype), None


def linear_attention_of(q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
    """Kernel attention (see `linear_attention`): states for all keys, outputs for own queries.

    A few heads at a time, so that what is in between fits a processor's cache.
    """
    B, G, T, d = k.shape
    group = q.shape[1] // G
    dtype = q.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = in_single_precision(q, k, v)
        P = min(LINEAR_BLOCK, T)
        n = -(-T // P)
        blocks = Blocks(queries, B, n, P)
        later = blocks.offsets()[..., None] < torch.arange(P, device=q.device)  # [B n, m, P]
        later = later.view(B, 1, n, 1, blocks.places, P)
        heads = max(1, min(G, LINEAR_CACHE // (B * T * d)))
        parts = zip(q.split(heads * group, 1), k.split(heads, 1), v.split(heads, 1), strict=True)
        out = torch.cat([_linear_heads(*part, blocks, later) for part in parts], 1)
    return out.to(dtype)


def _linear_heads(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, later: Tensor) -> Tensor:
    """Kernel attention of some heads; `later` [B, 1, n, 1, m, P] are the keys that are not seen."""
    B, G, _, d = k.shape
    _, _, n, _, m, P = later.shape
    H = q.shape[1]
    phi_k, value, before = linear_states(k, v, P)
    phi_q = blocks.pack(feature_map(q)).view(B, n, m, G, H // G, d)
    phi_q = phi_q.permute(0, 3, 1, 4, 2, 5).reshape(B, G, n, H // G * m, d)
    scores = phi_q @ phi_k.transpose(-1, -2)  # [B, G, n, H/G m, P]
    scores = scores.unflatten(3, (-1, m)).masked_fill_(later, 0).flatten(3, 4)
    out = normalised(scores @ value + phi_q @ before)
    out = out.view(B, G, n, H // G, m, d).permute(0, 2, 4, 1, 3, 5)
    return blocks.unpack(out.reshape(B * n, m, H, d))
