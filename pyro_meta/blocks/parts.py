"""What every block is made of: attention as its route says, and an MLP.

Shapes: B sequences, T tokens, S new ones, K mechanisms, D width, H heads, G key-value heads,
d = D / H head width.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_meta.attention import (
    Inputs,
    LayerCache,
    Mechanism,
    Span,
    build_mechanisms,
    is_choice,
    routed_attention,
)
from pyro_meta.attention.rotary import rotate
from pyro_meta.shape import Shape


class RoutedAttention(nn.Module):
    """W_o sum_k alpha_k g_k A_k(q, k, v), with one q, k, v for all mechanisms."""

    def __init__(self, shape: Shape, mechanisms: Sequence[str]) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        self.kv_heads = shape.kv_heads or shape.heads
        self.mechanisms = build_mechanisms(mechanisms, shape.head_width, shape.window)
        self.project_qkv = nn.Linear(
            shape.width, (shape.heads + 2 * self.kv_heads) * shape.head_width, bias=False
        )
        self.gain = nn.Parameter(torch.ones(len(mechanisms), shape.width))  # g_k, one per channel
        self.project_out = nn.Linear(shape.width, shape.width, bias=False)
        self.dispatch = routed_attention

    def forward(self, normed: Tensor, route: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """normed [B, T, D], route [B, T, K] weights or [B, T] choices -> [B, T, D]."""
        return self.project_out(self._attend(route, self._inputs(normed, cos, sin)))

    def extend(
        self, normed: Tensor, route: Tensor, cos: Tensor, sin: Tensor, past: LayerCache, span: Span
    ) -> Tensor:
        """The same for S new tokens, [B, S, D], that follow those in `past`, which takes them."""

        def begin(inputs: Inputs) -> Tensor:
            return self._attend(route, inputs)

        inputs = self._inputs(normed, cos, sin)
        return self.project_out(past.extend(self.gain, route, inputs, span, begin))

    def _inputs(self, normed: Tensor, cos: Tensor, sin: Tensor) -> Inputs:
        B, T, _ = normed.shape
        split = [self.heads, self.kv_heads, self.kv_heads]
        qkv = self.project_qkv(normed).view(B, T, sum(split), self.head_width).transpose(1, 2)
        q, k, v = qkv.split(split, dim=1)  # [B, H or G, T, d]
        rotated = rotate(qkv[:, : self.heads + self.kv_heads], cos, sin)
        return Inputs(q, k, v, *rotated.split(split[:2], dim=1))

    def _attend(self, route: Tensor, inputs: Inputs) -> Tensor:
        if not is_choice(route):
            return self._mix(route, inputs)
        mechanisms = [cast(Mechanism, mechanism) for mechanism in self.mechanisms]
        return self.dispatch(mechanisms, self.gain, route, inputs)

    def _mix(self, weights: Tensor, inputs: Inputs) -> Tensor:
        """sum_k alpha_k g_k A_k, [B, T, D]: every mechanism on all tokens."""
        group = self.heads // self.kv_heads
        if group > 1:
            inputs = inputs.with_repeated_heads(group)
        mixed: Tensor | None = None
        for index, mechanism in enumerate(self.mechanisms):
            attended = mechanism(*inputs.read_by(cast(Mechanism, mechanism)))
            attended = attended.transpose(1, 2).flatten(2)
            part = weights[..., index, None] * (self.gain[index] * attended)
            mixed = part if mixed is None else mixed + part
        return cast(Tensor, mixed)


class MLP(nn.Module):
    """GELU network of one hidden layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden, bias=False)
        self.project_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(F.gelu(self.expand(x)))
