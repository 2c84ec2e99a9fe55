"""Priors with a level of loads: what a layer and group do as a rule, and how tokens deviate.

    pi[l, g] ~ Dirichlet(s0 softmax(-lambda0 c) + floor0)       site load_{l}
    alpha[l, t, g] ~ a distribution around pi[l, g]             site route_{l}
    log p includes - lambda sum E_k[c_k]                        factor compute_{l}

The load is learned, so that a token pays for what sets it apart, and not anew for what its layer
does. A learned load would undo a price inside the prior. So compute is a potential of its own.
Shapes: T positions, G groups of heads, K mechanisms.
"""

import torch
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.distributions import Choice
from pyro_meta.models.compute import ComputePotential
from pyro_meta.models.priors import (
    Prior,
    by_cost,
    require_at_least_zero,
    require_positive,
)
from pyro_meta.network.costs import Costs
from pyro_meta.network.protocol import Network
from pyro_meta.own_classes import require_defined


class LoadPrior(Prior):
    """A prior around learned loads; subclass it and define `around`.

    Parameters
    ----------
    network
        The network whose routes are drawn.
    rate
        lambda, the price of compute: nats per unit of cost, where a layer of full attention
        averages 1 unit. A token pays lambda times `kl.weight` of it in the unit of the loss.
    load_strength
        s0, how many tokens the prior of a load is worth.
    load_rate
        lambda0, how much cheap mechanisms lead in it.
    load_floor
        floor0, least concentration of any mechanism in it.
    cost
        Unit of cost, see `CostDirichlet`.
    """

    def __init__(
        self,
        network: Network,
        rate: float = 6.0,
        load_strength: float = 3.0,
        load_rate: float = 0.0,
        load_floor: float = 1.0,
        cost: str | list[float] = "macs",
    ) -> None:
        super().__init__(network)
        require_defined(self, LoadPrior, "around")
        require_positive(load_strength=load_strength, load_floor=load_floor)
        require_at_least_zero(rate=rate, load_rate=load_rate)
        self.rate, self.cost = rate, cost
        self.load_strength, self.load_rate = load_strength, load_rate
        self.load_floor = load_floor
        self.costs = Costs(network, cost)

    def around(self, load: Tensor) -> Distribution:
        """p(alpha | pi) for loads [.., K]: batch [..], event [K], reparameterised."""
        raise NotImplementedError

    def load_dist(self, layer: int) -> Dirichlet:
        """p(pi_l): batch [], or [G] of several groups, event [K]."""
        device = self.network.device
        everywhere = torch.arange(self.network.shape.context, device=device)
        costs = self.costs.of_groups(everywhere).mean(0)  # [K] or [1, K]
        dist = by_cost(costs, self.load_rate, self.load_strength, self.load_floor)
        return dist.expand(torch.Size(self.network.shape.of_groups))

    def forward(self, layer: int, positions: Tensor, load: Tensor | None = None) -> Distribution:
        """p(alpha_l | pi_l): batch [T], or [T, G] of several groups.

        `load` is pi_l, [K] or [G, K], behind leading dimensions of particles; by default the mean
        of its prior.
        """
        load = self.load_dist(layer).mean if load is None else load
        of_tokens = (len(positions), *self.network.shape.of_groups)
        found = self.around(load)
        return found.expand(torch.broadcast_shapes(found.batch_shape, of_tokens))

    def potential(self) -> ComputePotential:
        return ComputePotential(self.network, self.cost, self.rate)


class LoadDirichlet(LoadPrior):
    """alpha ~ Dirichlet(s pi + floor): weights around the load of their layer and group.

    Parameters
    ----------
    network, rate, load_strength, load_rate, load_floor, cost
        See `LoadPrior`.
    strength
        s, how closely tokens follow the load: at 1/4 they are decided, each on a mechanism that is
        drawn by the load; at 100 all mix as the load says. What a token pays for a mechanism that
        its layer never runs grows with s, about 20 s nats.
    floor
        Least concentration of any mechanism.
    """

    def __init__(
        self,
        network: Network,
        rate: float = 3.0,
        strength: float = 0.25,
        floor: float = 0.05,
        load_strength: float = 3.0,
        load_rate: float = 0.0,
        load_floor: float = 1.0,
        cost: str | list[float] = "macs",
    ) -> None:
        super().__init__(network, rate, load_strength, load_rate, load_floor, cost)
        require_positive(strength=strength, floor=floor)
        self.strength, self.floor = strength, floor

    def around(self, load: Tensor) -> Dirichlet:
        return Dirichlet(self.strength * load + self.floor)


class LoadCategorical(LoadPrior):
    """alpha = e_k with probability pi_k: choices, as frequent as the load of layer and group says.

    Parameters
    ----------
    network, rate, load_strength, load_rate, load_floor, cost
        See `LoadPrior`.
    """

    of_choices = True

    def around(self, load: Tensor) -> Choice:
        return Choice(logits=load.clamp(min=torch.finfo(load.dtype).tiny).log())
