"""What attending costs, per mechanism and position, in units where full attention is 1.

`nominal` are the constants of the Meta-Attention paper (arXiv 2605.28384); `macs` counts the
multiply-accumulates of attention itself, by position, over those of full attention averaged over
the context; `measured` are times of this machine (see `pyro_meta.network.measured_costs`). Shapes:
T positions, K mechanisms.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_meta.attention.prices import macs_at
from pyro_meta.errors import UsageError
from pyro_meta.network.measured_costs import measure_costs
from pyro_meta.network.protocol import Network

UNITS = ("nominal", "macs", "measured")

CostSpec = str | Sequence[float]
"""A unit, or a list with the user's own cost of each mechanism."""


class Costs(nn.Module):
    """The costs that a prior reckons with; `costs(positions)` is [T, K], see `costs_at`.

    Measured costs are read or timed once, here, and kept in a buffer: they are saved with the
    prior, so that a resumed run and a report reckon with the numbers that the run began with.
    """

    measured: Tensor

    def __init__(self, network: Network, spec: CostSpec) -> None:
        super().__init__()
        check_cost(network, spec)
        self._network = (network,)  # in a tuple: known, but no submodule
        self.spec = spec
        if spec == "measured":
            self.register_buffer("measured", torch.tensor(measure_costs(network)))

    @property
    def network(self) -> Network:
        return self._network[0]

    def forward(self, positions: Tensor) -> Tensor:
        if self.spec == "measured":
            return self.measured.expand(len(positions), -1)
        return costs_at(self.network, self.spec, positions)

    def of_groups(self, positions: Tensor) -> Tensor:
        """What the route of one group of heads costs: [T, K], or [T, 1, K] of several groups.

        Of G groups each costs 1 / G of the layer, so that a price has the same meaning for any G.
        """
        costs: Tensor = self(positions)
        G = self.network.shape.groups
        return costs if G == 1 else costs[:, None] / G


def costs_at(network: Network, spec: CostSpec, positions: Tensor) -> Tensor:
    """Costs [T, K] of attending at each of `positions` [T].

    Parameters
    ----------
    network
        Gives the mechanisms, the head width and the context that `macs` is normalised by.
    spec
        `nominal`, `macs`, `measured`, or one number per mechanism.

    Raises
    ------
    UsageError
        See `check_cost`.
    """
    check_cost(network, spec)
    mechanisms = network.mechanisms
    if isinstance(spec, str) and spec == "macs":
        shape = network.shape
        # full attention: 2 d (t + 1), averaged over t = 0 .. context - 1
        full_mean = shape.head_width * (shape.context + 1)
        where = positions.to(torch.get_default_dtype())
        return torch.stack([macs_at(mechanism, where) for mechanism in mechanisms], -1) / full_mean
    if spec == "nominal":
        constants: Sequence[float] = [float(mechanism.nominal_cost) for mechanism in mechanisms]
    elif spec == "measured":
        constants = measure_costs(network)
    else:
        assert not isinstance(spec, str)
        constants = spec
    table = torch.tensor(list(constants), device=positions.device, dtype=torch.get_default_dtype())
    return table.expand(len(positions), -1)


def check_cost(network: Network, spec: CostSpec) -> None:
    """Raise `UsageError` unless `spec` is a known unit or has one cost >= 0 per mechanism."""
    names = network.mechanism_names
    if isinstance(spec, str):
        if spec not in UNITS:
            raise UsageError(
                f"cost: {spec!r} given; {', '.join(UNITS)} or a list of numbers is allowed"
            )
    elif len(spec) != len(names):
        raise UsageError(
            f"cost: {len(spec)} costs given for {len(names)} mechanisms ({', '.join(names)})"
        )
    elif not all(0 <= cost < math.inf for cost in spec):
        raise UsageError(f"cost: {list(spec)} given; finite costs of at least 0 are allowed")
