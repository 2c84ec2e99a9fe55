"""Causal attention as pure tensor functions.

Shapes: B sequences, H heads, T tokens, d head width, W window, S sinks, C chunk, n chunks.
All functions take q, k, v of shape [B, H, T, d] and return [B, H, T, d]; row t depends on
rows 0..t alone.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_meta.attention.ops.backend import uses_triton
from pyro_meta.attention.ops.heads import with_heads
from pyro_meta.attention.ops.precision import at_least_float32, without_autocast

WINDOW_CHUNK = 64
LINEAR_CHUNK = 64
SUM_GROUP = 32
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_FLASH: Callable[..., tuple[Tensor, Tensor]] | None = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None
)
"""The kernel of PyTorch that also gives the logarithm of the sum of weights; None: it has none."""
LONG = 4096
"""Keys from which the newest token reads them in pieces: fewer are read as fast in one."""
HEADS_AT_ONCE = 1 << 17
"""Numbers of q that a scan works on at a time: what is in between then fits a processor's cache."""


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention (Vaswani et al. 2017, eq. 1); O(T^2) time, O(T) memory."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def last_row_of_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Softmax attention of the newest token, which sees every key, or those that are `seen` [B, T].

    q [B, H, 1, d], k and v [B, G, T, d] -> [B, H, 1, d]. The query heads that share a key-value
    head are its rows, so that no key is copied. On a GPU without cuDNN, which plans anew for every
    length, and so for every token. On a CPU a long text is read in pieces, if its key-value heads
    alone would leave some threads idle.
    """
    B, H, _, d = q.shape
    rows = q.reshape(B, k.shape[1], -1, d)  # [B, G, H / G, d]
    if seen is None and (pieces := _pieces(q, k, v)) > 1:
        return _by_pieces(rows, k, v, pieces).reshape(B, H, 1, d)
    with sdpa_kernel(WITHOUT_PLANS) if q.is_cuda else nullcontext():
        mask = None if seen is None else seen[:, None, None]
        return F.scaled_dot_product_attention(rows, k, v, mask).reshape(B, H, 1, d)


def _pieces(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Into how many pieces keys [B, G, T, d] are cut, for all threads to have as many.

    One where the kernel does not do what PyTorch's own attention does besides: gradients, autocast,
    tensors of several types, rows that are not laid out one number behind the other.
    """
    B, G, T, _ = k.shape
    if k.device.type != "cpu" or T < LONG or _FLASH is None or torch.compiler.is_compiling():
        return 1
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return 1
    if not q.dtype == k.dtype == v.dtype or {x.stride(-1) for x in (q, k, v)} != {1}:
        return 1
    threads = torch.get_num_threads()
    return threads // math.gcd(B * G, threads)


