"""Routing statistics by hand, the three collapses, and the file format."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pyro_meta.analysis import _arviz
from pyro_meta.analysis.routing import (
    collapse_verdicts,
    effective_number,
    entropy,
    load,
    routing_information,
    uncertainty_from_draws,
)


def test_entropy_by_hand() -> None:
    assert entropy(np.array([1.0, 0.0])) == 0.0
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(np.log(2))
    assert effective_number(np.full(3, 1 / 3)) == pytest.approx(3)


def test_load_counts_likeliest_mechanisms() -> None:
    means = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
    assert load(means).tolist() == [0.75, 0.25]


def test_information_is_zero_for_a_blind_router_and_log_k_for_a_sharp_one() -> None:
    assert routing_information(np.tile([0.3, 0.7], (9, 1))) == pytest.approx(0)
    assert routing_information(np.eye(4)) == pytest.approx(np.log(4))


def test_uncertainty_splits_into_expected_and_epistemic() -> None:
    decided_but_unknown = np.array([[1.0, 0.0], [0.0, 1.0]])
    parts = uncertainty_from_draws(decided_but_unknown)
    assert parts.total == pytest.approx(np.log(2))
    assert parts.expected == pytest.approx(0)
    known_but_undecided = np.array([[0.5, 0.5], [0.5, 0.5]])
    parts = uncertainty_from_draws(known_but_undecided)
    assert parts.epistemic == pytest.approx(0)


def test_uncertainty_of_dirichlet_draws_agrees_with_the_closed_form() -> None:
    from scipy.special import digamma

    a = np.array([2.0, 1.0, 0.5])
    draws = np.random.default_rng(0).dirichlet(a, 20_000)
    mean = a / a.sum()
    expected = digamma(a.sum() + 1) - (mean * digamma(a + 1)).sum()
    z = (entropy(draws).mean() - expected) / (entropy(draws).std() / np.sqrt(len(draws)))
    assert abs(z) < 4


def healthy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.dirichlet(np.full(3, 0.5), (2, 500)), np.full((2, 500), 0.5)


def collapsed(means: np.ndarray, kl: np.ndarray) -> list[str]:
    return [verdict.name for verdict in collapse_verdicts(means, kl) if verdict.is_collapsed]


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
    assert "is 0 (collapsed below 0.01)" in str(collapse_verdicts(means, np.zeros_like(kl))[0])


def test_groups_survive_the_file(tmp_path: Path) -> None:
    route = xr.DataArray(
        np.random.default_rng(0).random((1, 4, 2, 5, 3), np.float32),
        dims=("chain", "draw", "layer", "token", "mechanism"),
        coords={"mechanism": ["full", "window", "linear"]},
        name="route",
    )
    text = xr.Dataset({"text": ("token", np.array(["a", "\n", "<b>", "ß", ""], dtype=object))})
    path = tmp_path / "posterior.nc"
    _arviz.save({"posterior": route.to_dataset(), "observed_data": text}, path)
    groups = _arviz.load(path)
    np.testing.assert_array_equal(groups["posterior"]["route"].values, route.values)
    assert list(groups["posterior"]["mechanism"].values) == ["full", "window", "linear"]
    assert list(groups["observed_data"]["text"].values) == list(text["text"].values)
    assert [file.name for file in tmp_path.iterdir()] == ["posterior.nc"]


def test_analysis_and_report_import_no_torch() -> None:
    code = "import sys, pyro_meta.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
