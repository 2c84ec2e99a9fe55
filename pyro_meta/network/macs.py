"""Multiply-accumulates (MACs) of a network, counted from the routes that it executes.

Counted is what multiplies matrices: projections, MLP, read-out, the router, and attention as each
mechanism declares it. Norms, softmax, rotation and the look-up of embeddings are not, as in
`torch.utils.flop_counter`, whose FLOPs are twice these MACs. They agree but in one point: causal
full attention is counted here as the keys that are seen, T (T + 1) / 2, and there as T^2.

Shapes: B sequences, T tokens, L layers, K mechanisms, D width, H heads, G key-value heads,
d = D / H head width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyro_meta.attention import Inputs, Mechanism, serves
from pyro_meta.attention.dispatch import is_choice
from pyro_meta.attention.prices import kick_macs_at, macs_at, macs_of_text
from pyro_meta.network.shape import Shape


def attention_macs(
    mechanisms: Sequence[Mechanism], heads: int, route: Tensor, inputs: Inputs | None = None
) -> float:
    """MACs of attention in one layer, summed over all tokens.

    Each token pays for its own mechanism, or for every one in its mixture. One that cannot serve
    its own tokens alone runs on all if anybody chose it. Where a mechanism carries a momentum,
    every token pays for its kick, in the first layer too, where it is free.
    Where the dispatch runs a mechanism on all tokens since that is faster, what is counted is still
    what was asked for: such work is done to save time.

    Parameters
    ----------
    mechanisms
        The K mechanisms of the layer.
    heads
        Query heads H.
    route
        Choices [B, T] (integers; negative: no token), or weights [B, T, K].
    inputs
        What the layer attends with. Without it a mechanism whose work depends on the text is
        counted as it declares for its positions.
    """
    B, T = route.shape[:2]
    positions = torch.arange(T, dtype=torch.float64)
    everywhere = torch.ones(B, T, dtype=torch.bool)
    is_token = (route >= 0).cpu() if is_choice(route) else everywhere
    total = 0.0
    for index, mechanism in enumerate(mechanisms):
        macs = macs_at(mechanism, positions)  # [T]
        if inputs is not None:
            _, k, _, *more = inputs.read_by(mechanism)
            macs = macs_of_text(mechanism, positions, k, *more)  # [B, T] or [T]
        macs = macs.double().cpu()
        chosen = (route == index if is_choice(route) else route[..., index] > 0).cpu()
        served = chosen if serves(mechanism) or not chosen.any() else everywhere
        kicks = kick_macs_at(mechanism, positions).double().cpu()
        total += float((macs * served).sum() + (kicks * (is_token & ~served)).sum())
    return heads * total


def full_attention_macs(shape: Shape, length: int) -> float:
    """MACs of causal full attention in one layer over one sequence of `length` tokens."""
    return shape.heads * shape.head_width * length * (length + 1)


def dense_macs(shape: Shape, skipped: float = 0.0) -> float:
    """MACs of one token outside attention and router: projections and MLP of L layers, read-out.

    `skipped` is the mean number of layers that a token skips (a hard depth gate is shut): it
    pays for keys and values there, and for nothing else.
    """
    kv = 2 * (shape.kv_heads or shape.heads) * shape.head_width * shape.width
    run = block_macs(shape) * (shape.layers - skipped)
    return shape.layers * kv + run + shape.width * shape.vocabulary


def block_macs(shape: Shape) -> int:
    """MACs that running a block costs a token beside attention: query, output projection, MLP.

    Keys and values are not in it; a token that skips the block pays for them, too.
    """
    return 2 * shape.width * (shape.width + shape.hidden)


def counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """What `call` returns, and the MACs that PyTorch's own counter sees in it.

    It sees products of matrices and convolutions; of `scaled_dot_product_attention` on a CPU only
    the math backend.
    """
    with FlopCounterMode(display=False) as counter:
        result = call()
    return result, counter.get_total_flops() // 2
