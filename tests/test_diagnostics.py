"""Collapse, importance weights and use: cases worked by hand, and synthetic runs of each kind."""

import numpy as np
import pytest
from scipy import stats as laws

from pyro_meta.analysis.calibration import by_uncertainty, calibration, risk_coverage
from pyro_meta.analysis.collapse import (
    active_units,
    against_prior,
    collapse_verdicts,
    dead_mechanisms,
    kl_histogram,
    share_at_prior,
)
from pyro_meta.analysis.diversity import load
from pyro_meta.analysis.importance_weights import k_hat, reliable_below, shape_alone, weigh


def healthy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.dirichlet(np.full(3, 0.5), (2, 500)), np.full((2, 500), 0.5)


def collapsed(means: np.ndarray, kl: np.ndarray) -> list[str]:
    verdicts = collapse_verdicts(means, kl, load(means.argmax(-1), means))
    return [verdict.name for verdict in verdicts if verdict.is_collapsed]


def test_each_collapse_is_recognised_and_a_healthy_router_is_not() -> None:
    rng = np.random.default_rng(1)
    means, kl = healthy(rng)
    assert collapsed(means, kl) == []
    assert collapsed(means, np.zeros_like(kl)) == ["prior"]
    blind = np.tile([0.4, 0.35, 0.25], (2, 500, 1))
    blind[:, ::2] = [0.375, 0.377, 0.248]
    assert collapsed(blind, kl) == ["token-blind"]
    one = 0.6 * np.eye(3)[0] + 0.4 * means
    assert collapsed(one, kl) == ["one mechanism"]
    verdict = collapse_verdicts(means, np.zeros_like(kl), load(means.argmax(-1), means))[0]
    assert "is 0 (collapsed below 0.01)" in str(verdict)


def test_active_and_dead_by_hand() -> None:
    means = np.array([[[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.6, 0.4, 0.0]]])
    assert active_units(means).tolist() == [[True, True, False]], "variances .0067, .0067, 0"
    loads = np.array([[0.96, 0.03, 0.01], [0.5, 0.4, 0.1]])
    assert dead_mechanisms(loads).tolist() == [[False, True, True], [False, False, False]]
    assert against_prior(np.array([[1.0, 0.0]]), np.array([[0.25, 0.75]])) == pytest.approx(
        np.log(4)
    )


def test_histogram_of_kl_holds_all_tokens() -> None:
    kl = np.random.default_rng(0).gamma(2.0, 0.3, (3, 1000))
    kl[0, :100] = 0.0
    edges, shares = kl_histogram(kl)
    assert len(edges) == shares.shape[1] + 1
    assert shares.sum(1) == pytest.approx(np.ones(3))
    assert share_at_prior(kl)[0] >= 0.1


@pytest.mark.parametrize("shape", [0.3, 0.9])
def test_k_hat_of_a_known_tail(shape: float) -> None:
    """Generalised Pareto weights: the shape is what is estimated, to its sampling error."""
    rng = np.random.default_rng(2)
    found = [
        k_hat(np.log(laws.genpareto.rvs(shape, loc=1, size=2000, random_state=rng)))
        for _ in range(20)
    ]
    z = (np.mean(found) - shape) / (np.std(found) / np.sqrt(len(found)))
    assert abs(np.mean(found) - shape) < 0.1 or abs(z) < 4


def test_constant_weights_have_no_tail() -> None:
    found = weigh(np.full((100, 3), -5.0), np.full((100, 3), 2.0), 0.1)
    assert found.k_hat.tolist() == [0, 0, 0] and found.usable == 1
    assert found.efficiency == pytest.approx(np.ones(3))
    assert found.gap == pytest.approx(np.zeros(3))


def test_weights_by_hand() -> None:
    """Two draws with r = 1 and 3: mean 2, efficiency 4^2 / (2 (1 + 9))."""
    found = weigh(np.log([[1.0], [3.0]]), np.zeros((2, 1)), 1.0)
    assert found.efficiency[0] == pytest.approx(16 / 20)
    assert found.gap[0] == pytest.approx(np.log(2) - np.log(3) / 2)
    assert reliable_below(100) == pytest.approx(0.5) and reliable_below(10_000) == 0.7


def test_the_tail_that_shapes_force_is_the_tail_that_is_found() -> None:
    """q = Beta(2, 1), p = Beta(.5, 1): r grows like x^-1.5 where q has x^2, index .75."""
    assert shape_alone(np.array([2.0, 1.0]), np.array([0.5, 1.0])) == pytest.approx(0.75)
    assert shape_alone(np.array([1.0, 1.0]), np.array([2.0, 3.0])) == 0, "wider than the prior"
    draws = np.random.default_rng(0).beta(2.0, 1.0, 100_000)
    log_r = laws.beta.logpdf(draws, 0.5, 1) - laws.beta.logpdf(draws, 2, 1)
    assert k_hat(log_r) == pytest.approx(0.75, abs=0.1)


def test_difference_by_uncertainty() -> None:
    u = np.linspace(0, 1, 100)
    found = by_uncertainty(u, 2 * u, parts=4)
    assert found.difference == pytest.approx(2 * found.uncertainty)
    assert found.rank_correlation == pytest.approx(1)
    assert np.isnan(by_uncertainty(np.ones(10), np.arange(10.0)).rank_correlation)


def test_risk_coverage_by_hand() -> None:
    found = risk_coverage(np.array([0.4, 0.1, 0.2, 0.3]), np.array([1.0, 0.0, 0.0, 1.0]))
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert found.area == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_calibration_by_hand() -> None:
    found = calibration(np.array([0.2, 0.2, 0.8, 0.8]), np.array([0.0, 1.0, 1.0, 1.0]), bins=2)
    assert found.stated == pytest.approx([0.2, 0.8]) and found.observed == pytest.approx([0.5, 1.0])
    assert found.error == pytest.approx(0.25) and found.count.tolist() == [2, 2]


def test_frequencies_that_are_true_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=60_000)
    assert calibration(p, (rng.uniform(size=p.size) < p).astype(float)).error < 0.01
