"""What a block is: one layer of the transformer, between a stream that enters and one that leaves.

    z = look(stream)            what the layer's router and its attention read
    a = Attn(z) as the route says, over the tokens so far
    stream' = advance(stream, a)

Attention is the only place where tokens meet: `begin`, `look` and `advance` work on each token by
itself. So a block is causal if its mechanisms are, whatever it carries beside the state flows
through depth and not through time, which leaves nothing more to cache, and a token that sits a
layer out can be left out of `advance`.

Shapes: B sequences, T tokens, S new ones, K mechanisms, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from pyro_meta.attention import LayerCache, Span
from pyro_meta.blocks.parts import MLP, RoutedAttention, Surroundings
from pyro_meta.errors import require_defined
from pyro_meta.shape import Shape


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

    def forward(self, stream: Stream, normed: Tensor, route: Tensor, at: Surroundings) -> Stream:
        """The stream that leaves; `normed` is what `look` gave, and `route` what it was asked for.

        Parameters
        ----------
        stream
            Of tokens [B, T].
        normed
            [B, T, D].
        route
            Weights [B, T, K], or choices [B, T].
        at
            What attention knows of the tokens beside them.
        """
        attended = self.attention(normed, route, at, stream.momentum)
        return self.advance(stream, attended.out)._replace(momentum=attended.momentum)

    def extend(
        self,
        stream: Stream,
        normed: Tensor,
        route: Tensor,
        at: Surroundings,
        past: LayerCache,
        span: Span,
    ) -> Stream:
        """`forward` for S new tokens that follow those in `past`; never compiled."""
        attended = self.attention.extend(normed, route, at, stream.momentum, past, span)
        return self.advance(stream, attended.out)._replace(momentum=attended.momentum)
