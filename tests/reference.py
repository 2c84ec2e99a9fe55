"""Slow, obvious attention: the truth that the fast paths are compared with."""

import math

import torch
from torch import Tensor


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Row by row: softmax over the last `window` keys (all, if None), self included."""
    rows = []
    for t in range(q.shape[2]):
        first = 0 if window is None else max(0, t + 1 - window)
        scores = (q[:, :, t, None] * k[:, :, first : t + 1]).sum(-1) / math.sqrt(q.shape[-1])
        weights = scores.softmax(-1)[..., None]
        rows.append((weights * v[:, :, first : t + 1]).sum(2))
    return torch.stack(rows, 2)


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
