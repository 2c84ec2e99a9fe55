"""Softmax attention in which every token has a reach of its own, all in one call.

An additive mask says what each token sees. So any mix of full attention and windows is a single
`scaled_dot_product_attention`, and nothing is gathered; but keys that a token does not see are met
all the same. That is the faster way on short texts, where many small calls cost more.

Queries are taken in blocks of rows, each with the keys up to its last one: what lies behind them is
never met, and a mask stays small however long the text, also in training: the backward pass makes
it again. Fewer rows meet fewer keys in vain; more are faster by multiply-accumulate.

Shapes: B sequences, H query heads, G key-value heads, T tokens, d head width, M kinds of reach, R
rows of a block, E keys that it meets.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pyro_meta.attention.ops.slices import Slice, slices

FAR = -1e38  # below every score, and finite: a block of keys that a query does not see at all
ROWS = 256  # of a block
SPARE_ROWS = 16  # of a block whose mask would else be too large
MASK_NUMBERS = 1 << 22  # of a block's mask, in all sequences: 16 MiB of float32


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, kind: Tensor, reaches: Sequence[int], sinks: Sequence[int]
) -> Tensor:
    """Causal softmax attention of each token over its own last keys, and the first of the text.

    Parameters
    ----------
    q
        [B, H, T, d].
    k, v
        [B, G, T, d].
    kind
        [B, T], integer, 0 to M - 1: whose reach each token has.
    reaches
        By kind, how many of the last keys a token sees, itself included, at least 1.
    sinks
        By kind, how many of the first keys it sees as well, as far as they are past.

    Returns
    -------
    Tensor
        [B, H, T, d].
    """
    B, H, T, _ = q.shape
    blocks = row_blocks(B, T)
    met = [Slice(0, B, 0, end) for _, end in blocks]
    rows = q.split([end - begin for begin, end in blocks], 2)
    out = []
    is_grouped = k.shape[1] != H
    seen = slices(k, met), slices(v, met)
    for block, own, keys, values in zip(blocks, rows, *seen, strict=True):
        make = partial(row_mask, kind, block, reaches, sinks, _dtype_of_call(q))
        mask = make()
        with _made_again(mask, make):
            found = F.scaled_dot_product_attention(
                own, keys, values, attn_mask=mask, enable_gqa=is_grouped
            )
        out.append(found)
    return out[0] if len(out) == 1 else torch.cat(out, 2)


def _dtype_of_call(q: Tensor) -> torch.dtype:
    """What a call of attention computes in."""
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype


def _made_again(mask: Tensor, make: Callable[[], Tensor]) -> saved_tensors_hooks:
    """While it holds autograd does not keep `mask` for the backward pass, which makes its own.

    Kept from all blocks of all layers they would be a T x T matrix in each layer.
    """
    address = mask.data_ptr()

    def pack(x: Tensor) -> Tensor | None:
        return None if x.data_ptr() == address else x

    def unpack(x: Tensor | None) -> Tensor:
        return make() if x is None else x

    return saved_tensors_hooks(pack, unpack)


def row_blocks(sequences: int, length: int) -> list[tuple[int, int]]:
    """First row of each block, and the one behind its last."""
    rows = min(ROWS, max(SPARE_ROWS, MASK_NUMBERS // max(1, sequences * length)))
    return [(begin, min(begin + rows, length)) for begin in range(0, length, rows)]


def met_pairs(sequences: int, length: int) -> int:
    """Pairs of a token and a key that meet in one head, of all sequences: numbers of the masks."""
    blocks = row_blocks(sequences, length)
    return sequences * sum((end - begin) * end for begin, end in blocks)


def row_mask(
    kind: Tensor,
    block: tuple[int, int],
    reaches: Sequence[int],
    sinks: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """What is added to the scores of a block of rows, [B, 1, R, E]: 0 for keys that are seen.

    The rows of a kind are pieces of one line, .. FAR FAR 0 0 .. 0 0 FAR FAR .., that start where
    the zeros fall on the keys that are seen: to copy them is several times as fast as to compare
    positions.
    """
    (begin, end), device = block, kind.device
    own = kind[:, begin:end]
    lines = torch.full(
        (len(reaches), 2 * end), max(FAR, torch.finfo(dtype).min), dtype=dtype, device=device
    )
    for line, reach in zip(lines, reaches, strict=True):
        line[max(0, end - reach) : end] = 0
    position = torch.arange(begin, end, device=device)
    start = own * (2 * end) + (end - 1 - position)  # [B, R]
    pieces = lines.as_strided((lines.numel() - end + 1, end), (1, 1))
    mask = pieces.index_select(0, start.flatten()).view(*own.shape, end)
    first = min(max(sinks), end)
    if first:
        key = torch.arange(first, device=device)
        sink = torch.tensor(sinks, device=device)[own]
        is_sink = (key < sink[..., None]) & (key <= position[:, None])
        mask[..., :first].masked_fill_(is_sink, 0)
    return mask[:, None]
