"""The guide that learns nothing: the floor that every router has to beat."""

import torch
from torch.distributions import Distribution

from pyro_meta.guides.base import Guide
from pyro_meta.guides.networks import of_own_token
from pyro_meta.network.route import Features


class PriorGuide(Guide):
    """q(alpha_l | x) = p(alpha_l): routes are drawn from the prior, and the KL is 0."""

    pays_kl = False
    of_choices = None

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Distribution:
        prior = self.model.route_dist(layer, features.positions, self.load(layer))
        of_groups = self.model.network.shape.of_groups
        return prior.expand(torch.Size([*features.tokens.shape, *of_groups]))
