"""Causal attention for some of the tokens: K and V of all, queries of those alone.

The counterparts of `pyro_meta.attention.ops.dense`, with work that follows the number of queries.
They come in order of sequence and position, so that neighbours see nearly the same keys:

* Softmax attention takes neighbours together, and has each group meet one slice of the keys.
* Sums over keys (linear and mean attention) are cut into blocks of P positions. A query gets what
  lies before its block from a state, one product with a d x d matrix, and what is inside its block
  key by key. The states are those of all tokens up to the last query, however few ask: that work is
  not spared.

Shapes: B sequences, H query heads, G key-value heads, T tokens, N queries, d head width,
W window, S sinks, P positions in a block, n blocks, m places in a block. All functions take q
[N, H, d], k and v [B, G, T, d] and return [N, H, d]; a query depends on the keys up to its position
alone.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention.ops.dense import (
    feature_map,
    linear_states,
    normalised,
    states_by_chunk,
)
from pyro_meta.attention.ops.masked import FAR
from pyro_meta.attention.ops.precision import at_least_float32
from pyro_meta.attention.ops.queries import Blocks, Queries
from pyro_meta.attention.ops.slices import Slice, slices

FULL_CHUNK, WINDOW_CHUNK = 64, 64  # queries; the more, the more keys that only some of them see
MANY, CHUNK_OF_MANY = 1024, 192  # full queries of a sequence: more at once, in larger products
WINDOW_REACH = 256  # positions that a chunk of a window's queries may span
LINEAR_BLOCK = 64  # P
LINEAR_CACHE = 1 << 17  # numbers of phi(k) at a time: they fit a processor's cache


def softmax_attention_of(
    q: Tensor, k: Tensor, v: Tensor, queries: Queries, window: int | None = None, sinks: int = 0
) -> Tensor:
    """Causal softmax attention over the last `window` keys (all, if None), self included.

    And over the first `sinks` of the text. Chunks of neighbouring queries meet the keys between the
    first and the last that any of them sees, the sinks, and no others.
    """
    chunks = _chunks(queries, k.shape[0], k.shape[2], window, sinks)
    own = q.transpose(0, 1)[None].split([chunk.size for chunk in chunks], 2)
    keys, values = _met(k, chunks), _met(v, chunks)
    masks = _masks(queries, chunks, window, sinks, q.dtype)
    is_grouped = q.shape[1] != k.shape[1]
    out = [
        F.scaled_dot_product_attention(*three, attn_mask=mask, enable_gqa=is_grouped)
        for three, mask in zip(zip(own, keys, values, strict=True), masks, strict=True)
    ]
    return torch.cat([rows.transpose(1, 2) for rows in out], 1)[0]


class _Chunk(NamedTuple):
    """Neighbouring queries, all of one sequence, and the keys that they meet."""

    size: int
    sequence: int
    first_key: int
    keys: int  # up to the last query's own
    sinks: int  # first keys of the sequence, where they lie before the others; all see all of them


def _chunks(
    queries: Queries, sequences: int, length: int, window: int | None, sinks: int = 0
) -> list[_Chunk]:
    reach = length if window is None else max(window, WINDOW_REACH)
    if window is not None:
        most = WINDOW_CHUNK
    else:
        most = FULL_CHUNK if len(queries.position) < MANY * sequences else CHUNK_OF_MANY
    past = length if window is None else window - 1
    chunks = []
    for size, sequence, first, last in queries.neighbours(sequences, length, reach, most):
        first_key = max(0, first - past)
        if first_key > sinks:
            chunks.append(_Chunk(size, sequence, first_key, last + 1 - first_key, sinks))
        else:  # one slice holds the sinks and all that follows
            chunks.append(_Chunk(size, sequence, 0, last + 1, 0))
    return chunks


def _met(x: Tensor, chunks: list[_Chunk]) -> list[Tensor]:
    """Keys or values [1, G, sinks + keys, d] that each chunk meets, of x [B, G, T, d]."""
    apart = [chunk for chunk in chunks if chunk.sinks]
    where = [Slice(chunk.sequence, 1, chunk.first_key, chunk.keys) for chunk in chunks]
    found = slices(x, where + [Slice(chunk.sequence, 1, 0, chunk.sinks) for chunk in apart])
    met, sinks = found[: len(chunks)], iter(found[len(chunks) :])
    return [
        torch.cat([next(sinks), own], 2) if chunk.sinks else own
        for chunk, own in zip(chunks, met, strict=True)
    ]


def _masks(
    queries: Queries, chunks: list[_Chunk], window: int | None, sinks: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """What is added to a chunk's scores, [size, sinks + keys]: 0 for keys that a query sees.

    All rows are pieces of one line, .. FAR FAR 0 0 .. 0 0 FAR FAR .., that start where the zeros
    fall on the keys that are seen: to copy them is several times as fast as to compare positions.
    Sinks among the keys are seen as far as they are past: their columns are pieces of a line that
    begins with zeros.
    """
    device = queries.position.device
    span = max(chunk.keys for chunk in chunks)
    line = torch.full((2 * span,), max(FAR, torch.finfo(dtype).min), dtype=dtype, device=device)
    line[max(0, span - (window or span)) : span] = 0
    sizes = [chunk.size for chunk in chunks]
    first_key = torch.tensor([chunk.first_key for chunk in chunks], device=device)
    first_key = first_key.repeat_interleave(torch.tensor(sizes, device=device))
    place = queries.position - first_key
    causal = line
    if sinks:
        causal = line.clone()
        causal[:span] = 0
    for chunk, own in zip(chunks, (span - 1 - place).split(sizes), strict=True):
        mask = line.as_strided((span, chunk.keys), (1, 1)).index_select(0, own)
        if chunk.sinks:
            mask = F.pad(mask, (chunk.sinks, 0))
        elif sinks:
            first = min(sinks, chunk.keys)
            mask[:, :first] = causal.as_strided((span, first), (1, 1)).index_select(0, own)
        yield mask


def linear_attention_of(q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
    """Kernel attention (see `linear_attention`): states for all keys, outputs for own queries.

    On a CPU a few heads at a time, so that what is in between fits its cache.
    """
    return _scanned(_linear_heads, q, k, v, queries)


def mean_attention_of(q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
    """Scores averaged over the tokens that are seen (see `mean_attention`), likewise."""
    seen = (queries.position + 1).to(torch.promote_types(q.dtype, torch.float32))
    return _scanned(_mean_heads, q / seen[:, None, None], k, v, queries).to(v.dtype)


def _scanned(
    heads_of: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, queries: Queries
) -> Tensor:
    """[N, H, d] by `heads_of`, which sums over keys; on a CPU a few heads at a time."""
    B, G, T, d = k.shape
    N, H, _ = q.shape
    dtype = q.dtype
    if not q.is_cuda:  # which would be waited for
        T = int(queries.position.max()) + 1
        k, v = k[:, :, :T], v[:, :, :T]
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = map(at_least_float32, (q, k, v))
        P = min(LINEAR_BLOCK, T)
        blocks = Blocks(queries, B, -(-T // P), P)
        seen = blocks.offsets()[..., None] >= torch.arange(P, device=q.device)  # [B n, m, P]
        seen = seen.to(q.dtype).view(B, 1, -1, 1, blocks.places, P)
        heads = G if q.is_cuda else max(1, min(G, LINEAR_CACHE // (B * T * d)))
        parts = zip(
            q.unflatten(1, (G, H // G)).split(heads, 1),
            k.split(heads, 1),
            v.split(heads, 1),
            strict=True,
        )
        out = torch.cat([heads_of(*part, blocks, seen) for part in parts], 1)
    return out.view(N, H, d).to(dtype)


def _linear_heads(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, seen: Tensor) -> Tensor:
    """Kernel attention of some key-value heads h, each with a group of g query heads.

    q [N, h, g, d], k and v [B, h, T, d], seen [B, 1, n, 1, m, P] (1 where a query sees a key of
    its block, else 0) -> [N, h, g, d].
    """
    return normalised(_sums(feature_map(q), linear_states(k, v, seen.shape[-1]), blocks, seen))


def _mean_heads(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, seen: Tensor) -> Tensor:
    """Mean attention likewise, of queries that have been divided by what they see."""
    return _sums(q, states_by_chunk(k, v, seen.shape[-1]), blocks, seen)


def _sums(q: Tensor, states: tuple[Tensor, Tensor, Tensor], blocks: Blocks, seen: Tensor) -> Tensor:
    """sum_s (q_t . k_s) v_s over the keys that each query sees: [N, h, g, e] of q [N, h, g, d].

    `states` are `states_by_chunk` with C = P: keys [B, h, n, P, d], values [B, h, n, P, e], and the
    sum of key value^T before each block, [B, h, n, d, e]. Queries lie in a table with m places for
    each block, so that a block's own keys are one product, masked by `seen`, and what was before it
    another.
    """
    B, _, n, _, m, P = seen.shape
    h, g, d = q.shape[1:]
    keys, values, before = states
    rows = blocks.pack(q).view(B, n, m, h, g, d).permute(0, 3, 1, 4, 2, 5)
    rows = rows.reshape(B, h, n, g * m, d)  # heads of a group are rows: no key is copied
    scores = (rows @ keys.transpose(-1, -2)).view(B, h, n, g, m, P)  # inside the block
    scores = scores.mul_(seen)
    out = scores.flatten(3, 4) @ values + rows @ before
    out = out.view(B, h, n, g, m, -1).permute(0, 2, 4, 1, 3, 5)
    return blocks.unpack(out.reshape(B * n, m, h, g, -1))
