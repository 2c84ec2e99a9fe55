"""What every block is made of: attention as its route says, and an MLP.

Shapes: B sequences, T tokens, S new ones, K mechanisms, D width, H heads, G key-value heads,
d = D / H head width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_meta.attention import (
    Inputs,
    LayerCache,
    Mechanism,
    Span,
    build_mechanisms,
    carries,
    routed_attention,
)
from pyro_meta.attention.mixing import mixed_attention
from pyro_meta.attention.rotary import rotate
from pyro_meta.network.shape import Shape


class Surroundings(NamedTuple):
    """What attention knows of tokens beside their features."""

    cos: Tensor
    """Of their positions, see `rotation`."""
    sin: Tensor
    is_separator: Tensor | None
    """Which of them separate sentences, [B, 1, T, 1]; None where no mechanism asks."""


class Attended(NamedTuple):
    """What attention gives to each token."""

    out: Tensor
    """W_o sum_k alpha_k g_k A_k, [B, T, D]; of some tokens alone, [1, N, D]."""
    momentum: Tensor | None
    """What a mechanism carries to the next layer, [B, T, D]; None if none does."""


class RoutedAttention(nn.Module):
    """W_o sum_k alpha_k g_k A_k(q, k, v), with one q, k, v for all mechanisms.

    Parameters
    ----------
    shape
        Sizes.
    mechanisms
        Names or import paths.
    layer
        0, 1, ..., L - 1.
    """

    def __init__(self, shape: Shape, mechanisms: Sequence[str], layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.head_width = shape.heads, shape.head_width
        self.kv_heads = shape.kv_heads or shape.heads
        self.groups = shape.groups
        self.mechanisms = build_mechanisms(mechanisms, shape.of_mechanisms)
        self.project_qkv = nn.Linear(
            shape.width, (shape.heads + 2 * self.kv_heads) * shape.head_width, bias=False
        )
        self.gain = nn.Parameter(torch.ones(len(mechanisms), shape.width))  # g_k, one per channel
        self.project_out = nn.Linear(shape.width, shape.width, bias=False)
        self.dispatch = routed_attention
        carrying = [index for index, one in enumerate(self.mechanisms) if carries(_mechanism(one))]
        self._carrying = carrying[0] if carrying else None

    def forward(
        self,
        normed: Tensor,
        route: Tensor,
        at: Surroundings,
        momentum: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Attended:
        """What each token attends to, and what it carries on.

        Parameters
        ----------
        normed
            [B, T, D].
        route
            Weights [B, T, K], or choices [B, T]; of n groups of heads [B, T, n, K] or [B, T, n].
        at
            What else is known of the tokens.
        momentum
            As the layer before left it, [B, T, D]; None in the first.
        own
            The N tokens that run the layer, numbered through all sequences, where others do not:
            what attends is theirs, and choices of the others are `NO_TOKEN`.
        """
        inputs = self._inputs(normed, at, own)
        if self._carrying is not None:
            inputs = self._kicked(inputs, momentum, self.mechanisms[self._carrying])
        return self._attended(self._attend(route, inputs), inputs, own)

    def extend(
        self,
        normed: Tensor,
        route: Tensor,
        at: Surroundings,
        past: LayerCache,
        span: Span,
        momentum: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Attended:
        """The same for S new tokens, [B, S, D], that follow those in `past`, which takes them."""

        def begin(inputs: Inputs) -> Tensor:
            return self._attend(route, inputs)

        inputs = self._inputs(normed, at, own)
        if past.kicks is not None:
            inputs = self._kicked(inputs, momentum, partial(past.kicks.attend_all, span=span))
        return self._attended(past.extend(self.gain, route, inputs, span, begin), inputs, own)

    def _attended(self, mixed: Tensor, inputs: Inputs, own: Tensor | None) -> Attended:
        carried = inputs.momentum
        if own is not None:
            mixed = mixed.flatten(0, 1).index_select(0, own)[None]
        if carried is not None:
            carried = carried.transpose(1, 2).flatten(2)
        return Attended(self.project_out(mixed), carried)

    def _kicked(
        self, inputs: Inputs, momentum: Tensor | None, attend: Callable[..., Tensor]
    ) -> Inputs:
        """The inputs with the momenta that this layer reads.

        `attend` is the mechanism over the text so far; it takes whatever else that reads behind q,
        k and v.
        """
        assert self._carrying is not None
        mechanism = _mechanism(self.mechanisms[self._carrying])
        q, _, v, *more = inputs.read_by(mechanism)
        if momentum is not None:
            momentum = momentum.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, H, T, d]
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)

        def attend_to(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, *more)

        return inputs._replace(momentum=mechanism.kick(q, v, momentum, self.layer, attend_to))

    def _inputs(self, normed: Tensor, at: Surroundings, own: Tensor | None) -> Inputs:
        B, T, _ = normed.shape
        split = [self.heads, self.kv_heads, self.kv_heads]
        qkv = self._project(normed, own).view(B, T, sum(split), self.head_width).transpose(1, 2)
        q, k, v = qkv.split(split, dim=1)  # [B, H or G, T, d]
        turned = rotate(qkv[:, : self.heads + self.kv_heads], at.cos, at.sin)
        q_rotated, k_rotated = turned.split(split[:2], dim=1)
        return Inputs(q, k, v, q_rotated, k_rotated, at.is_separator)

    def _project(self, normed: Tensor, own: Tensor | None) -> Tensor:
        """q, k and v [B, T, (H + 2 G) d]; queries of `own` tokens alone, and zeros for others.

        A momentum is kicked by the queries of all.
        """
        if own is None or self._carrying is not None:
            return cast(Tensor, self.project_qkv(normed))
        queries = self.heads * self.head_width
        weight = self.project_qkv.weight
        rows = normed.flatten(0, 1)
        kv = F.linear(rows, weight[queries:])
        qkv = kv.new_zeros(len(rows), len(weight))
        qkv[:, queries:] = kv
        qkv[own, :queries] = F.linear(rows.index_select(0, own), weight[:queries])
        return qkv

    def _attend(self, route: Tensor, inputs: Inputs) -> Tensor:
        mechanisms = [_mechanism(mechanism) for mechanism in self.mechanisms]
        return mixed_attention(mechanisms, self.gain, route, inputs, self.groups, self.dispatch)


def _mechanism(module: nn.Module) -> Mechanism:
    return cast(Mechanism, module)


class MLP(nn.Module):
    """GELU network of one hidden layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden, bias=False)
        self.project_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(F.gelu(self.expand(x)))
