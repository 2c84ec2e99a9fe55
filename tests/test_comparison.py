"""Comparisons of settings, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_meta.analysis.comparison import (
    best_at_most,
    bootstrap_interval,
    paired_difference,
    pareto_front,
    spread,
)
from pyro_meta.analysis.plots.pareto import Setting, pareto


def test_spread_over_seeds() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation, found.seeds) == (2.0, 1.0, 3)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(spread([1.0]).deviation)


def test_a_paired_difference_by_hand() -> None:
    """d = [[1, 3], [2, 8]]: means by seed 2 and 5, by sequence 1.5 and 5.5, residuals +-1."""
    theirs = {0: [1.0, 1.0], 1: [2.0, 2.0], 7: [0.0, 0.0]}
    found = paired_difference({0: [2.0, 4.0], 1: [4.0, 10.0]}, theirs)
    assert found is not None
    assert (found.mean, found.seeds, found.sequences) == (3.5, 2, 2)
    assert found.by_seed == {0: 2.0, 1: 5.0}
    of_seeds, of_sequences, of_both = 4.5 / 2, 8.0 / 2, 4.0 / (2 * 2)
    t = stats.t.ppf(0.975, 1)
    assert found.over_seeds == pytest.approx((3.5 - t * 1.5, 3.5 + t * 1.5))
    half = t * math.sqrt(of_seeds + of_sequences - of_both)
    assert found.interval == pytest.approx((3.5 - half, 3.5 + half))
    assert found.over_sequences == (1.5, 5.5)
    assert not found.is_clear


def test_one_seed_says_only_what_other_sequences_may_bring() -> None:
    found = paired_difference({3: [0.0, 0.1, 0.2]}, {3: [1.0, 1.0, 1.0]})
    assert found is not None and found.over_seeds is None
    assert found.interval == found.over_sequences
    assert found.is_clear and found.interval[1] < 0


def test_pairing_cancels_what_sequences_and_seeds_have_in_common() -> None:
    rng = np.random.default_rng(0)
    common = {seed: 2 + rng.normal(size=64) for seed in range(3)}
    worse = {seed: losses + 0.01 for seed, losses in common.items()}
    found = paired_difference(common, worse)
    assert found is not None
    assert found.interval == pytest.approx((-0.01, -0.01), abs=1e-9)


def test_intervals_cover_as_often_as_they_say() -> None:
    """Crossed effects of seeds and sequences: 95% intervals hold the truth in 90 to 100% of 200."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        effects = 0.3 * rng.normal(size=(4, 1)) + 0.5 * rng.normal(size=(1, 30))
        d = 0.2 + effects + 0.5 * rng.normal(size=(4, 30))
        found = paired_difference(dict(enumerate(d)), dict(enumerate(np.zeros((4, 30)))))
        assert found is not None
        held += found.interval[0] < 0.2 < found.interval[1]
    assert held / 200 >= 0.9


def test_what_cannot_be_paired() -> None:
    assert paired_difference({0: [1.0]}, {1: [1.0]}) is None
    with pytest.raises(ValueError, match="different numbers"):
        paired_difference({0: [1.0]}, {0: [1.0, 2.0]})


def test_the_bootstrap_is_near_the_normal_interval_and_always_the_same() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_interval(values) == (low, high)


def test_pareto_front() -> None:
    costs, losses = [1.0, 0.5, 0.5, 0.2, 0.7], [1.0, 1.2, 1.1, 2.0, 1.1]
    assert pareto_front(costs, losses).tolist() == [True, False, True, True, False]
    assert pareto_front([1, 1], [2, 2]).all(), "equals do not beat each other"


def test_the_best_that_costs_no_more() -> None:
    assert best_at_most([1.0, 0.4, 0.2], [1.5, 1.6, 2.0], 0.5) == 1
    assert best_at_most([1.0, 0.4, 0.2], [1.5, 1.6, 2.0], 0.1) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_labels_of_the_picture_keep_apart(seeds: int) -> None:
    """Twelve settings, two of them far above the others."""
    rng = np.random.default_rng(0)
    kinds = ("variant", "mechanism", "fixed", "random", "prior", "point")
    settings = [
        Setting(f"a setting with number {i}", kinds[i % 6],
                list(0.3 + 0.05 * i + 0.01 * rng.normal(size=seeds)),
                list((1.5 if i < 10 else 2.5) + 0.02 * rng.normal(size=seeds)))
        for i in range(12)
    ]  # fmt: skip
    figure = pareto(settings, "MACs")
    assert len(figure.axes) == 2, "what is far above has a panel of its own"
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    assert len(boxes) == 12
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
