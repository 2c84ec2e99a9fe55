"""Priors p(alpha) over routes: a distribution on the simplex for each layer and position.

Of *weights* a Dirichlet is a prior: a token mixes its mechanisms. Of *choices* a categorical is
one: a token runs a single mechanism. A prior knows the network's mechanisms and what they cost; it
never sees the text. Shapes: T positions, G groups of heads, K mechanisms.
"""

import math
from typing import ClassVar

import torch
from pyro.distributions import Dirichlet
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_meta.distributions import Choice
from pyro_meta.errors import UsageError
from pyro_meta.models.compute import ComputePotential
from pyro_meta.models.made_with import MadeWith
from pyro_meta.network.costs import Costs
from pyro_meta.network.protocol import Network
from pyro_meta.own_classes import require_defined


class Prior(MadeWith, nn.Module):
    """A distribution of the route of each token, p(alpha_{l,t}).

    Subclass it and define `forward`; name it by import path (`--prior my_file.MyPrior`).

    Parameters
    ----------
    network
        The network whose routes are drawn: gives layers, mechanisms and costs.
    """

    learns_from_kl: ClassVar[bool] = False
    """Whether the prior adapts to the posterior, and so needs a guide that pays a KL."""
    of_choices: ClassVar[bool] = False
    """Whether `forward` gives choices of one mechanism (`Choice`), rather than weights of all."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        require_defined(self, Prior, "forward")
        self._network = (network,)  # in a tuple: known, but no submodule of the prior

    @property
    def network(self) -> Network:
        return self._network[0]

    def forward(self, layer: int, positions: Tensor) -> Distribution:
        """p(alpha_l) at `positions` [T] of `layer`: event [K], reparameterised.

        Batch [T] or [], or [T, G] where every group of heads has its own.
        """
        raise NotImplementedError

    def potential(self) -> ComputePotential | None:
        """What a route costs beside this prior, to be charged by the model; by default nothing."""
        return None


def by_cost(
    costs: Tensor, rate: float | Tensor, strength: float | Tensor, floor: float
) -> Dirichlet:
    """Dirichlet(s softmax(-lambda c) + floor) for costs [.., K]."""
    return Dirichlet(strength * torch.softmax(-rate * costs, -1) + floor)


class CostDirichlet(Prior):
    """alpha ~ Dirichlet(s softmax(-lambda c) + floor): cheap mechanisms are likelier.

    lambda is a lean and no price: what a decided token is charged for a dear mechanism saturates,
    and falls again as lambda grows. Under `CostCategorical`, and the potential of the load priors,
    it is a price.

    Parameters
    ----------
    network
        The network whose routes are drawn.
    rate
        lambda: the log of the prior's mean falls by so much per unit of cost.
    strength
        s, how many pseudo-draws the prior is worth; below about 3 it favours decided tokens, above
        it blended ones.
    floor
        Least concentration of any mechanism.
    cost
        `macs` (by position), `nominal`, `measured`, or a list with one cost per mechanism.
    """

    def __init__(
        self,
        network: Network,
        rate: float = 6.0,
        strength: float = 1.0,
        floor: float = 0.05,
        cost: str | list[float] = "macs",
    ) -> None:
        super().__init__(network)
        require_positive(strength=strength, floor=floor)
        require_at_least_zero(rate=rate)
        self.rate, self.strength, self.floor = rate, strength, floor
        self.costs = Costs(network, cost)

    def forward(self, layer: int, positions: Tensor) -> Dirichlet:
        return by_cost(self.costs.of_groups(positions), self.rate, self.strength, self.floor)


class CostCategorical(Prior):
    """alpha = e_k with probability softmax(-lambda c)_k: a choice, and cheap ones are likelier.

    A posterior q over choices pays

        KL(q || p) = lambda E_q[c] - H(q) + log sum_k exp(-lambda c_k),

    which is exactly the cost penalty with entropy bonus that others add to the loss by hand. lambda
    is its price: a decided token pays lambda times the difference for what costs more.

    Parameters
    ----------
    network
        The network whose routes are drawn.
    rate
        lambda, nats paid per unit of cost; a layer of full attention averages 1 unit.
    cost
        Unit of cost, see `CostDirichlet`.
    """

    of_choices = True

    def __init__(
        self, network: Network, rate: float = 6.0, cost: str | list[float] = "macs"
    ) -> None:
        super().__init__(network)
        require_at_least_zero(rate=rate)
        self.rate = rate
        self.costs = Costs(network, cost)

    def forward(self, layer: int, positions: Tensor) -> Choice:
        return Choice(logits=-self.rate * self.costs.of_groups(positions))


class PaperDirichlet(Prior):
    """alpha ~ Dirichlet(eps + beta0 (1 - c)), the prior of Meta-Attention (arXiv 2605.28384).

    Parameters
    ----------
    network
        The network whose routes are drawn.
    scale
        beta0.
    floor
        eps. A cost of 1 + eps / beta0 or more would make a concentration negative and is refused.
    cost
        `nominal` or a list with one cost per mechanism.
    """

    def __init__(
        self,
        network: Network,
        scale: float = 1.0,
        floor: float = 0.01,
        cost: str | list[float] = "nominal",
    ) -> None:
        super().__init__(network)
        require_positive(scale=scale, floor=floor)
        self.scale, self.floor = scale, floor
        self.costs = Costs(network, cost)
        lowest = float(self._concentration(torch.arange(network.shape.context)).min())
        if lowest <= 0:
            raise UsageError(
                f"prior.cost: {cost!r} gives a concentration of {lowest:.3g}; "
                f"costs below 1 + floor / scale = {1 + floor / scale:.3g} are allowed"
            )

    def _concentration(self, positions: Tensor) -> Tensor:
        return self.floor + self.scale * (1 - self.costs(positions))

    def forward(self, layer: int, positions: Tensor) -> Dirichlet:
        return Dirichlet(self._concentration(positions))


class SymmetricDirichlet(Prior):
    """alpha ~ Dirichlet(a, ..., a): no mechanism is preferred, and cost plays no part.

    Parameters
    ----------
    network
        The network whose routes are drawn.
    concentration
        a; below 1 single mechanisms are favoured, above 1 mixtures.
    """

    def __init__(self, network: Network, concentration: float = 1.0) -> None:
        super().__init__(network)
        require_positive(concentration=concentration)
        self.concentration = concentration

    def forward(self, layer: int, positions: Tensor) -> Dirichlet:
        K = len(self.network.mechanisms)
        concentration = torch.tensor(self.concentration, device=positions.device)
        return Dirichlet(concentration.expand(len(positions), K))


def require_positive(**concentrations: float) -> None:
    """Raise `UsageError` unless every named value is above 0."""
    for name, value in concentrations.items():
        if not value > 0:
            raise UsageError(f"prior.{name}: {value} given; above 0 is allowed")


def require_at_least_zero(**rates: float) -> None:
    """Raise `UsageError` unless every named value is finite and at least 0."""
    for name, value in rates.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"prior.{name}: {value} given; at least 0 is allowed")
