"""Routes drawn from the guide's posterior, weighed against the prior, and run."""

from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from pyro_meta.distributions.gates import harden_gate
from pyro_meta.distributions.simplex import Point, harden, log_ratio, uncertainty
from pyro_meta.guides import Guide
from pyro_meta.network.route import Decision


def executed(guide: Guide, law: Distribution, draw: Tensor) -> Tensor:
    """What runs for a draw from `law`: one-hot where the guide is certain enough, [.., K].

    A hard token runs what the guide would decide on if the draw were its mean. Once every route is
    hard these are choices [..], so that each token runs one mechanism alone.
    """
    choice = guide.decide(draw)
    if float(guide.hard_below) >= 1:
        return choice
    return harden(draw, uncertainty(law), guide.hard_below, choice)


def executed_gate(guide: Guide, law: Distribution, draw: Tensor) -> Tensor:
    """The same for a draw of the depth gates, [..]: booleans once every token is hard."""
    assert guide.depth is not None
    runs = guide.depth.runs(draw)
    if float(guide.threshold) >= 1:
        return runs
    return harden_gate(draw, uncertainty(law), guide.threshold, runs)


def gated(route: Tensor, gate: Tensor | None) -> Tensor | Decision:
    """A route with the gate that stands beside it, if any does."""
    return route if gate is None else Decision(route, gate)


def has_density(law: Distribution) -> bool:
    """Whether a law can be weighed against another: a point cannot."""
    return not isinstance(law, Point)


def draw_and_weigh(law: Distribution, prior: Distribution) -> tuple[Tensor, Tensor]:
    """A draw [.., K] and log p - log q of it [..].

    A Dirichlet is drawn in float64: with a concentration of .05, one draw in a hundred has a
    component below the least number of float32, and weights live in that tail.
    """
    if isinstance(law, Dirichlet) and isinstance(prior, Dirichlet):
        law, prior = (Dirichlet(one.concentration.double()) for one in (law, prior))
    draw = law.rsample()
    return draw, -log_ratio(law, prior.expand(law.batch_shape), draw)
