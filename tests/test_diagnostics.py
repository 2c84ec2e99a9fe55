"""Collapse, importance weights and use: cases worked by hand, and synthetic runs of each kind."""

import numpy as np
import pytest
from scipy import stats

from pyro_meta.analysis.calibration import by_uncertainty, calibration, risk_coverage
from pyro_meta.analysis.collapse import (
    Check,
    active_units,
    against_prior,
    checks,
    collapse_verdicts,
    dead_mechanisms,
    kl_histogram,
    share_at_prior,
    split,
)
from pyro_meta.analysis.diversity import routing_information, shares_of
from pyro_meta.analysis.estimates import State, of_texts, resampled
from pyro_meta.analysis.importance_weights import k_hat, reliable_below, shape_alone, weigh
from pyro_meta.analysis.verdicts import of_hardening, of_layers, routing_layers


def healthy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.dirichlet(np.full(3, 0.5), (2, 500)), np.full((2, 500), 0.5)


def collapsed(means: np.ndarray, kl: np.ndarray) -> list[str]:
    verdicts = collapse_verdicts(means, kl, shares_of(means.argmax(-1), means))
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
    verdict = collapse_verdicts(means, np.zeros_like(kl), shares_of(means.argmax(-1), means))[0]
    assert "is 0 (collapsed below 0.01)" in str(verdict)


def asked(means: np.ndarray, kl: np.ndarray, sequences: int = 20) -> list[Check]:
    """Every token runs its likeliest mechanism, and all run every layer."""
    N = means.shape[1]
    sequence = np.repeat(np.arange(sequences), N // sequences)
    return checks(means, kl, means.argmax(-1), np.ones(kl.shape, bool), sequence)


def test_every_layer_is_asked_by_itself() -> None:
    """Three layers of four are one mechanism: that is what is said, and not that it has not."""
    rng = np.random.default_rng(1)
    means = rng.dirichlet(np.full(3, 0.5), (4, 500))
    means[1:] = 0.2 * means[1:] + 0.8 * np.eye(3)[1]
    kl = np.full((4, 500), 0.5)
    kl[3] = 0.0
    found = asked(means, kl)
    yes, no = State.YES, State.NO
    assert [one.states for one in found] == [[yes, yes, yes, no], [yes, yes, yes, yes],
                                             [yes, no, no, no]]  # fmt: skip
    names = [f"layer {layer}" for layer in range(4)]
    lines = [of_layers(one, names) for one in found]
    assert [(line.answer, line.is_good) for line in lines] == [
        ("in 3 of 4 layers", None), ("yes", True), ("in 1 of 4 layers", False),
    ]  # fmt: skip
    assert routing_layers(found) == 1
    wide = asked(means, kl, sequences=1)
    assert {state for one in wide for state in one.states} == {State.UNDECIDED}, "one text"


def test_the_numbers_of_layers_by_the_slow_way() -> None:
    """Mean, variance and load by loops; intervals by drawing sequences one by one."""
    rng = np.random.default_rng(2)
    means, kl = rng.dirichlet(np.ones(3), (2, 60)), rng.gamma(1.0, 0.02, (2, 60))
    sequence = np.repeat(np.arange(6), 10)
    runs = rng.random((2, 60)) < 0.7
    choice = means.argmax(-1)
    found = checks(means, kl, choice, runs, sequence)
    for layer in range(2):
        values = [one.estimates[layer].value for one in found]
        centre = sum(means[layer]) / 60
        spread = sum(((one - centre) ** 2).sum() for one in means[layer]) / 60
        counts = [sum((choice[layer] == k) & runs[layer]) for k in range(3)]
        wanted = [sum(kl[layer]) / 60, spread, max(counts) / runs[layer].sum()]
        assert values == pytest.approx(wanted)
        drawn = []
        for _ in range(2000):
            rows = np.concatenate(
                [np.flatnonzero(sequence == one) for one in rng.integers(6, size=6)]
            )
            drawn.append([kl[layer, rows].mean(), means[layer, rows].var(0).sum()])
        for one, ends in zip(found[:2], np.quantile(drawn, [0.025, 0.975], axis=0).T, strict=True):
            width = ends[1] - ends[0]
            assert one.estimates[layer].interval == pytest.approx(ends, abs=0.15 * width)


def test_a_layer_that_nobody_runs_is_judged_by_all() -> None:
    means, kl = healthy(np.random.default_rng(0))
    runs = np.stack([np.zeros(500, bool), np.ones(500, bool)])
    found = checks(means, kl, means.argmax(-1), runs, np.arange(500) // 25)
    assert all(np.isfinite(one.value) for check in found for one in check.estimates)
    mixed = checks(means, kl, np.full((2, 500), -1), runs, np.arange(500) // 25)
    assert mixed[2].estimates[0].value == pytest.approx(means[0].mean(0).max())


def test_an_interval_that_straddles_the_threshold_is_undecided() -> None:
    found = of_texts(np.array([1.0, 2.0, 3.0]))
    half = 4.302653 / 3**0.5  # t of 2 degrees of freedom
    assert found.interval == pytest.approx((2 - half, 2 + half), rel=1e-5)
    assert found.at_most(5.0) is State.YES and found.at_most(-1.0) is State.NO
    assert found.at_least(-1.0) is State.YES and found.at_least(5.0) is State.NO
    assert found.at_most(2.1) is found.at_least(2.1) is State.UNDECIDED
    assert of_texts(np.ones(1)).at_most(2.0) is State.UNDECIDED, "one text tells of no others"
    values = np.random.default_rng(0).normal(size=400)
    drawn = resampled(lambda some: float(values[some].mean()), 400, 2000)
    low, high = of_texts(values).interval
    assert drawn.value == pytest.approx(values.mean())
    assert drawn.interval == pytest.approx((low, high), abs=0.02)
    assert resampled(lambda some: 3.0, 1).interval == (-np.inf, np.inf)


def test_hardening_is_judged_with_an_interval() -> None:
    soft = np.linspace(1.9, 2.1, 50)
    assert of_hardening(soft, soft + 0.001).answer == "yes"
    assert of_hardening(soft, soft + 0.1).answer == "no"
    noise = np.random.default_rng(0).normal(0.02, 0.1, 50)
    assert of_hardening(soft, soft + noise).answer == "undecided"


def test_the_kl_is_information_and_marginal_kl() -> None:
    """Hoffman and Johnson 2016: of choices under one prior, by the sums themselves."""
    rng = np.random.default_rng(3)
    means, prior = rng.dirichlet(np.ones(3), 200), np.array([0.2, 0.3, 0.5])
    kl = sum((q * np.log(q / prior)).sum() for q in means) / 200
    average = sum(means) / 200
    information = sum((q * np.log(q / average)).sum() for q in means) / 200
    assert routing_information(means) == pytest.approx(information)
    marginal = split(np.array([kl]), np.array([information]))[0]
    assert marginal == pytest.approx((average * np.log(average / prior)).sum())


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
        k_hat(np.log(stats.genpareto.rvs(shape, loc=1, size=2000, random_state=rng)))
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
    log_r = stats.beta.logpdf(draws, 0.5, 1) - stats.beta.logpdf(draws, 2, 1)
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