def _by_pieces(q: Tensor, k: Tensor, v: Tensor, pieces: int) -> Tensor:
    """Softmax attention of rows [B, G, R, d] to all keys [B, G, T, d], piece by piece.

    Each piece gives a mean of its values and log sum_s exp(q . k_s / sqrt(d)), the weight of that
    mean among all pieces (FlashDecoding, Dao et al. 2023).
    """
    assert _FLASH is not None
    B, G, R, d = q.shape
    size = k.shape[2] // pieces
    whole, rest = pieces * size, k.shape[2] % pieces
    rows = q.reshape(B * G, 1, R, d)
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    met = [[x[:, :whole].unflatten(1, (pieces, size)) for x in (k, v)]]  # [B G, pieces, size, d]
    if rest:
        met.append([x[:, None, whole:] for x in (k, v)])
    found = [_FLASH(rows.expand(-1, one[0].shape[1], -1, -1), *one) for one in met]
    means, sums = (torch.cat([one[at] for one in found], 1) for at in (0, 1))
    weights = sums.softmax(1)[..., None]  # [B G, pieces, R, 1], in float32 at least
    return (means * weights).sum(1).to(q.dtype).view(B, G, R, d)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int = 0) -> Tensor:
    """Causal softmax attention over the last `window` keys, the token itself included.

    The first `sinks` keys of the text are seen as well; a key that is among both counts once.
    Queries are cut into chunks of C; each chunk meets its own C + W - 1 keys, the sinks, and no
    others, so that time and memory are O(T (W + S + C)). A dense T x T mask would cost more than
    full attention. Query heads that share a key-value head meet one copy of its chunks, by a mask
    that is repeated for each of them; or, where that would be the larger, copies of their own.

    Parameters
    ----------
    q
        [B, H, T, d].
    k, v
        [B, G, T, d].
    window
        W >= 1: how many of the last keys a query sees, itself included.
    sinks
        S >= 0: how many of the first keys it sees as well, as far as they are past.
    """
    B, H, T, d = q.shape
    W = min(window, T)
    S = min(sinks, T - W)  # later ones are in the window of every query that sees them
    C = min(max(W // 4, WINDOW_CHUNK), T)
    if B * k.shape[1] * d < C:
        k, v = with_heads(k, H), with_heads(v, H)
    G = k.shape[1]
    R = H // G
    n = -(-T // C)
    tail = n * C - T
    past = W - 1
    chunks_q = F.pad(q, (0, 0, 0, tail)).unflatten(2, (n, C)).unflatten(1, (G, R))
    chunks_q = chunks_q.transpose(2, 3).reshape(B * G, n, R * C, d)

    def keys_of_chunks(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, past, tail))  # [B, G, past + n C, d]
        chunks = padded.unfold(2, C + past, C).transpose(-1, -2)  # [B, G, n, C + past, d]
        if S:
            first = x[:, :, None, :S].expand(B, G, n, S, d)
            chunks = torch.cat([first, chunks], 3)
        return chunks.reshape(B * G, n, S + C + past, d)

    # Query i of a chunk sits at padded position i + past and sees padded keys i .. i + past.
    i = torch.arange(C, device=q.device)[:, None]
    j = torch.arange(C + past, device=q.device)
    band = (j >= i) & (j <= i + past)  # [C, C + past]
    starts = torch.arange(n, device=q.device)[:, None, None] * C
    is_real_key = j + starts >= past  # the padding before the first token
    is_seen = band & is_real_key
    if S:  # a sink counts by itself once the window has left it behind
        is_behind = torch.arange(S, device=q.device) <= starts + i - W  # [n, C, S]
        is_seen = torch.cat([is_behind, is_seen], -1)
    out = F.scaled_dot_product_attention(
        chunks_q, keys_of_chunks(k), keys_of_chunks(v), attn_mask=is_seen.repeat(1, R, 1)[None]
    )
    return out.view(B * G, n, R, C, d).transpose(1, 2).reshape(B, H, n * C, d)[:, :, :T]


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal kernel attention with phi(x) = elu(x) + 1 and a running normaliser.

    y_t = sum_{s<=t} phi(q_t).phi(k_s) v_s / sum_{s<=t} phi(q_t).phi(k_s)
    (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 9 to 12), as a chunked scan: inside a chunk
    the scores are formed, across chunks the d x d state is carried. O(T (C + d) d) time, O(T d)
    memory. Sums run in float32 at least, whatever the autocast dtype. On a CPU a few heads at a
    time; on a GPU, without gradients, in `pyro_meta.attention.ops.triton`.
    """
    B, H, T, d = q.shape
    if not torch.compiler.is_compiling() and uses_triton(q.device.type):
        from pyro_meta.attention.ops import triton as kernels

        if kernels.knows(q, k, v):
            return kernels.linear_attention(q, k, v)
    heads = H if q.is_cuda else max(1, min(H, HEADS_AT_ONCE // max(1, B * T * d)))
    with torch.autocast(q.device.type, enabled=False):
        parts = zip(*(x.split(heads, 1) for x in map(at_least_float32, (q, k, v))), strict=True)
        out = [_linear_attention(*part) for part in parts]
    return (out[0] if len(out) == 1 else torch.cat(out, 1)).to(q.dtype)


def _linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T = q.shape[2]
    C = min(LINEAR_CHUNK, T)
    phi_q = in_chunks(feature_map(q.contiguous()), C)
    phi_k, value, before = linear_states(k.contiguous(), v, C)
    scores = (phi_q @ phi_k.transpose(-1, -2)).tril_()  # [B, H, n, C, C]
    return normalised(scores @ value + phi_q @ before).flatten(2, 3)[:, :, :T]


def linear_attention_after(q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
    """Kernel attention (see `linear_attention`) of tokens that follow others.

    Parameters
    ----------
    q
        [B, H, S, d], those of the S new tokens.
    k, v
        [B, G, S, d], likewise.
    past
        [B, G, d, d + 1], `linear_state` of the tokens before them.

    Returns
    -------
    Tensor
        [B, H, S, d].
    """
    _, H, S, _ = q.shape
    G, dtype = k.shape[1], q.dtype
    with without_autocast(q.device):
        q, k, v = map(at_least_float32, (q, k, v))
        if S == 1:
            phi_q = feature_map(q).view(-1, G, H // G, q.shape[-1])
            return normalised(phi_q @ (past + linear_state(k, v))).view_as(q).to(dtype)
        C = min(LINEAR_CHUNK, S)
        phi_k, value, before = linear_states(k, v, C)
        before = before + past[:, :, None]
        phi_q = in_chunks(feature_map(q), C).unflatten(1, (G, H // G))  # [B, G, H/G, n, C, d]
        phi_k, value, before = phi_k[:, :, None], value[:, :, None], before[:, :, None]
        scores = (phi_q @ phi_k.transpose(-1, -2)).tril_()
        out = normalised(scores @ value + phi_q @ before).flatten(3, 4).flatten(1, 2)[:, :, :S]
    return out.to(dtype)


def linear_state(k: Tensor, v: Tensor, is_token: Tensor | None = None) -> Tensor:
    """sum_s phi(k_s) (v_s, 1)^T, [B, G, d, d + 1], of k and v [B, G, S, d]; float32 at least.

    `is_token` [B, S] tells tokens from padding, which counts for nothing.
    """
    with without_autocast(k.device):
        k, v = at_least_float32(k), at_least_float32(v)
        value = F.pad(v, (0, 1), value=1.0)
        if is_token is not None:
            value = value * is_token[:, None, :, None]
        return feature_map(k).transpose(-1, -2) @ value


def linear_states(k: Tensor, v: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """What queries of kernel attention meet, by chunks of C positions.

    Values carry a last column of ones, so that the normaliser is summed along with them.

    Returns
    -------
    tuple
        phi(k) [B, H, n, C, d] and (v, 1) [B, H, n, C, d + 1] in chunks; and the sum of
        phi(k) (v, 1)^T over the keys before each chunk, [B, H, n, d, d + 1].
    """
    # Padding comes after phi: phi(0) = 1 would count as keys. It lies in the future of every
    # real query, so that zero rows suffice.
    return states_by_chunk(feature_map(k), F.pad(v, (0, 1), value=1.0), chunk)


def states_by_chunk(keys: Tensor, values: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [B, H, T, d] and values [B, H, T, e] in chunks of C, and what was before each chunk.

    Returns
    -------
    tuple
        Keys [B, H, n, C, d], values [B, H, n, C, e], and the sum of key value^T over the tokens
        before each chunk, [B, H, n, d, e].
    """
    keys, values = in_chunks(keys, chunk), in_chunks(values, chunk)
    state = keys.transpose(-1, -2) @ values
    return keys, values, sums_before(state.flatten(3)).view_as(state)


def normalised(weighted: Tensor) -> Tensor:
    """sum_s w_s v_s / sum_s w_s of [.., d + 1], whose last column holds the sum of weights."""
    numerator, denominator = weighted[..., :-1], weighted[..., -1:]
    # Padding, and queries that find every key negligible, must not divide 0 by 0.
    return numerator / denominator.clamp(min=torch.finfo(weighted.dtype).tiny)


def sums_before(x: Tensor) -> Tensor:
    """Sums of the rows before each row of x [.., n, F]; zero for the first.

    Within groups of rows as a product with a triangle of ones, which is faster than a cumulative
    sum along rows, and loses no digits to a subtraction.
    """
    n, R = x.shape[-2], SUM_GROUP
    if n <= R:
        return x.new_ones(n, n).tril(-1) @ x
    groups = F.pad(x, (0, 0, 0, -n % R)).unflatten(-2, (-1, R))  # [.., n / R, R, F]
    within = groups.new_ones(R, R).tril(-1) @ groups
    earlier = sums_before(groups.sum(-2))[..., None, :]
    return (within + earlier).flatten(-3, -2)[..., :n, :]


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """x [B, H, T, d] as [B, H, n, C, d], padded with zeros."""
    tail = -x.shape[2] % chunk
    return (F.pad(x, (0, 0, 0, tail)) if tail else x).unflatten(2, (-1, chunk))


def feature_map(x: Tensor) -> Tensor:
    """phi(x) = elu(x) + 1, written so that it keeps its digits where it is small."""
    return F.relu(x) + x.clamp(max=0).exp_()
