"""A prior that is fitted to the posterior: empirical Bayes."""

import torch
from pyro.distributions import Dirichlet
from torch import Tensor, nn

from pyro_meta.distributions.bounded import bounded, unbounded
from pyro_meta.errors import UsageError
from pyro_meta.models.priors import CostDirichlet, Prior
from pyro_meta.network.protocol import Network

MOST = 1e3  # above, the closed-form KL loses digits in float32


class LearnedDirichlet(Prior):
    """alpha_l ~ Dirichlet(beta_l), one learned beta per layer and group, at all positions alike.

    The KL is minimised over the prior too, which moves it to the average posterior (empirical
    Bayes): cost plays a part only in where it starts, a `CostDirichlet` averaged over the context.
    beta lies in [floor, 1000].

    Parameters
    ----------
    network
        The network whose routes are drawn.
    rate
        lambda of the prior at the start, nats paid per unit of cost.
    floor
        Least concentration of any mechanism.
    cost
        Unit of cost, see `CostDirichlet`.
    strength
        How many pseudo-draws the prior is worth at the start.
    """

    learns_from_kl = True

    def __init__(
        self,
        network: Network,
        rate: float = 6.0,
        floor: float = 0.05,
        cost: str | list[float] = "macs",
        strength: float = 1.0,
    ) -> None:
        super().__init__(network)
        if floor >= MOST / 2:
            raise UsageError(f"prior.floor: {floor} given; below {MOST / 2:.0f} is allowed")
        given = CostDirichlet(network, rate, strength, floor, cost)
        everywhere = torch.arange(network.shape.context)
        start = given(0, everywhere).concentration.flatten(0, -2).mean(0)
        x = [unbounded(min(float(b), 0.99 * MOST), floor, MOST) for b in start]
        self.floor = floor
        sizes = (network.shape.layers, *network.shape.of_groups)
        self.log_concentration = nn.Parameter(torch.tensor(x).repeat(*sizes, 1))

    def forward(self, layer: int, positions: Tensor) -> Dirichlet:
        concentration = bounded(self.log_concentration[layer], self.floor, MOST)
        return Dirichlet(concentration.expand(len(positions), *concentration.shape))
