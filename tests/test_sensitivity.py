"""Power-scaling, and what ArviZ draws of a run, against slow recomputation; without torch.

Runs with ArviZ 0.23 and 1.x alike: see `make analysis`.
"""

import importlib
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pyro_meta.analysis import arviz_versions, sensitivity
from pyro_meta.analysis.arviz_groups import dataset, of_predictions, of_shares
from pyro_meta.analysis.plots import by_arviz
from pyro_meta.analysis.plots.power_scaling import power_scaling
from pyro_meta.analysis.plots.style import as_data_uri, styled
from pyro_meta.analysis.posterior_file import LAYOUT, PosteriorWriter
from pyro_meta.analysis.sensitivity import Reaction, Sensitivity, power_scaled, verdict

S, L, T, K, TEXTS = 100, 2, 12, 3, 3


def reading(rng: np.random.Generator, **given: Any) -> Any:
    """A run of three short texts, of choices."""
    tokens = T * TEXTS
    draws = np.eye(K)[rng.integers(K, size=(S, L, tokens))].astype(np.float32)
    of_run: dict[str, Any] = {
        "draws": draws,
        "prior_draw_shares": rng.dirichlet(np.ones(K), (S, L)),
        "log_prior": rng.normal(size=(S, TEXTS)),
        "log_likelihood": rng.normal(size=(S, TEXTS)),
        "sequence": np.repeat(np.arange(TEXTS), T),
        "costs": np.tile([1.0, 0.3, 0.1], (tokens, 1)),
        "rows": list(range(L)),
        "layer_names": [f"layer {row}" for row in range(L)],
        "mechanisms": ["full", "window", "linear"],
        "kl_weight": 0.5,
        "ids": rng.integers(5, size=200),
        "targets": rng.integers(5, size=tokens),
        "predicted": rng.integers(5, size=(S, tokens)),
    }
    return SimpleNamespace(**(of_run | given))


# -- the sensitivity itself ----------------------------------------------------------------------


def slow_distance(values: np.ndarray, density: np.ndarray, delta: float) -> float:
    """Kallioinen et al. 2024, equations 4 to 6, point by point, without smoothing of weights."""

    def cjs(x: np.ndarray, weights: np.ndarray) -> float:
        ends = np.sort(x)
        total, mass = 0.0, 0.0
        for low, high in pairwise(ends):
            if high == low:
                continue
            P, Q = (x <= low).mean(), weights[x <= low].sum()
            M = (P + Q) / 2
            total += (high - low) * (P * np.log2(P / M) + Q * np.log2(Q / M))
            mass += (high - low) * (P + Q)
        return float(np.sqrt(max(total, 0) / mass))

    moved = []
    for power in (1 / (1 + delta), 1 + delta):
        weights = np.exp((power - 1) * (density - density.max()))
        weights /= weights.sum()
        moved.append(max(cjs(x, weights) for x in (values, -values)))
    return sum(moved) / (2 * np.log2(1 + delta))


@pytest.mark.parametrize("component", ["prior", "likelihood"])
def test_sensitivity_is_the_distance_by_hand(component: str) -> None:
    rng = np.random.default_rng(0)
    z, u = rng.normal(size=(2, S))
    density = 2 * z + rng.normal(size=S)
    groups = {
        "posterior": dataset({"z": z, "zu": np.stack([z, u], 1)}, {"zu": ("which",)}),
        f"log_{component}": dataset({"a": density / 2, "b": density[:, None] / 2}, {"b": ("i",)}),
    }
    data = arviz_versions.from_datasets(groups, {"guide": "a guide"})
    found = arviz_versions.psense(data, component, ["z", "zu"], 0.01)
    assert found["z"] == pytest.approx(slow_distance(z, density, 0.01), rel=0.02)
    assert found["zu"][0] == pytest.approx(float(found["z"]))
    assert found["zu"][1] == pytest.approx(slow_distance(u, density, 0.01), rel=0.05)
    assert data["posterior"].attrs["guide"] == "a guide"
    alone = arviz_versions.psense(data, component, ["z"], 0.01)
    assert alone["z"] == pytest.approx(float(found["z"])), "one variable alone is no special case"


