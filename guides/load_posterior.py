"""The posterior of the loads: one Dirichlet for each layer and group of heads, and no token."""

import torch
from pyro.distributions import Dirichlet
from torch import nn

from pyro_meta.distributions.bounded import bounded, unbounded
from pyro_meta.network.protocol import Network

LEAST_TOTAL, MOST_TOTAL, TOTAL = 1.0, 3e3, 300.0
"""Pseudo-tokens that a load is known by: bounds, and at the start. Above, the closed KL loses
digits in single precision."""
FLOOR = 1.0  # at least one of each mechanism: none of them is ever beyond reach


class LoadPosterior(nn.Module):
    """q(pi_l) = Dirichlet(1 + a_0 m), with a free m and a_0 for each layer and group.

    At the start all loads are alike.

    Parameters
    ----------
    network
        Gives layers, groups and mechanisms.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        sizes = (network.shape.layers, *network.shape.of_groups)
        self.logits = nn.Parameter(torch.zeros(*sizes, len(network.mechanisms)))
        raw = unbounded(TOTAL, LEAST_TOTAL, MOST_TOTAL)
        self.raw_total = nn.Parameter(torch.full(sizes, raw))

    def forward(self, layer: int) -> Dirichlet:
        """q(pi_l): batch [], or [G] of several groups, event [K]."""
        mean = torch.softmax(self.logits[layer], -1)
        total = bounded(self.raw_total[layer], LEAST_TOTAL, MOST_TOTAL)[..., None]
        return Dirichlet(FLOOR + total * mean)
