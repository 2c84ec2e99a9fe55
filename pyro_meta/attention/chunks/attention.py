"""Attention to near tokens one by one, and to finished chunks of older ones by a summary each.

A query at position t reads the tokens lowest(t) .. t and the summaries of all chunks before
lowest(t), in one softmax with the logits

    q . k_s / sqrt(d)                     of a token s
    q . k_m / sqrt(d) + log n_m           of a chunk m of n_m tokens

where inside chunk m, per head, w = softmax(u . k), k_m = sum w k and v_m = sum w v. lowest(t) is
the start of the chunk that holds position t - recent + 1 (0 at least): so a query never reads a
summary of its own chunk, every earlier token is read once, by itself or in a summary, and at least
the last `recent` tokens are read by themselves.

Keys are rotated by position before they are summed. Then q . k_m is exactly the mean, by w, of the
logits of the chunk's tokens, each at its own distance; and log n_m + q . k_m is at most the
logarithm of their summed weights if w is even (Jensen), with equality where the logits agree. The
weights w look at the channels that no position turns, or else they would change with where in the
text a chunk lies.

Shapes: B sequences, R rows (B, or 1 where all sequences agree), H query heads, G key-value heads,
T tokens, N queries, M chunks (the last of a row is never finished), m finished ones, d head width,
L longest summed stretch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention.ops.precision import at_least_float32
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.ops.slices import Slice, slices
from pyro_meta.attention.rotary import unturned

QUERIES = 128  # neighbours that meet their keys together, where all tokens are queries
GATHERED, GATHERED_REACH = 32, 256  # and where some are, within as many positions
FAR = -1e38  # below every logit, and finite: a block of keys that a query does not see at all


class Digest(NamedTuple):
    """What queries read of chunks."""

    starts: Tensor
    """First position of each chunk, [R, M], ascending from 0; T or more where a row has fewer."""
    key: Tensor
    """[B, G, M - 1, d]; anything where a row has fewer finished chunks."""
    value: Tensor
    """Likewise."""
    log_size: Tensor
    """log n, what is added to the logits of summaries, [R, M - 1]."""
    nudges: tuple[Tensor, Tensor] | None = None
    """What is added to the logits of summaries and of tokens, [B, M - 1] and [B, T], to pass on
    gradients: zeros in value."""


def summaries(
    k: Tensor, v: Tensor, first: Tensor, end: Tensor, scorer: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [B, G, m, d] of the stretches first .. end - 1 of k and v [B, G, T, d].

    Parameters
    ----------
    first, end
        [R, m], positions with at most `longest` between them. Where `first` is not below `end`, the
        summary is that of any one token.
    scorer
        u, one number for each channel that is not turned.
    longest
        L.
    """
    B, G, T, d = k.shape
    m, dtype = first.shape[1], v.dtype
    with torch.autocast(k.device.type, enabled=False):
        k, v, scorer = map(at_least_float32, (k, v, scorer))
        step = torch.arange(longest, device=k.device) - longest
        place = end[..., None] + step  # [R, m, L]; a stretch ends at the right
        is_out = place < first[..., None]
        is_out[..., -1] = False
        head = torch.arange(B * G, device=k.device).view(B, G, 1, 1) * T
        token = (head + place.clamp(0, T - 1)[:, None]).flatten()  # [B G m L]
        keys, values = (
            x.reshape(-1, d).index_select(0, token).view(B, G, m, longest, d) for x in (k, v)
        )
        score = unturned(keys) @ scorer  # [B, G, m, L]
        weight = score.masked_fill(is_out[:, None], -torch.inf).softmax(-1)[..., None, :]
        key, value = ((weight @ x)[..., 0, :] for x in (keys, values))
    return key.to(dtype), value.to(dtype)


def log_sizes(starts: Tensor, dtype: torch.dtype) -> Tensor:
    """log n of each chunk that another follows, [R, M - 1], of starts [R, M]."""
    return starts.diff(dim=1).clamp(min=1).to(dtype).log()


def chunk_attention(q: Tensor, k: Tensor, v: Tensor, digest: Digest, recent: int) -> Tensor:
    """Attention of all tokens: q, k, v [B, H, T, d] -> [B, H, T, d].

    Blocks of neighbouring queries meet the summaries of chunks that any of them has behind it, and
    the tokens that any of them reads by itself. No block has more than O(T / C) keys, and nothing
    of size T x T is ever formed.
    """
    B, _, T, _ = q.shape
    position = torch.arange(T, device=q.device)
    finished, lowest = reach_of_all(digest.starts, position, recent)
    first = range(0, T, QUERIES)
    ends = [min(begin + QUERIES, T) for begin in first]
    last = torch.tensor(ends, device=q.device) - 1
    lows, counts = lowest[:, ::QUERIES].amin(0).tolist(), finished[:, last].amax(0).tolist()
    near = [Slice(0, B, low, end - low) for low, end in zip(lows, ends, strict=True)]
    far = [Slice(0, B, 0, count) for count in counts]
    by_block = zip(*(x.split(QUERIES, 1) for x in (position[None], lowest, finished)), strict=True)
    masks = [
        _mask(own, one, other, digest) for own, one, other in zip(by_block, near, far, strict=True)
    ]
    return torch.cat(_attended(list(q.split(QUERIES, 2)), k, v, digest, near, far, masks), 2)