def test_shares_and_cost_of_each_text_are_scaled_by_its_own_densities() -> None:
    rng = np.random.default_rng(1)
    run = reading(rng)
    found = power_scaled(run)
    assert found is not None and found.texts == TEXTS and found.rows == [0, 1]
    for component, densities in (
        ("prior", run.log_prior),
        ("likelihood", run.log_likelihood / run.kl_weight),
    ):
        for text in range(TEXTS):
            of_text = run.draws[:, :, text * T : (text + 1) * T].astype(float)
            density = densities[:, text]
            delta = sensitivity.step(density)
            assert delta * density.std() <= sensitivity.MOST_MOVED + 1e-12
            for layer in range(L):
                by_hand = [
                    slow_distance(of_text[:, layer, :, k].mean(1), density, delta) for k in range(K)
                ]
                moved = found.of[component].share[text, layer]
                assert moved == pytest.approx(max(by_hand), rel=0.2), "up to smoothing"
            cost = (of_text @ [1.0, 0.3, 0.1]).mean((1, 2))
            assert found.of[component].cost[text] == pytest.approx(
                slow_distance(cost, density, delta), rel=0.2
            )
    told = found.to_json()
    assert told["prior"]["load_by_layer"] == pytest.approx(found.of["prior"].share.mean(0))


def test_what_drives_the_shares_is_told_from_what_does_not() -> None:
    """Texts whose likelihood asks for `full`, and whose prior is noise that nothing follows."""
    rng = np.random.default_rng(2)
    run = reading(rng)
    full = run.draws[..., 0].reshape(S, L, TEXTS, T).mean((1, 3))  # [S, texts]
    run.log_likelihood = 40 * full
    found = power_scaled(run)
    assert found is not None
    assert found.of["likelihood"].reacts == [True, True]
    assert True not in found.of["prior"].reacts
    run.log_likelihood, run.log_prior = run.log_prior, run.log_likelihood
    found = power_scaled(run)
    assert found is not None and found.of["prior"].reacts == [True, True]


def test_what_has_no_density_or_does_not_vary_is_left_out() -> None:
    rng = np.random.default_rng(3)
    assert power_scaled(reading(rng, log_prior=np.full((S, TEXTS), np.nan))) is None
    assert power_scaled(reading(rng, draws=np.tile(np.eye(K)[0], (S, L, T * TEXTS, 1)))) is None
    few = reading(rng)
    few.draws, few.log_prior = few.draws[:10], few.log_prior[:10]
    assert power_scaled(few) is None
    fixed = reading(rng)
    fixed.draws[:, 0] = np.eye(K)[0]
    found = power_scaled(fixed)
    assert found is not None and np.isnan(found.of["prior"].by_layer[0])
    assert found.of["prior"].reacts[0] is None
    assert verdict(None)[0] == "does not apply"


def told(prior: list[float], likelihood: list[float]) -> str:
    """The answer for distances by layer, where chance would move loads by .2."""
    of = {
        name: Reaction(np.array([moved]), np.full(len(moved), 0.2), np.array([0.1]), 0.1)
        for name, moved in (("prior", prior), ("likelihood", likelihood))
    }
    return verdict(Sensitivity(list(range(len(prior))), 1, of))[0]


def test_the_verdict_has_three_states() -> None:
    assert told([0.01, 0.01], [1.0, 1.0]) == "yes"
    assert told([1.0, 0.01], [1.0, 1.0]) == "yes", "both pull"
    assert told([0.01, 0.01], [1.0, 0.01]) == "yes", "nothing moves the second layer"
    assert told([0.01, 1.0], [1.0, 0.01]) == "no", "the prior alone decides the second"
    assert told([0.01, 1.0], [1.0, 0.1]) == "undecided", "chance might have done it"
    assert told([0.01], [0.01]) == "undecided"


def test_points_are_the_numbers() -> None:
    run = reading(np.random.default_rng(4))
    found = power_scaled(run)
    assert found is not None
    axes = power_scaling(run, found).axes[0]
    shown = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    expected = [moved for name in found.of for moved in found.of[name].by_layer]
    assert np.concatenate(shown) == pytest.approx(expected)


# -- what ArviZ draws ----------------------------------------------------------------------------


