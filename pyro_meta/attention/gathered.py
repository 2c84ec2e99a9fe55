"""Causal attention for some of the tokens: K and V of all, queries of those alone.

The counterparts of `functional`, with work that follows the number of queries.

Shapes: B sequences, H query heads, G key-value heads, T tokens, N queries, d head width,
W window, P positions in a block, n blocks, m places in a block. All functions take q [N, H, d], k
and v [B, G, T, d] and return [N, H, d]; a query depends on the keys up to its position alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention.functional import feature_map, in_single_precision, linear_states
from pyro_meta.attention.queries import Blocks, Queries

FULL_CHUNK = 64
WINDOW_BLOCK = 64
LINEAR_BLOCK = 64


def full_attention_of(q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
    """Causal softmax attention: chunks of neighbouring queries meet keys up to their last position.

    The mask differs from 0 only between a chunk's first and last position, so that building it
    costs little beside the attention.
    """
    out = []
    counts = torch.bincount(queries.sequence, minlength=k.shape[0]).tolist()
    start = 0
    for keys, values, count in zip(k, v, counts, strict=True):
        stop = start + count
        while start < stop:
            chunk = slice(start, min(start + FULL_CHUNK, stop))
            out.append(_meet(q[chunk], keys, values, queries.position[chunk]))
            start = chunk.stop
    return torch.cat(out)


def _meet(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    """q [m, H, d] at ascending positions [m] of one sequence, k and v [G, T, d]: [m, H, d]."""
    first, end = int(position[0]), int(position[-1]) + 1
    mask = q.new_zeros(len(q), end)
    later = position[:, None] < torch.arange(first, end, device=q.device)
    mask[:, first:].masked_fill_(later, -torch.inf)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None, :, :end],
        v[None, :, :end],
        attn_mask=mask,
        enable_gqa=q.shape[1] != k.shape[0],
    )
    return out[0].transpose(0, 1)


def window_attention_of(
    q: Tensor, k: Tensor, v: Tensor, queries: Queries, window: int
) -> Tensor:
    """Softmax over the last `window` keys, self included: blocks of P positions, each with its own
    P + W - 1 keys.

    K and V are copied once; the blocks are overlapping views of that copy.
    """
    B, G, T, d = k.shape
    W = min(window, T)
    P = min(max(W, WINDOW_BLOCK), T)
    past = W - 1
    n = -(-T // P)
    rooms = n + (past > 0)  # one more than blocks, for the keys before the first
    blocks = Blocks(queries, B, rooms, P)
    rows = B * rooms - (past > 0)

    def keys_of_blocks(x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(0, 1), (0, 0, past, rooms * P - past - T))
        views = padded.reshape(G, B * rooms * P, d).unfold(1, P + past, P)  # [G, rows, d, P + past]
        return views.permute(1, 0, 3, 2)

    # A query at offset i of its block sees keys i .. i + past of the block's P + past, of which
    # those of the first block begin with the padding before the first token.
    i = blocks.offsets()[:rows, :, None]  # [rows, m, 1]
    j = torch.arange(P + past, device=q.device)
    starts = torch.arange(rooms, device=q.device).repeat(B)[:rows, None, None] * P
    visible = (j >= i) & (j <= i + past) & (j + starts >= past)
    out = F.scaled_dot_product_attention(
        blocks.pack(q)[:rows].transpose(1, 2),
        keys_of_blocks(k),
        keys_of_blocks(v),
        attn_mask=visible[:, None],
        enable_gqa=q.shape[1] != G,
    )
    return blocks.unpack(out.transpose(1, 2))


def linear_attention_of(q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
    """Kernel attention (see `linear_attention`): states for all keys, outputs for own queries."""
    B, G, T, d = k.shape
    N, H, _ = q.shape
    dtype = q.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = in_single_precision(q, k, v)
        P = min(LINEAR_BLOCK, T)
        phi_k, value, state, normaliser = linear_states(k, v, P)
        n = phi_k.shape[2]
        blocks = Blocks(queries, B, n, P)
        m = blocks.places
        phi_q = blocks.pack(feature_map(q)).view(B, n, m, G, H // G, d)
        phi_q = phi_q.permute(0, 3, 1, 4, 2, 5).reshape(B, G, n, H // G * m, d)
        later = blocks.offsets()[..., None] < torch.arange(P, device=q.device)  # [B n, m, P]
        later = later.view(B, 1, n, 1, m, P)
        scores = phi_q @ phi_k.transpose(-1, -2)  # [B, G, n, H/G m, P]
        scores = scores.view(B, G, n, H // G, m, P).masked_fill(later, 0).flatten(3, 4)
        numerator = scores @ value + phi_q @ state
        denominator = scores.sum(-1, keepdim=True) + phi_q @ normaliser[..., None]
        denominator = denominator.clamp(min=torch.finfo(denominator.dtype).tiny)
        out = (numerator / denominator).view(B, G, n, H // G, m, d)
        out = blocks.unpack(out.permute(0, 2, 4, 1, 3, 5).reshape(B * n, m, H, d))
    return out.to(dtype)