def chunk_attention_of(
    q: Tensor, k: Tensor, v: Tensor, digest: Digest, recent: int, queries: Queries
) -> Tensor:
    """Attention of some tokens: q [N, H, d], k and v [B, G, T, d] -> [N, H, d]."""
    B, _, T, _ = k.shape
    finished, lowest = _reach(digest.starts, queries, recent)
    groups = queries.neighbours(B, T, GATHERED_REACH, GATHERED)
    sizes = [group.size for group in groups]
    by_group = [x.split(sizes) for x in (queries.position, lowest, finished)]
    ends = torch.tensor(sizes, device=q.device).cumsum(0)
    lows, counts = lowest[ends - ends.new_tensor(sizes)].tolist(), finished[ends - 1].tolist()
    near = [
        Slice(group.sequence, 1, low, group.last + 1 - low)
        for group, low in zip(groups, lows, strict=True)
    ]
    far = [Slice(group.sequence, 1, 0, count) for group, count in zip(groups, counts, strict=True)]
    masks = [
        _mask([x[None] for x in own], one, other, digest)
        for own, one, other in zip(zip(*by_group, strict=True), near, far, strict=True)
    ]
    own = list(q.transpose(0, 1)[None].split(sizes, 2))
    rows = _attended(own, k, v, digest, near, far, masks)
    return torch.cat([x.transpose(1, 2) for x in rows], 1)[0]


def reach_of_all(starts: Tensor, position: Tensor, recent: int) -> tuple[Tensor, Tensor]:
    """How many summaries a query reads at each of `position` [T], and the first token that it reads
    by itself: [R, T] each, of starts [R, M]."""
    R, T = len(starts), len(position)
    row = torch.arange(R, device=position.device).repeat_interleave(T)
    finished, lowest = _reach(starts, Queries(row, position.repeat(R)), recent)
    return finished.view(R, T), lowest.view(R, T)


def _reach(starts: Tensor, queries: Queries, recent: int) -> tuple[Tensor, Tensor]:
    """The same for N queries: [N] each."""
    R, M = starts.shape
    row = queries.sequence if R > 1 else torch.zeros_like(queries.sequence)
    furthest = (queries.position - (recent - 1)).clamp(min=0)
    beyond = torch.maximum(starts.amax(), queries.position.amax()) + 1  # rows one after another
    line = (starts + beyond * torch.arange(R, device=starts.device)[:, None]).flatten()
    at = torch.searchsorted(line, furthest + beyond * row, right=True) - 1
    return at - row * M, line[at] - beyond * row


def _mask(own: Sequence[Tensor], near: Slice, far: Slice, digest: Digest) -> Tensor:
    """What is added to the logits of summaries and tokens, [r, 1, queries, keys].

    `own` of the queries, [r or 1, queries] each: position, first token that is read by itself,
    number of summaries that are read.
    """
    position, lowest, finished = own
    place = torch.arange(near.first, near.first + near.size, device=position.device)
    is_seen = (place >= lowest[..., None]) & (place <= position[..., None])
    is_behind = torch.arange(far.size, device=position.device) < finished[..., None]
    bias = _of_rows(digest.log_size, far)[:, None, : far.size]
    one = bias.new_zeros(()).expand(is_seen.shape).masked_fill(~is_seen, FAR)
    return torch.cat([torch.where(is_behind, bias, FAR), one], -1)[:, None]


def _of_rows(x: Tensor, where: Slice) -> Tensor:
    """Rows of x [R, ..] that a slice of the batch is of."""
    return x if len(x) == 1 else x.narrow(0, where.row, where.rows)


def _attended(
    q: Sequence[Tensor],
    k: Tensor,
    v: Tensor,
    digest: Digest,
    near: Sequence[Slice],
    far: Sequence[Slice],
    masks: Sequence[Tensor],
) -> list[Tensor]:
    """Each of q [r, H, queries, d] with its own keys and what is added to its logits."""
    d = k.shape[-1]
    if digest.nudges is not None:
        q, k, v, digest = _nudged(q, k, v, digest)
    keys = zip(slices(digest.key, far), slices(k, near), strict=True)
    values = zip(slices(digest.value, far), slices(v, near), strict=True)
    is_grouped = q[0].shape[1] != k.shape[1]
    return [
        F.scaled_dot_product_attention(
            own,
            torch.cat(key, 2),
            torch.cat(value, 2),
            attn_mask=mask.to(own.dtype).clamp(min=torch.finfo(own.dtype).min),
            scale=d**-0.5,
            enable_gqa=is_grouped,
        )[..., :d]
        for own, key, value, mask in zip(q, keys, values, masks, strict=True)
    ]


def _nudged(
    q: Sequence[Tensor], k: Tensor, v: Tensor, digest: Digest
) -> tuple[list[Tensor], Tensor, Tensor, Digest]:
    """All with a channel more, in which keys carry their nudges.

    A mask that needs gradients would be refused by the fast kernels.
    """
    assert digest.nudges is not None
    G, d = k.shape[1], k.shape[-1]

    def carrying(x: Tensor, nudge: Tensor) -> Tensor:
        column = (d**0.5 * nudge).to(x.dtype)[:, None, :, None].expand(-1, G, -1, -1)
        return torch.cat([x, column], -1)

    of_summaries, of_tokens = digest.nudges
    digest = digest._replace(
        key=carrying(digest.key, of_summaries), value=F.pad(digest.value, (0, 1))
    )
    asking = [F.pad(own, (0, 1), value=1.0) for own in q]
    return asking, carrying(k, of_tokens), F.pad(v, (0, 1)), digest
