"""A prior whose price of cost is moved while training runs, so that a compute budget is met."""

import torch
from pyro.distributions import Dirichlet
from torch import Tensor

from pyro_meta.models.priors import Prior, by_cost, require_positive
from pyro_meta.network.costs import Costs
from pyro_meta.network.protocol import Network

TURN = 3.0  # from this |lambda| on the strength grows with it


class BudgetDirichlet(Prior):
    """alpha ~ Dirichlet(s max(1, |lambda| / 3) softmax(-lambda c) + floor), lambda under control.

    A `CostDirichlet` whose strength grows where its mean has little left to say: what it charges a
    decided token for cost does not saturate. lambda is negative where routes would else be cheaper
    than the budget. `pyro_meta.inference.controllers` moves it; without a budget it stays at 0.

    Parameters
    ----------
    network
        The network whose routes are drawn.
    strength
        s, how many pseudo-draws the prior is worth up to |lambda| = 3.
    floor
        Least concentration of any mechanism.
    cost
        Unit of cost, see `CostDirichlet`.
    """

    learns_from_kl = True
    rate: Tensor

    def __init__(
        self,
        network: Network,
        strength: float = 1.0,
        floor: float = 0.05,
        cost: str | list[float] = "macs",
    ) -> None:
        super().__init__(network)
        require_positive(strength=strength, floor=floor)
        self.strength, self.floor = strength, floor
        self.costs = Costs(network, cost)
        self.register_buffer("rate", torch.zeros(()))  # lambda

    def forward(self, layer: int, positions: Tensor) -> Dirichlet:
        strength = self.strength * (self.rate.abs() / TURN).clamp(min=1.0)
        return by_cost(self.costs(positions), self.rate, strength, self.floor)
