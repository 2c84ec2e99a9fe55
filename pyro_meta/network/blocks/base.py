"""What a block is: one layer of the transformer, between a stream that enters and one that leaves.

    z = look(stream)            what the layer's router and its attention read
    a = Attn(z) as the route says, over the tokens so far
    stream' = advance(stream, a)

Attention is the only place where tokens meet: `begin`, `look` and `advance` work on each token by
itself. So a block is causal if its mechanisms are, whatever it carries beside the state flows
through depth and not through time, which leaves nothing more to cache, and a token that skips a
layer (its depth gate is shut) is left out of `advance`, and of all work on its query. What it
carries stays as it is; its keys and values are there for the others.

Shapes: B sequences, T tokens, S new ones, K mechanisms, D width, N tokens that run a layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_meta.attention import NO_TOKEN, LayerCache, Span, is_choice
from pyro_meta.network.blocks.routed_attention import MLP, Attended, RoutedAttention, Surroundings
from pyro_meta.network.shape import Shape
from pyro_meta.own_classes import require_defined


class Stream(NamedTuple):
    """What flows from layer to layer: of each token what belongs to it alone."""

    state: Tensor
    """x, from which the logits are read at the end, [B, T, D]."""
    velocity: Tensor | None = None
    """What a block carries beside the state, such as a velocity, [B, T, ...]."""
    momentum: Tensor | None = None
    """What a mechanism carries, [B, T, D]: attention kicks it, and blocks let it be."""


class Block(nn.Module):
    """One layer. Subclass it and define `look` and `advance`, and `begin` to carry a velocity.

    Parameters
    ----------
    shape
        Sizes.
    mechanisms
        Names or import paths.
    layer
        0, 1, ..., L - 1.

    Attributes
    ----------
    attention_norm, attention, mlp_norm, mlp, dropout
        The parts that every block uses, so that blocks differ in what they add.
    """

    def __init__(self, shape: Shape, mechanisms: Sequence[str], layer: int) -> None:
        super().__init__()
        require_defined(self, Block, "look", "advance")
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = RoutedAttention(shape, mechanisms, layer)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.mlp = MLP(shape.width, shape.hidden)
        self.dropout = nn.Dropout(shape.dropout)

    def begin(self, state: Tensor) -> Stream:
        """The stream that enters the first layer, of the embedded tokens [.., D]."""
        return Stream(state)

    def look(self, stream: Stream) -> Tensor:
        """z [.., D], normalised: what the router sees, and what is projected to q, k and v."""
        raise NotImplementedError

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        """The stream that leaves the layer, given what each token attended to, [.., D]."""
        raise NotImplementedError

    def dropped(self, x: Tensor) -> Tensor:
        """`dropout`, which is not called where it does nothing."""
        return self.dropout(x) if self.training else x

    def advance_partly(self, stream: Stream, attended: Tensor, gate: Tensor) -> Stream:
        """`advance`, as far as `gate` [.., 1] from 0 (it skips the layer) to 1 says.

        Whatever a token carries moves by that share of its way; a block may know better.
        """
        left = self.advance(stream, attended)
        state = (1 - gate) * stream.state + gate * left.state
        return Stream(state, _part_way(stream.velocity, left.velocity, gate))

    def forward(
        self,
        stream: Stream,
        normed: Tensor,
        route: Tensor,
        at: Surroundings,
        gate: Tensor | None = None,
    ) -> Stream:
        """The stream that leaves; `normed` is what `look` gave, and the rest what it was asked for.

        Where the gate is hard, tokens that skip the layer cost what their keys and values do,
        which later ones may read, and no more; beside weights, which are not dispatched, also
        attention itself.

        Parameters
        ----------
        stream
            Of tokens [B, T].
        normed
            [B, T, D].
        route
            Weights [B, T, K], or choices [B, T]; of G groups of heads [B, T, G, K], or [B, T, G].
        at
            What attention knows of the tokens beside them.
        gate
            The depth gate [B, T]: how far each token runs the layer, or booleans, whether it does.
            None: all do.
        """
        return self._left(stream, normed, route, gate, partial(self.attention, at=at))

    def extend(
        self,
        stream: Stream,
        normed: Tensor,
        route: Tensor,
        at: Surroundings,
        past: LayerCache,
        span: Span,
        gate: Tensor | None = None,
    ) -> Stream:
        """`forward` for S new tokens that follow those in `past`; never compiled."""
        attend = partial(self.attention.extend, at=at, past=past, span=span)
        return self._left(stream, normed, route, gate, attend)

    def _left(
        self,
        stream: Stream,
        normed: Tensor,
        route: Tensor,
        gate: Tensor | None,
        attend: Callable[..., Attended],
    ) -> Stream:
        """The stream that leaves, attended to by `attend(normed, route, momentum=, own=)`."""
        if gate is None:
            attended = attend(normed, route, momentum=stream.momentum)
            return self.advance(stream, attended.out)._replace(momentum=attended.momentum)
        if not gate.is_floating_point():
            return self._left_by_some(stream, normed, route, gate, attend)
        attended = attend(normed, route, momentum=stream.momentum)
        gate = gate[..., None].to(stream.state.dtype)
        momentum = _part_way(stream.momentum, attended.momentum, gate)
        left = self.advance_partly(stream, attended.out, gate)
        return left._replace(momentum=momentum)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how many run is up to the data
    def _left_by_some(
        self,
        stream: Stream,
        normed: Tensor,
        route: Tensor,
        runs: Tensor,
        attend: Callable[..., Attended],
    ) -> Stream:
        """`_left` where a token either `runs` the layer [B, T] and is worked on, or is not."""
        own = runs.flatten().nonzero()[:, 0]
        if len(own) == runs.numel():
            return self._left(stream, normed, route, None, attend)
        if is_choice(route):
            route = route.masked_fill(~(runs if route.dim() == 2 else runs[..., None]), NO_TOKEN)
        attended = attend(normed, route, momentum=stream.momentum, own=own)
        momentum = _part_way(stream.momentum, attended.momentum, runs[..., None].to(normed.dtype))
        if not len(own):
            return stream._replace(momentum=momentum)
        state, velocity, _ = stream
        some = Stream(_rows(state, own), None if velocity is None else _rows(velocity, own))
        left = self.advance(some, attended.out)
        if left.velocity is not None:
            if velocity is None:  # it begins here, and where nothing is, is 0
                velocity = left.velocity.new_zeros(*runs.shape, *left.velocity.shape[2:])
            velocity = _with_rows(velocity, own, left.velocity)
        return Stream(_with_rows(state, own, left.state), velocity, momentum)


def _rows(x: Tensor, own: Tensor) -> Tensor:
    """Those of tokens `own` [N], numbered through all sequences, [1, N, ...] of x [B, T, ...]."""
    return x.flatten(0, 1).index_select(0, own)[None]


def _with_rows(x: Tensor, own: Tensor, rows: Tensor) -> Tensor:
    """x [B, T, ...] with rows [1, N, ...] in place of those of tokens `own` [N]."""
    dtype = torch.promote_types(x.dtype, rows.dtype)
    return x.to(dtype).flatten(0, 1).index_copy(0, own, rows[0].to(dtype)).view(x.shape)


def _part_way(start: Tensor | None, end: Tensor | None, gate: Tensor) -> Tensor | None:
    """start + gate (end - start), where nothing is 0; exactly `start` and `end` at 0 and 1."""
    if end is None:
        return start
    return gate * end if start is None else (1 - gate) * start + gate * end
