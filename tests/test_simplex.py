"""Distributions on the simplex: entropies, straight-through gradients, KL."""

import math

import pytest
import torch
from conftest import route_execution
from pyro.distributions import Dirichlet, LogNormal
from torch.distributions import Distribution, kl_divergence

from pyro_meta.distributions.simplex import (
    Point,
    divergence,
    entropy,
    expected_entropy,
    scored,
    straight_through,
    uncertainty,
    uncertainty_of_draw,
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


def test_a_draw_decides_for_itself() -> None:
    """By its own entropy, whatever it was drawn from; all of them once everything is hard."""
    draw = Dirichlet(UNLIKE).sample(torch.Size([7]))
    assert torch.equal(route_execution(1.0).of_draw(draw), draw.argmax(-1))
    vertices = torch.eye(3)[draw.argmax(-1)]
    assert torch.equal(route_execution(1.0)(draw), vertices)
    is_hard = uncertainty_of_draw(draw, 1) < 0.5
    assert is_hard.any() and not is_hard.all()
    partly = torch.where(is_hard[..., None], vertices, draw)
    for found in (route_execution(0.5).of_draw(draw), route_execution(0.5)(draw)):
        assert torch.equal(found, partly)
    assert torch.equal(route_execution(0.0)(draw), draw)


def test_what_runs_for_a_draw_has_the_gradient_of_the_draw() -> None:
    draw = Dirichlet(UNLIKE).sample().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5])
    for threshold in (0.0, 0.5, 1.0):
        runs = route_execution(threshold, 1.0, (0.5, 0.1, 0.0))(draw)
        (found,) = torch.autograd.grad((runs * weights).sum(), draw)
        assert torch.equal(found, weights.expand_as(draw))


def test_without_a_closed_form_the_divergence_comes_from_the_draw() -> None:
    class Other(Dirichlet):
        """A distribution that nobody has registered a divergence from."""

    class Unknown(Distribution):
        arg_constraints = {}

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return LogNormal(0.0, 1.0).log_prob(value).sum(-1)

    q, p = Other(CONCENTRATIONS), Unknown(validate_args=False)
    draw = q.rsample()
    torch.testing.assert_close(divergence(q, p, draw), q.log_prob(draw) - p.log_prob(draw))


def test_a_vertex_can_be_scored() -> None:
    """At the least number that its precision holds; inside, the density is the Dirichlet's own."""
    plain = Dirichlet(torch.tensor([0.05, 0.4, 1.3]))
    dist = scored(plain)
    inside = torch.softmax(torch.randn(50, 3), -1)
    torch.testing.assert_close(dist.log_prob(inside), plain.log_prob(inside))
    for dtype in (torch.float32, torch.float64):
        found = scored(Dirichlet(plain.concentration.to(dtype))).log_prob(torch.eye(3, dtype=dtype))
        assert torch.isfinite(found).all()
    assert torch.isfinite(dist.expand([2, 1]).log_prob(torch.eye(3))).all()


def test_a_point_has_no_divergence() -> None:
    point = Point(torch.tensor([[0.2, 0.8]]))
    assert kl_divergence(point, Dirichlet(torch.ones(2))).tolist() == [0.0]
    assert torch.equal(point.expand([3, 1]).rsample(), point.weights.expand(3, 1, 2))
