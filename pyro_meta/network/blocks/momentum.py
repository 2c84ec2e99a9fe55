"""Accelerated blocks: tokens carry a velocity through depth, beside their state.

Nesterov's form with Lie-Trotter splitting (YuriiFormer, arXiv 2601.23236; its causal repeat in
SympFormer, arXiv 2603.16535), one call of attention and one of the MLP:

    z  = LN(x + mu1 v);      v'  = LN_v(beta1 v + gamma1 Attn(z));     x'  = x + v'
    z' = LN(x' + mu2 v');    v'' = LN_v(beta2 v' + gamma2 MLP(z'));    x'' = x' + v''

Attention and MLP are the forces, read at a point ahead of the state. All mechanisms serve, alone,
mixed or routed: the router reads z, and the velocity never meets another token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_meta.network.blocks.base import Block, Stream
from pyro_meta.network.shape import Shape

START = 0.9  # of mu and beta


class NesterovStep(nn.Module):
    """One half of a block: v' = LN_v(beta v + gamma force), x' = x + v'.

    mu and beta lie in (0, 1) and start at .9, gamma > 0 starts at 1: three learned numbers, each of
    size [1], since what has no dimension cannot be shared out among processes (FSDP).

    Parameters
    ----------
    norm
        LN_v.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        start = torch.logit(torch.tensor([START]))
        self.logit_mu = nn.Parameter(start.clone())
        self.logit_beta = nn.Parameter(start.clone())
        self.log_gamma = nn.Parameter(torch.zeros_like(start))
        self.norm = norm

    def ahead(self, stream: Stream) -> Tensor:
        """x + mu v, where the force is read, [.., D]."""
        assert stream.velocity is not None
        return stream.state + self.logit_mu.sigmoid() * stream.velocity

    def forward(self, stream: Stream, force: Tensor) -> Stream:
        assert stream.velocity is not None
        pushed = self.logit_beta.sigmoid() * stream.velocity + self.log_gamma.exp() * force
        velocity = self.norm(pushed)
        return Stream(stream.state + velocity, velocity)


class MomentumBlock(Block):
    """The accelerated block; LN_v is a layer norm with scale and bias, one in each half.

    It keeps the speed of every token at the scale that LN_v has learned, so that velocities neither
    die nor add up over depth. The scale starts at 1 / sqrt(2 L), as the outputs of the forces do:
    from the start velocity and force are of one size, and the state grows as in a residual block.

    With mu = beta = 0 it is x' = x + LN_v(gamma1 Attn(LN(x))), x'' = x' + LN_v(gamma2 MLP(LN(x'))):
    a residual block whose branches are normalised before they are added, in which gamma does
    nothing (but for LN_v's epsilon). It is *not* the ordinary block; see `PlainMomentumBlock`.

    Velocities start at zero, so that mu1 and beta1 of the first layer do nothing: the force of the
    first half step is read at x, as it is. A block has 4 D + 6 parameters more than a residual one.
    """

    def __init__(self, shape: Shape, mechanisms: Sequence[str], layer: int) -> None:
        super().__init__(shape, mechanisms, layer)
        self.attention_step = NesterovStep(self.velocity_norm(shape))
        self.mlp_step = NesterovStep(self.velocity_norm(shape))

    def velocity_norm(self, shape: Shape) -> nn.Module:
        """LN_v, which a subclass may replace."""
        norm = nn.LayerNorm(shape.width)
        nn.init.constant_(norm.weight, (2 * shape.layers) ** -0.5)
        return norm

    def begin(self, state: Tensor) -> Stream:
        return Stream(state, torch.zeros_like(state))

    def look(self, stream: Stream) -> Tensor:
        return self.attention_norm(self.attention_step.ahead(stream))

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        stream = self.attention_step(stream, self.dropped(attended))
        normed = self.mlp_norm(self.mlp_step.ahead(stream))
        return self.mlp_step(stream, self.dropped(self.mlp(normed)))


class PlainMomentumBlock(MomentumBlock):
    """The same without LN_v: Nesterov's method as it is written for gradients.

    With mu = beta = 0 and gamma = 1 it is the ordinary block, exactly. Velocities add up: at
    beta = .9 a steady force moves the state up to ten times as far as in a residual block. A block
    has 6 parameters more than a residual one.
    """

    def velocity_norm(self, shape: Shape) -> nn.Module:
        return nn.Identity()
