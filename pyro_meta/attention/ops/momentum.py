"""Linear attention as a damped Hamiltonian system: tokens as particles with a momentum.

Of particles with states x_t and momenta p_t, rows of X and P, and a symmetric A (SympFormer,
arXiv 2603.16535):

    H  = 1/(2 N) tr(P^T X A X^T P) - 1/2 tr(X V X^T)
    X' =  dH/dP       = 1/N X A X^T P
    P' = -dH/dX - a P = X V^T - 1/N P P^T X A - a P,         a(t) = c_log / t + c_lin

With q = X A, k = X, v = X V^T and the average A(q, k, v)_t = 1/n_t sum_{s<=t} (q_t . k_s) v_s over
the n_t = t + 1 tokens that t sees, both forces are linear attention, and one step of length 1 of
the conformal symplectic scheme is a kick and a drift:

    P+ = s (P + v - A(P, P, q)),      s = exp(eta(t) - eta(t + 1)),   eta(t) = c_log log t + c_lin t
    X+ = X + A(q, k, P+)

Division is by visible tokens, never by the length of the text.

Shapes: B sequences, H query heads, G key-value heads, T tokens, S new ones, d head width.
"""

import math

import torch
from torch import Tensor

from pyro_meta.attention.ops.dense import LINEAR_CHUNK, in_chunks, states_by_chunk
from pyro_meta.attention.ops.precision import at_least_float32, without_autocast

LOG_DAMPING, STEADY_DAMPING, FIRST_TIME = 3.0, 1e-4, 1.0
"""c_log (3 / t is Nesterov's), c_lin, and the time of the first layer."""


def damping(layer: int) -> float:
    """s, the share of its momentum that a token keeps in a layer: (t / (t + 1))^3 e^-.0001."""
    time = FIRST_TIME + layer
    return math.exp(-LOG_DAMPING * math.log((time + 1) / time) - STEADY_DAMPING)


def mean_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y_t = 1/n_t sum_{s<=t} (q_t . k_s) v_s, causal; n_t = t + 1 tokens are seen.

    q, k, v [B, H, T, d] -> [B, H, T, d]. A chunked scan as `linear_attention`, whose weights are
    positive and sum to 1; these have either sign. Sums run in float32 at least.
    """
    T, dtype = q.shape[2], v.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = map(at_least_float32, (q, k, v))
        C = min(LINEAR_CHUNK, T)
        seen = torch.arange(1, T + 1, device=q.device, dtype=q.dtype)[:, None]
        queries = in_chunks(q / seen, C)
        keys, values, before = states_by_chunk(k, v, C)
        scores = (queries @ keys.transpose(-1, -2)).tril()
        out = (scores @ values + queries @ before).flatten(2, 3)[:, :, :T]
    return out.to(dtype)


def mean_state(k: Tensor, v: Tensor, is_token: Tensor | None = None) -> Tensor:
    """sum_s k_s v_s^T and, in a last row, how many tokens s there are: [B, G, d + 1, d].

    k and v [B, G, S, d]; `is_token` [B, S] tells tokens from padding, which counts for nothing.
    """
    B, G, S, d = v.shape
    with without_autocast(k.device):
        k, v = at_least_float32(k), at_least_float32(v)
        count = v.new_full((B,), S)
        if is_token is not None:
            count = is_token.sum(1).to(v.dtype)
            v = v * is_token[:, None, :, None]
        moments = k.transpose(-1, -2) @ v
        return torch.cat([moments, count.view(B, 1, 1, 1).expand(B, G, 1, d)], 2)


def mean_attention_after(q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
    """`mean_attention` of S tokens that follow others.

    Parameters
    ----------
    q
        [B, H, S, d].
    k, v
        [B, G, S, d].
    past
        [B, G, d + 1, d], `mean_state` of the tokens before them.

    Returns
    -------
    Tensor
        [B, H, S, d].
    """
    _, H, S, _ = q.shape
    G, dtype = k.shape[1], v.dtype
    with without_autocast(q.device):
        q, k, v = map(at_least_float32, (q, k, v))
        moments, before = past[..., :-1, :], past[:, :1, -1, :1]  # [B, G, d, d], [B, 1, 1]
        seen = before + torch.arange(1, S + 1, device=q.device)  # [B, 1, S]
        C = min(LINEAR_CHUNK, S)
        queries = in_chunks(q / seen[..., None], C).unflatten(1, (G, H // G))
        parts = states_by_chunk(k, v, C)
        keys, values, earlier = (x[:, :, None] for x in parts)  # [B, G, 1, n, C or d, d]
        scores = (queries @ keys.transpose(-1, -2)).tril()
        out = scores @ values + queries @ (earlier + moments[:, :, None, None])
        out = out.flatten(3, 4).flatten(1, 2)[:, :, :S]
    return out.to(dtype)
