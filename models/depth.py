"""The prior p(g) over depth gates: how far each token runs each block.

Shapes: T positions, K mechanisms.
"""

import math

import torch
from pyro.distributions import Beta
from torch import Tensor, nn

from pyro_meta.errors import UsageError
from pyro_meta.network.costs import costs_at
from pyro_meta.network.macs import block_macs
from pyro_meta.network.protocol import Network


class DepthPrior(nn.Module):
    """g_{l,t} ~ Beta(s pi + floor, s (1 - pi) + floor),  logit pi_{l,t} = logit(run) c_{l,t}.

    c is what running the block costs the token: query and output projection, MLP, and attention at
    its position, averaged over the mechanisms by the mean of the prior over routes (without a
    gradient, where that prior learns). Its unit is what a block with full attention costs a token
    on average over the context. Keys and values are not in it: they are projected for every token.

    With lambda = -logit(run), in nats per unit, a decided gate q pays under the mean of this prior
    (at floor 0)

        KL(q || p) = lambda E_q[g c] - H(q) + log(1 + exp(-lambda c)),

    the cost penalty with entropy bonus that `CostDirichlet` is for routes.

    The first layer has no gate: every token runs it (as in TSA, arXiv 2605.05222).

    Parameters
    ----------
    network
        The network whose layers are gated.
    run
        Prior probability of running a block that costs 1 unit; below 1/2 what is dear is run less.
    strength
        s, how many pseudo-draws the prior is worth.
    floor
        Added to both concentrations.
    penalty
        Nats per token that fully open gates cost in training, beside the KL: the penalty of TSA,
        for gates that pay no KL.

    Raises
    ------
    UsageError
        A value is out of range, or there is one layer alone.
    """

    def __init__(
        self,
        network: Network,
        run: float = 0.3,
        strength: float = 1.0,
        floor: float = 0.05,
        penalty: float = 0.0,
    ) -> None:
        super().__init__()
        if network.shape.layers < 2:
            raise UsageError(
                f"layers: {network.shape.layers} given; depth gates need at least 2, since every "
                "token runs the first"
            )
        if not 0 < run < 1:
            raise UsageError(f"gate.run: {run} given; above 0 and below 1 is allowed")
        for name, value in (("strength", strength), ("floor", floor)):
            if not 0 < value < math.inf:
                raise UsageError(f"gate.{name}: {value} given; above 0 is allowed")
        if not 0 <= penalty < math.inf:
            raise UsageError(f"gate.penalty: {penalty} given; at least 0 is allowed")
        self._network = (network,)  # in a tuple: known, but no submodule of the prior
        self.run, self.strength, self.floor, self.penalty = run, strength, floor, penalty

    @property
    def rate(self) -> float:
        """lambda = -logit(run), nats per unit of cost."""
        return math.log((1 - self.run) / self.run)

    def forward(self, layer: int, positions: Tensor, shares: Tensor) -> Beta:
        """p(g_l) at `positions` [T], batch [T].

        `shares` [T, K], or what broadcasts to it, is the mean of the prior over routes.
        """
        pi = torch.sigmoid(-self.rate * self.costs(positions, shares))
        return Beta(self.strength * pi + self.floor, self.strength * (1 - pi) + self.floor)

    def costs(self, positions: Tensor, shares: Tensor) -> Tensor:
        """c [T]: what running a block costs at `positions` [T], attending by `shares` [T, K]."""
        network = self._network[0]
        shape = network.shape
        full = shape.heads * shape.head_width * (shape.context + 1)  # averaged over the context
        beside = block_macs(shape)
        attention = (shares.detach() * costs_at(network, "macs", positions)).sum(-1)
        return (beside + full * attention) / (beside + full)
