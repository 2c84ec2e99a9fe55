"""Slow, obvious attention: the truth that the fast paths are compared with."""

import itertools
import math

import torch
from torch import Tensor


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, sinks: int = 0
) -> Tensor:
    """Row by row: softmax over the last `window` keys (all, if None), self included.

    And over the first `sinks` of the text.
    """
    rows = []
    for t in range(q.shape[2]):
        seen = [s for s in range(t + 1) if window is None or s > t - window or s < sinks]
        scores = (q[:, :, t, None] * k[:, :, seen]).sum(-1) / math.sqrt(q.shape[-1])
        weights = scores.softmax(-1)[..., None]
        rows.append((weights * v[:, :, seen]).sum(2))
    return torch.stack(rows, 2)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor) -> Tensor:
    """All scores at once, of which those that `is_seen` [T, T] count."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~is_seen, -math.inf).softmax(-1) @ v


def seen_by_window(length: int, window: int, sinks: int) -> Tensor:
    """Which keys each query sees, [T, T]: the last `window` of them and the first `sinks`."""
    t, s = torch.arange(length)[:, None], torch.arange(length)
    return (s <= t) & ((s > t - window) | (s < sinks))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Row by row: weights phi(q_t).phi(k_s) over s <= t, normalised; phi = elu + 1."""
    phi_q, phi_k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
    rows = []
    for t in range(q.shape[2]):
        weights = (phi_q[:, :, t, None] * phi_k[:, :, : t + 1]).sum(-1)
        weights = weights / weights.sum(-1, keepdim=True)
        rows.append((weights[..., None] * v[:, :, : t + 1]).sum(2))
    return torch.stack(rows, 2)


def mean_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Row by row: scores q_t.k_s weigh the values of s <= t, whose number they are divided by."""
    rows = []
    for t in range(q.shape[2]):
        scores = (q[:, :, t, None] * k[:, :, : t + 1]).sum(-1)[..., None]
        rows.append((scores * v[:, :, : t + 1]).sum(2) / (t + 1))
    return torch.stack(rows, 2)


def chunk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: list[list[int]],
    scorer: Tensor,
    recent: int = 1,
    reach: int | None = None,
    nudge: Tensor | None = None,
) -> Tensor:
    """Row by row: one softmax over near tokens and the summaries of finished chunks.

    `starts` of each sequence; `reach` tokens are summed for each summary, ending with its chunk
    (None: the chunk's own); `nudge` [B, T] is what `chunk_learned` adds to logits.
    """
    B, _, T, d = q.shape
    content = k[..., d - len(scorer) :]
    sequences = []
    for b in range(B):
        rows = []
        for t in range(T):
            begun = [s for s in starts[b] if s <= t]
            furthest = max(0, t - recent + 1)
            lowest = max(s for s in begun if s <= furthest)
            keys, values, biases = [], [], []
            for first, end in itertools.pairwise(begun):
                if end > lowest:
                    break
                low = first if reach is None else max(0, end - reach)
                weight = (content[b, :, low:end] @ scorer).softmax(-1)[..., None]
                keys.append((weight * k[b, :, low:end]).sum(1))
                values.append((weight * v[b, :, low:end]).sum(1))
                bias = torch.tensor(math.log(end - first), dtype=q.dtype)
                biases.append(bias if nudge is None else bias + nudge[b, end])
            for s in range(lowest, t + 1):
                keys.append(k[b, :, s])
                values.append(v[b, :, s])
                is_open = nudge is not None and s not in starts[b]
                biases.append(-nudge[b, s] if is_open else torch.zeros((), dtype=q.dtype))  # type: ignore[index]
            scores = (q[b, :, t, None] * torch.stack(keys, 1)).sum(-1) / math.sqrt(d)
            weights = (scores + torch.stack(biases)).softmax(-1)
            rows.append((weights[..., None] * torch.stack(values, 1)).sum(1))
        sequences.append(torch.stack(rows, 1))
    return torch.stack(sequences)
