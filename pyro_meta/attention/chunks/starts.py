"""Where chunks of tokens begin.

Every rule is causal: whether a token begins a chunk depends on itself and on earlier tokens alone,
so that a chunk is known to be finished only when the next one has begun.

Shapes: B sequences, R rows of starts (B, or 1 where all sequences agree), T tokens, M chunks,
G heads, c channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention.ops.precision import at_least_float32


def regular_starts(length: int, size: int, device: torch.device) -> Tensor:
    """A chunk every `size` tokens: [1, M]."""
    return torch.arange(0, length, size, device=device)[None]


def bounded_starts(wanted: Tensor, least: int, most: int) -> Tensor:
    """Chunks that begin where wanted, but have `least` to `most` tokens: [B, M].

    A chunk ends before the first token that wants to begin one and comes `least` tokens or more
    after its start; without such a token, after `most` tokens. Rows with fewer chunks than M are
    filled up with T.

    The rule is a walk from start to start. The step that every position would take is tabled, and
    the walk is doubled again and again: O(T log T).

    Parameters
    ----------
    wanted
        [B, T], boolean.
    least, most
        1 <= least <= most.
    """
    B, T = wanted.shape
    position = torch.arange(T, device=wanted.device)
    at_end = position.new_full((B, 1), T)
    own = position.expand(B, T).masked_fill(~wanted, T)
    following = own.flip(1).cummin(1).values.flip(1)  # the first at or after each position
    following = torch.cat([following, at_end], 1)[:, (position + least).clamp(max=T)]
    step = torch.minimum(following, position + most).clamp(max=T)
    step = torch.cat([step, at_end], 1)  # [B, T + 1]; from T to T
    starts = torch.zeros_like(at_end)
    while bool((starts[:, -1] < T).any()):
        starts = torch.cat([starts, step.gather(1, starts)], 1)
        step = step.gather(1, step)
    return starts[:, : int((starts < T).sum(1).max())]


def boundary_probability(x: Tensor, to_query: Tensor, to_key: Tensor) -> Tensor:
    """p_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2, and 1 for the first token: [B, T].

    A token that resembles the one before it goes on with its chunk (the routing module of Hwang et
    al. 2025, arXiv 2507.07955). In float32 at least, whatever the autocast dtype: to be above .5 is
    a decision.

    Parameters
    ----------
    x
        [B, G, T, c]; the heads of a token are read as one vector, each turned by the same matrix.
    to_query, to_key
        [c, c], W_q and W_k.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, to_query, to_key = map(at_least_float32, (x, to_query, to_key))
        before = (x[:, :, :-1] @ to_query.T).transpose(1, 2).flatten(2)  # [B, T - 1, G c]
        now = (x[:, :, 1:] @ to_key.T).transpose(1, 2).flatten(2)
        return F.pad((1 - F.cosine_similarity(before, now, dim=-1)) / 2, (1, 0), value=1.0)


def ratio_loss(probability: Tensor, is_start: Tensor, size: float) -> Tensor:
    """Least, 1, where one token in `size` begins a chunk, and the probabilities say so (scalar).

    N / (N - 1) ((N - 1) F G + (1 - F)(1 - G)), with the share F of tokens that begin a chunk and
    the mean probability G (the ratio loss of Hwang et al. 2025, arXiv 2507.07955). Its gradient
    goes through G: the probabilities fall while there are too many chunks, and rise while there are
    too few.

    Parameters
    ----------
    probability, is_start
        [B, T].
    size
        N > 1, the mean length that is aimed at.
    """
    share = is_start.to(probability.dtype).mean()
    mean = probability.mean()
    return size / (size - 1) * ((size - 1) * share * mean + (1 - share) * (1 - mean))
