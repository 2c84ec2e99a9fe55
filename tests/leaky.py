"""A mechanism and a guide that see the future, and one that costs nothing, to be caught."""

import torch
from pyro.distributions import Dirichlet
from torch import Tensor

from pyro_meta import DirichletGuide, Features, Mechanism


class Leaky(Mechanism):
    """The mean over all values, later ones too."""

    nominal_cost = 0.1

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.mean(2, keepdim=True).expand_as(v)

    def macs(self, position: Tensor) -> Tensor:
        return torch.zeros_like(position)


class LateLeak(Leaky):
    """The mean over one's chunk of 64 tokens, later ones too, from token 64 on."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chunks = [part.mean(2, keepdim=True).expand_as(part) for part in v[:, :, 64:].split(64, 2)]
        return torch.cat([v[:, :, :64], *chunks], 2)


class LeakyGuide(DirichletGuide):
    """A guide that adds the mean of all features, later ones too."""

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        normed = features.normed + 10 * features.normed.mean(1, keepdim=True)
        return super().posterior(layer, features._replace(normed=normed))


class Costless(Mechanism):
    """A mechanism that does not say what it costs."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v

    def macs(self, position: Tensor) -> Tensor:
        return torch.zeros_like(position)
