"""Distributions on the simplex: entropies, straight-through gradients, KL."""

import math

import pytest
import torch
from conftest import route_execution
from pyro.distributions import Dirichlet, LogNormal
from torch.distributions import Distribution, kl_divergence

from pyro_meta.distributions.hardening import Hardened, RouteExecution
from pyro_meta.distributions.simplex import (
    Point,
    entropy,
    expected_entropy,
    straight_through,
    uncertainty,
)

UNLIKE = torch.tensor([[0.3, 0.4, 0.5], [90.0, 1.0, 1.0], [200.0, 300.0, 400.0]])
"""Of which one alone is certain enough to be hard below 0.5."""
CONCENTRATIONS = torch.tensor([[0.3, 0.4, 0.5], [5.0, 1.0, 1.0], [200.0, 300.0, 400.0]])


def test_expected_entropy_agrees_with_draws() -> None:
    dist = Dirichlet(CONCENTRATIONS.double())
    draws = entropy(dist.sample(torch.Size([40_000])))
    z = (draws.mean(0) - expected_entropy(dist)) / (draws.std(0) / math.sqrt(len(draws)))
    assert (z.abs() < 4).all()


def test_uncertainty_lies_between_a_vertex_and_the_centre() -> None:
    assert uncertainty(Dirichlet(torch.full((3,), 1e3))) > 0.99
    assert uncertainty(Dirichlet(torch.tensor([900.0, 0.05, 0.05]))) < 0.01
    assert uncertainty(Point(torch.tensor([0.5, 0.5]))) == pytest.approx(1.0)
    assert uncertainty(Dirichlet(torch.ones(4, 1))).tolist() == [0.0] * 4


