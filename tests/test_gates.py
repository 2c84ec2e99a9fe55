"""Distributions of depth gates against numerical integrals, in value and gradient."""

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from conftest import gate_execution
from pyro.distributions import Beta
from scipy import integrate, stats

from pyro_meta import PointGate
from pyro_meta.distributions.simplex import divergence, uncertainty


def binary_entropy(g: Any) -> Any:
    return -(g * np.log(g) + (1 - g) * np.log1p(-g))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("a", "b"), [(0.7, 0.4), (2.0, 5.0), (30.0, 4.0)])
def test_the_uncertainty_of_a_beta_is_its_integral(a: float, b: float) -> None:
    def by_quadrature(a: float, b: float) -> float:
        found = integrate.quad(
            lambda g: stats.beta.pdf(g, a, b) * binary_entropy(g), 0, 1, epsabs=1e-12, limit=400
        )
        return float(found[0]) / math.log(2)

    parameters = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    u = uncertainty(Beta(*parameters))
    assert float(u.detach()) == pytest.approx(by_quadrature(a, b), abs=1e-7)
    slopes = torch.autograd.grad(u, parameters)
    h = 1e-3
    expected = [
        (by_quadrature(a + h, b) - by_quadrature(a - h, b)) / (2 * h),
        (by_quadrature(a, b + h) - by_quadrature(a, b - h)) / (2 * h),
    ]
    assert [float(slope) for slope in slopes] == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("double")
def test_a_distribution_without_a_closed_form_is_uncertain_by_its_draws() -> None:
    dist = pyro.distributions.Uniform(0.0, 1.0).expand([4000])
    exact = integrate.quad(binary_entropy, 0, 1)[0] / math.log(2)
    assert float(uncertainty(dist).mean()) == pytest.approx(exact, abs=4 * 0.3 / (64 * 4000) ** 0.5)


@pytest.mark.usefixtures("double")
def test_the_kl_of_gates_is_its_integral() -> None:
    q, p = Beta(2.0, 0.8), Beta(0.35, 0.75)
    density = stats.beta(2.0, 0.8)
    found = integrate.quad(
        lambda g: density.pdf(g) * (density.logpdf(g) - stats.beta.logpdf(g, 0.35, 0.75)),
        0, 1, epsabs=1e-11, limit=400,
    )[0]  # fmt: skip
    assert float(divergence(q, p)) == pytest.approx(found, abs=1e-6)


def test_a_point_has_one_value_and_no_kl() -> None:
    value = torch.tensor([0.0, 0.25, 1.0])
    point = PointGate(value)
    assert (point.batch_shape, point.event_shape) == ((3,), ())
    assert torch.equal(point.rsample(torch.Size([2])), value.expand(2, 3))
    assert torch.equal(divergence(point, Beta(torch.ones(3), torch.ones(3))), torch.zeros(3))
    assert uncertainty(point).tolist() == pytest.approx([0.0, 0.811278, 0.0], abs=1e-6)
    assert torch.equal(point.expand([2, 3]).mean, value.expand(2, 3))
    with pytest.raises(ValueError, match="weights"):
        PointGate(torch.tensor(1.5))


def test_hard_gates_are_exact_and_their_gradient_is_that_of_the_draw() -> None:
    draw = torch.tensor([0.999, 0.001, 0.6, 0.35], requires_grad=True)
    gate = gate_execution(0.7)(draw)
    assert gate.detach()[:2].tolist() == [1.0, 0.0]
    assert torch.equal(gate[2:], draw[2:]), "they are not certain enough"
    (found,) = torch.autograd.grad(gate.sum(), draw)
    assert torch.equal(found, torch.ones(4))
    assert gate_execution(1.0)(draw).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert gate_execution(1.0).of_draw(draw).tolist() == [True, False, True, False]


def test_the_price_is_in_nats_of_the_mean() -> None:
    mean = torch.tensor([0.0, 0.49, 0.51, 0.7, 0.8, 1.0])
    assert gate_execution(1.0).decide(mean).tolist() == [False, False, True, True, True, True]
    price = math.log(0.75 / 0.25)  # runs from .75 on
    assert gate_execution(1.0, price).decide(mean).tolist() == [
        False,
        False,
        False,
        False,
        True,
        True,
    ]
    assert gate_execution(1.0, -price).decide(mean).tolist() == [
        False,
        True,
        True,
        True,
        True,
        True,
    ]
