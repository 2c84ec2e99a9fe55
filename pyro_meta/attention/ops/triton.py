"""Hard routes on a GPU in a handful of Triton kernels, where no gradient is asked for.

A layer is sorted once by what its tokens chose, and nothing is read back: blocks of queries find
their tokens by themselves, so that the host runs ahead of the device. One kernel serves full and
window attention alike (a window is a full attention that begins later, but for its sinks, the first
keys of the text); two serve linear attention, as the chunked scan of `dense.linear_attention` with
everything about a chunk kept on the chip.

What the host does for softmax attention is one sort: tokens by group, a mechanism in one sequence,
and by position within it. It cannot know how many blocks of queries each group fills without
waiting for the device. So it launches as many as there can be, B T / 64 and one more for each group
that ends in part of a block, and each looks its group up in the bounds; those beyond do nothing.

This module needs Triton, which comes with PyTorch's builds for CUDA; `ops.backend` looks for it.

Shapes: B sequences, T tokens, H query heads, G key-value heads, d head width, K mechanisms, C chunk
of keys, n chunks.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
from torch import Tensor

from pyro_meta.attention.ops import triton_programs as programs

WIDTHS = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The head widths and dtypes that the kernels are written for; not the widest of the widest."""
QUERIES = 64  # of a program of softmax attention
ROWS, CHUNK = 64, 256  # of linear attention: queries of a program, keys between two states


def knows(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels are written for such tensors, and no gradient is wanted."""
    is_traced = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_known = q.dtype == k.dtype == v.dtype and q.dtype in DTYPES and q.shape[-1] in WIDTHS
    fits = q.shape[-1] * q.itemsize <= 256 and q.numel() > 0
    is_dense = all(x.stride(-1) == 1 for x in (q, k, v))
    # Triton's interpreter, on a CPU, multiplies the bits of bfloat16.
    return is_known and fits and is_dense and not is_traced and (q.is_cuda or q.itemsize == 4)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reaches: Sequence[int],
    sinks: Sequence[int],
    gain: Tensor,
    choice: Tensor,
    out: Tensor,
) -> None:
    """Rows of the tokens that chose softmax over the last so many keys, written to `out`.

    Parameters
    ----------
    q, k, v
        [B, H, T, d] and [B, G, T, d] twice.
    reaches
        Of each mechanism, how many of the last keys it sees, the query's own included; 0: it is no
        softmax attention.
    sinks
        How many of the first keys of the text it sees as well.
    gain
        [K, D], factors of the rows.
    choice
        [B, T], integer; places below 0 get nothing.
    out
        [B, T, D].
    """
    B, H, T, d = q.shape
    K = len(reaches)
    is_small = (K + 1) * B < 1 << 15  # few bits are sorted sooner
    dtype = torch.int16 if is_small else torch.int32
    bounds, reach, sink = _tables(tuple(reaches), tuple(sinks), B, dtype, q.device)
    group = choice.long().clamp(-1, K).to(bounds.dtype)
    if B > 1:
        group = group * B + torch.arange(B, device=choice.device, dtype=bounds.dtype)[:, None]
    kinds, order = group.flatten().sort(stable=True)
    starts = torch.searchsorted(kinds, bounds)  # [K B + 1]
    blocks = triton.cdiv(B * T, QUERIES) + B * sum(map(bool, reaches))
    keys, stages = _keys(q)
    with torch.cuda.device_of(q):
        programs.softmax_program[(blocks * H,)](
            q, k, v, gain, order, starts, reach, sink, out,
            math.log2(math.e) / math.sqrt(d), T, B, H, K * B, H // k.shape[1],
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            GROUPS=triton.next_power_of_2(K * B), WIDTH=d, QUERIES=QUERIES, KEYS=keys,
            HAS_SINKS=any(sinks), PRECISION=_precision(q), num_stages=stages,
        )  # fmt: skip


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routed: tuple[Tensor, Tensor, int, Tensor] | None = None,
) -> Tensor:
    """Kernel attention, see `dense.linear_attention`: [B, H, T, d].

    Products are of tf32 numbers if the inputs are in half precision, else of float32; sums are
    float32 in either case.

    Parameters
    ----------
    q, k, v
        [B, H, T, d] and [B, G, T, d] twice.
    routed
        Gain [K, D], choice [B, T], the number of this mechanism, and a tensor [B, T, D] that takes
        the rows of those that chose it; None: every token gets its row.
    """
    B, H, T, d = q.shape
    G, n = k.shape[1], triton.cdiv(T, CHUNK)
    if routed is None:
        out = torch.empty(B, T, H * d, dtype=q.dtype, device=q.device)
        gain = choice = out
        index = 0
    else:
        gain, choice, index, out = routed
    states = torch.zeros(B * G, n, d * d + d, dtype=torch.float32, device=q.device)
    sizes = {"WIDTH": d, "ROWS": ROWS, "CHUNK": CHUNK, "PRECISION": _precision(q)}
    with torch.cuda.device_of(q):
        if n > 1:  # every chunk writes to the next one
            programs.states_program[((n - 1) * B * G,)](
                k, v, states, n, G, *k.stride()[:3], *v.stride()[:3], **sizes
            )
            states = states.cumsum(1)
        programs.linear_program[(triton.cdiv(T, ROWS) * B * H,)](
            q, k, v, states, gain, choice, out,
            T, n, B, H, H // G, index, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            IS_ROUTED=routed is not None, **sizes,
        )  # fmt: skip
    return out.view(B, T, H, d).transpose(1, 2)


def _keys(q: Tensor) -> tuple[int, int]:
    """Keys of a softmax program at a time, and how many such blocks are on their way to it.

    More are faster, and what they take has to fit a small device's shared memory, 99 KiB.
    """
    if q.itemsize == 2:
        return (128, 3) if q.shape[-1] <= 64 else (64, 2)
    return (64, 2) if q.shape[-1] <= 32 else (32, 2)


def _precision(q: Tensor) -> str:
    return "ieee" if q.dtype == torch.float32 else "tf32"


@lru_cache(maxsize=64)
def _tables(
    reaches: tuple[int, ...],
    sinks: tuple[int, ...],
    sequences: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the groups of (mechanism, sequence) begin once sorted, the reaches and the sinks, on a
    device."""
    bounds = torch.arange(len(reaches) * sequences + 1, dtype=dtype, device=device)
    reach, sink = (torch.tensor(x, dtype=torch.int32, device=device) for x in (reaches, sinks))
    return bounds, reach, sink
