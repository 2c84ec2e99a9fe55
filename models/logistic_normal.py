"""A logistic-normal prior."""

import torch
from torch import Tensor

from pyro_meta.distributions.softmax import LogisticNormal
from pyro_meta.models.priors import Prior, require_at_least_zero, require_positive
from pyro_meta.network.costs import Costs
from pyro_meta.network.protocol import Network


class LogisticNormalPrior(Prior):
    """alpha = softmax(z), z_k ~ N(-lambda c_k, s^2): cheap mechanisms are likelier.

    Parameters
    ----------
    network
        The network whose routes are drawn.
    rate
        lambda, by how much the mean logit falls per unit of cost.
    scale
        s, the standard deviation of the logits; the larger, the more decided the tokens.
    cost
        Unit of cost, see `CostDirichlet`.
    """

    def __init__(
        self,
        network: Network,
        rate: float = 6.0,
        scale: float = 2.0,
        cost: str | list[float] = "macs",
    ) -> None:
        super().__init__(network)
        require_positive(scale=scale)
        require_at_least_zero(rate=rate)
        self.rate, self.scale = rate, scale
        self.costs = Costs(network, cost)

    def forward(self, layer: int, positions: Tensor) -> LogisticNormal:
        loc = -self.rate * self.costs.of_groups(positions)
        return LogisticNormal(loc, torch.full_like(loc, self.scale))
