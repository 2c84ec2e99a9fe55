"""Routes drawn from the guide's posterior, weighed against the prior, and run."""

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from pyro_meta.distributions.simplex import Point, log_ratio
from pyro_meta.guides.walk import Latents, Router, Walked, place_of
from pyro_meta.models.language_model import Draw
from pyro_meta.network.route import Decision, Features


def has_density(dist: Distribution) -> bool:
    """Whether a distribution can be weighed against another: a point cannot."""
    return not isinstance(dist, Point)


def in_double(dist: Distribution) -> Distribution:
    """A Dirichlet in float64; another distribution as it is."""
    return Dirichlet(dist.concentration.double()) if isinstance(dist, Dirichlet) else dist


def weighed(
    guide: Router, layer: int, features: Features, posterior: Latents
) -> tuple[Draw, Decision]:
    """Draw the routes for importance weights (`log_ratios`); gates are as deployed.

    Against a Dirichlet a Dirichlet is drawn in float64: with a concentration of 0.05, one draw in a
    hundred has a component below the least number of float32, and weights live in that tail.
    """
    route, gate = posterior
    model = guide.model
    prior = model.route_dist(layer, features.positions, guide.load(layer))
    draw = _drawn_from(route, prior).rsample()
    place = place_of(layer, features)
    run = model.execution.of_draw(draw.to(features.state.dtype), place)
    opened = model.gate_execution.of_mean(gate, place=place)
    return Draw(draw, gate.mean), Decision(run, opened)


def log_ratios(walked: Walked, newest: int) -> Tensor:
    """log p - log q of the routes that `weighed` drew, [B]: over all layers and `newest` tokens.

    The price of compute is part of p, up to its constant.
    """
    total = torch.zeros(len(walked.logits), dtype=torch.float64, device=walked.logits.device)
    for q, p, draw, at in zip(
        walked.posteriors, walked.priors, walked.draws, walked.positions, strict=True
    ):
        total -= walked.model.charge(at, draw)[:, -newest:].flatten(1).sum(1)
        ours, prior = _drawn_from(q.route, p.route), _drawn_from(p.route, q.route)
        total += -log_ratio(ours, prior, draw.route)[:, -newest:].flatten(1).sum(1)
    return total


def _drawn_from(dist: Distribution, other: Distribution) -> Distribution:
    """`dist` in the precision that it is weighed in against `other`."""
    are_both = isinstance(dist, Dirichlet) and isinstance(other, Dirichlet)
    return in_double(dist) if are_both else dist