def test_ranks_are_by_frequency_and_chance_decides_among_equals() -> None:
    rng = np.random.default_rng(5)
    run = reading(rng, ids=np.repeat([3, 0, 4, 1, 2], [50, 40, 30, 20, 10]))
    data = of_predictions(run)
    rank = {3: 0, 0: 1, 4: 2, 1: 3, 2: 4}
    for group, ids in (("observed_data", run.targets), ("posterior_predictive", run.predicted)):
        found = np.squeeze(data[group]["rank"].values)
        assert [rank[one] for one in ids.ravel()] == np.floor(found).astype(int).ravel().tolist()
    values = by_arviz.pit_values(run)
    came = data["observed_data"]["rank"].values
    drawn = data["posterior_predictive"]["rank"].values[0]
    by_hand = [np.mean([draw <= came[m] for draw in drawn[:, m]]) for m in range(len(came))]
    assert values == pytest.approx(by_hand)


def test_predictions_from_the_truth_have_level_ranks() -> None:
    rng = np.random.default_rng(6)
    p = rng.dirichlet(np.ones(5), T * TEXTS * 10)
    drawn = np.array([rng.choice(5, S + 1, p=row) for row in p]).T
    values = by_arviz.pit_values(reading(rng, targets=drawn[0], predicted=drawn[1:]))
    z = (values.mean() - 0.5) / np.sqrt(1 / 12 / len(values))
    assert abs(z) < 4
    assert abs(values.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / len(values))


def test_shares_are_those_of_each_draw() -> None:
    run = reading(np.random.default_rng(7))
    data = of_shares(run, [1], [0, 2], str.upper)
    posterior = data["posterior"]["share"]
    assert posterior.dims == ("chain", "draw", "layer", "mechanism")
    assert list(posterior["mechanism"].values) == ["FULL", "LINEAR"]
    for draw in (0, 57):
        by_hand = np.mean([run.draws[draw, 1, t] for t in range(T * TEXTS)], axis=0)[[0, 2]]
        assert posterior.values[0, draw, 0] == pytest.approx(by_hand)
    assert data["prior"]["share"].values[0, 3, 0] == pytest.approx(
        run.prior_draw_shares[3, 1, [0, 2]]
    )


@pytest.mark.parametrize(
    "draw",
    [
        by_arviz.shares_of_draws,
        by_arviz.prior_and_posterior,
        by_arviz.predictive_check,
        by_arviz.pit,
    ],
)
def test_arviz_draws_it_without_a_window(draw: Any) -> None:
    from matplotlib import pyplot

    open_before = pyplot.get_fignums()
    with styled():
        figure = draw(reading(np.random.default_rng(8)))
        uri = as_data_uri(figure)
    assert figure.axes and uri.startswith("data:image/svg+xml;base64,")
    assert any(axes.lines or axes.collections for axes in figure.axes)
    assert all(len(axes.get_xlabel()) < 40 for axes in figure.axes), "no list of values"
    assert pyplot.get_fignums() == open_before


def test_layers_without_a_share_that_varies_are_not_compared() -> None:
    run = reading(np.random.default_rng(9))
    run.draws[:, 0] = np.eye(K)[1]
    assert by_arviz.compared_rows(run) == [1]


def test_groups_are_those_of_the_installed_arviz() -> None:
    data = arviz_versions.from_datasets({"posterior": xr.Dataset({"z": ("draw", [1.0])})}, {})
    kind = type(data).__name__
    assert kind == ("InferenceData" if arviz_versions.IS_LEGACY else "DataTree")


def test_the_file_opens_in_the_installed_arviz(tmp_path: Path) -> None:
    """Its groups are the schema's, and its draws are weighed as they are."""
    rng = np.random.default_rng(10)
    path, sizes = tmp_path / "posterior.nc", {"chain": 1, "draw": S, "layer": L, "group": 2}
    load = rng.dirichlet(np.ones(K), (1, S, L, 2))
    names = ["full", "window", "linear"]
    with PosteriorWriter(path, sizes | {"block_draw": 4}, names, {"seed": 3}, True) as out:
        out.put("posterior", "load", load)
        out.put("log_prior", "load", 3 * load[..., 0])
        zeros = np.zeros((1, S, L, 2, T))
        out.append("token", {"log_prior": {"route": zeros, "compute": zeros}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        az = importlib.import_module("arviz")
    data = az.from_netcdf(str(path), engine="h5netcdf")
    assert all(data[name].attrs["seed"] == 3 for name in LAYOUT)
    moved = arviz_versions.psense(data, "prior", ["load"])["load"]
    density = 3 * load[0, ..., 0].sum((1, 2))
    by_hand = slow_distance(load[0, :, 1, 0, 0], density, arviz_versions.DELTA)
    assert moved[1, 0, 0] == pytest.approx(by_hand, rel=0.05)
