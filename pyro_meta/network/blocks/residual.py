"""The ordinary pre-norm block."""

from torch import Tensor

from pyro_meta.network.blocks.base import Block, Stream


class ResidualBlock(Block):
    """x' = x + Attn(LN(x)); x'' = x' + MLP(LN(x')).

    Gradient descent on an energy of interaction and one of each token, by turns (Lie-Trotter
    splitting), if one reads it as YuriiFormer (arXiv 2601.23236) does.
    """

    def look(self, stream: Stream) -> Tensor:
        return self.attention_norm(stream.state)

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        state = stream.state + self.dropped(attended)
        return Stream(state + self.dropped(self.mlp(self.mlp_norm(state))))

    def advance_partly(self, stream: Stream, attended: Tensor, gate: Tensor) -> Stream:
        """Both branches by as much: x' = x + g Attn(LN(x)); x'' = x' + g MLP(LN(x')).

        Token-Selective Attention (arXiv 2605.05222), whose 1 - p is g. A subclass that advances
        otherwise goes a share of its own way instead.
        """
        if type(self).advance is not ResidualBlock.advance:
            return super().advance_partly(stream, attended, gate)
        state = stream.state + gate * self.dropped(attended)
        return Stream(state + gate * self.dropped(self.mlp(self.mlp_norm(state))))
