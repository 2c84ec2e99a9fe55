"""What attending costs a token beside its prior: a potential that nothing learned can cancel."""

import torch
from torch import Tensor, nn

from pyro_meta.network.costs import Costs, CostSpec
from pyro_meta.network.protocol import Network


class ComputePotential(nn.Module):
    """log p includes - lambda sum_{l,g,t} E_k[c_{k,t}], a factor of its own in every layer.

    A prior that learns its loads can make any mechanism likely, and a price inside it would be
    undone. This one stands beside it. lambda is a price in nats per unit of cost: it is paid in
    full for any mechanism, adds up over layers and groups, and does not saturate. A unit is what a
    layer of full attention costs a token, averaged over the context.

    Parameters
    ----------
    network
        The network whose routes are charged.
    cost
        Unit of cost, see `CostDirichlet`.
    rate
        lambda.

    Attributes
    ----------
    rate
        lambda, a buffer: a controller may move it. Below 0 compute is rewarded.
    """

    rate: Tensor

    def __init__(self, network: Network, cost: CostSpec, rate: float = 0.0) -> None:
        super().__init__()
        self.costs = Costs(network, cost)
        self.register_buffer("rate", torch.tensor(float(rate)))

    def forward(self, positions: Tensor, weights: Tensor) -> Tensor:
        """lambda E_k[c_k] in nats [.., T] at `positions` [T], for weights [.., T, K].

        Of groups: [.., T, G] for weights [.., T, G, K].
        """
        return self.rate * (weights * self.costs.of_groups(positions)).sum(-1)