def test_straight_through_is_hard_in_value_and_soft_in_gradient() -> None:
    weights = torch.tensor([[0.2, 0.7, 0.1]], requires_grad=True)
    hard = straight_through(weights, torch.tensor([1]))
    assert hard.tolist() == [[0.0, 1.0, 0.0]]
    (hard * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert weights.grad is not None and weights.grad.tolist() == [[1.0, 2.0, 3.0]]


def test_only_certain_tokens_are_hardened() -> None:
    weights = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    undecided = torch.tensor([0.3, 0.7])

    def hardened(threshold: float, undecided: torch.Tensor) -> torch.Tensor:
        execution = route_execution(threshold, costs=(1.0, 0.5))
        return execution.replace(weights, execution.decide(weights), execution.is_hard(undecided))

    assert hardened(0.5, undecided).tolist() == [[1.0, 0.0], weights[1].tolist()]
    everything = hardened(1.0, torch.tensor([0.3, 1.0 + 1e-6]))
    assert everything.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert torch.equal(hardened(0.0, torch.zeros(2)), weights)


def test_who_hardly_cares_does_not_pay() -> None:
    """Of 1.1 to 1 the cheaper one, of 3 to 1 the likelier one."""
    means = torch.tensor([[0.4, 0.35, 0.25], [0.6, 0.2, 0.2], [0.0, 0.5, 0.5]])
    assert route_execution(1.0).decide(means).tolist() == [0, 0, 1]
    costs = (0.6, 0.2, 0.0)
    assert route_execution(1.0, 1.0, costs).decide(means).tolist() == [1, 0, 2]


def test_what_runs_along_the_mean() -> None:
    dist = Dirichlet(UNLIKE)
    at = route_execution(0.5)
    assert torch.equal(at.of_mean(dist, hard=False), dist.mean)
    assert torch.equal(at.of_mean(dist, hard=True), dist.mean.argmax(-1))
    partly = at.of_mean(dist)
    is_hard = uncertainty(dist) < 0.5
    assert is_hard.any() and not is_hard.all()
    assert torch.equal(partly[~is_hard], dist.mean[~is_hard])
    assert torch.equal(partly[is_hard], torch.eye(3)[dist.mean.argmax(-1)][is_hard])
    assert torch.equal(route_execution(1.0).of_mean(dist), dist.mean.argmax(-1))
    mixture = RouteExecution(torch.ones(3), is_mixture=True)
    mixture.threshold.fill_(1.0)
    for hard in (None, False, True):
        assert torch.equal(mixture.of_mean(dist, hard), dist.mean)


def test_a_draw_decides_for_itself() -> None:
    dist = Dirichlet(UNLIKE)
    draw = dist.sample(torch.Size([7]))
    assert torch.equal(route_execution(1.0).of_draw(dist, draw), draw.argmax(-1))
    partly = route_execution(0.5).of_draw(dist, draw)
    is_hard = (uncertainty(dist) < 0.5).expand(7, -1)
    assert torch.equal(partly, torch.where(is_hard[..., None], torch.eye(3)[draw.argmax(-1)], draw))


def test_a_hardened_distribution_runs_what_is_decided_from_its_mean() -> None:
    """Whatever was drawn; the gradient is that of the draw."""
    concentrations = torch.tensor([[4.0, 3.5, 2.5], [6.0, 2.0, 2.0]], requires_grad=True)
    execution = route_execution(1.0, 1.0, (0.5, 0.1, 0.0))
    dist = Hardened(Dirichlet(concentrations), execution)
    for draws in (dist.rsample(), dist.expand([5, 2]).rsample(), dist.rsample(torch.Size([4]))):
        assert torch.equal(draws, torch.eye(3)[[1, 0]].expand_as(draws))
    assert dist.draw is not None
    weights = torch.tensor([1.0, -2.0, 0.5])
    executed = dist.rsample()
    (found,) = torch.autograd.grad((executed * weights).sum(), concentrations, retain_graph=True)
    (expected,) = torch.autograd.grad((dist.draw * weights).sum(), concentrations)
    torch.testing.assert_close(found, expected)
    assert float(found.abs().sum()) > 0


def test_a_hardened_distribution_keeps_the_divergence_of_its_base() -> None:
    q, p = Dirichlet(CONCENTRATIONS), Dirichlet(torch.ones(3, 3))
    hardened = Hardened(q, route_execution(1.0))
    draw = hardened.rsample()
    assert torch.equal(draw, torch.eye(3)[q.mean.argmax(-1)])
    torch.testing.assert_close(kl_divergence(hardened, p), kl_divergence(q, p))
    assert torch.isfinite(hardened.log_prob(draw)).all()


def test_without_a_closed_form_the_divergence_comes_from_the_soft_draw() -> None:
    class Other(Dirichlet):
        """A distribution that nobody has registered a divergence from."""

    class Unknown(Distribution):
        arg_constraints = {}

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return LogNormal(0.0, 1.0).log_prob(value).sum(-1)

    q = Hardened(Other(CONCENTRATIONS), route_execution(1.0))
    q.rsample()
    assert q.draw is not None
    expected = q.base.log_prob(q.draw) - Unknown(validate_args=False).log_prob(q.draw)
    torch.testing.assert_close(kl_divergence(q, Unknown(validate_args=False)), expected)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_hardened_distribution_has_the_density_of_its_base(threshold: float) -> None:
    """At the soft draw behind what it drew, and elsewhere at the value itself."""
    base = Dirichlet(torch.tensor([1.0, 2.0, 3.0]))
    dist = Hardened(base, route_execution(threshold))
    value = torch.tensor([0.2, 0.3, 0.5])
    before = dist.log_prob(value)
    drawn = dist.rsample()
    assert dist.draw is not None
    torch.testing.assert_close(dist.log_prob(drawn), base.log_prob(dist.draw))
    torch.testing.assert_close(dist.log_prob(value), before)
    torch.testing.assert_close(before, base.log_prob(value))


def test_a_point_has_no_divergence() -> None:
    point = Point(torch.tensor([[0.2, 0.8]]))
    assert kl_divergence(point, Dirichlet(torch.ones(2))).tolist() == [0.0]
    assert torch.equal(point.expand([3, 1]).rsample(), point.weights.expand(3, 1, 2))
