"""Draws of whole texts and what posterior.nc keeps of them, against Pyro's own densities."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import build, text
from pyro import poutine
from slow import long
from test_depth import gated
from torch import Tensor

import pyro_meta
from pyro_meta import (
    CategoricalGuide,
    CostDirichlet,
    DirichletGuide,
    Guide,
    LanguageModel,
    LoadCategorical,
    LoadDirichlet,
    PointGuide,
)
from pyro_meta.analysis.posterior_file import LAYOUT
from pyro_meta.analysis.reading import Reading
from pyro_meta.analysis.stored_posterior import load
from pyro_meta.data.vocabulary import CharVocabulary
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.posterior.readout import Source, write_posterior
from pyro_meta.posterior.text_draws import (
    Text,
    draw_loads,
    draw_prior,
    draw_text,
    log_density_of_loads,
)
from pyro_meta.training.settings import Readout

T, S, W = 9, 5, 0.2
Pair = tuple[LanguageModel, Guide]
PAIRS: dict[str, Callable[[], Pair]] = {
    "choices": lambda: build(LoadCategorical, CategoricalGuide),
    "choices by group": lambda: build(LoadCategorical, CategoricalGuide, groups=2),
    "weights": lambda: build(CostDirichlet, DirichletGuide),
    "weights around loads, by group": lambda: build(LoadDirichlet, DirichletGuide, groups=2),
    "gates": gated,
}


def routes_of(model: LanguageModel, text: Text, draw: int, layer: int) -> Tensor:
    """A draw of the routes of a layer as the model's site has it: [1, T, K], or [1, T, G, K]."""
    route = text.routes[draw, layer]  # [G, T, K]
    return route[0][None] if model.network.shape.groups == 1 else route.transpose(0, 1)[None]


def by_pyro(
    model: LanguageModel, text: Text, loads: Any, draw: int, x: Tensor, y: Tensor
) -> dict[str, Any]:
    """Every site of the model, held at one draw."""
    layers, G = range(model.network.shape.layers), model.network.shape.groups
    held = {f"route_{layer}": routes_of(model, text, draw, layer) for layer in layers}
    for layer in model.gated:
        gate = text.gates[draw, layer][None]
        held[f"depth_{layer}"] = gate if G == 1 else gate[..., None]
    held |= {f"load_{i}": one[draw, 0] for i, one in enumerate(loads) if one is not None}
    trace = poutine.trace(poutine.condition(model, held)).get_trace(x[None], y[None])
    trace.compute_log_prob()
    return dict(trace.nodes)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_densities_are_those_of_the_model(name: str, threshold: float) -> None:
    torch.manual_seed(3)
    model, guide = PAIRS[name]()
    model.charge_compute()
    if model.compute is not None:
        model.compute.rate.fill_(0.7)
    model.harden_below(threshold)
    (x,), (y,) = text(1, T)
    with evaluating(model, guide):
        loads = draw_loads(guide, S)
        drawn = draw_text(guide, x, y, loads, S, batch=2)
        for draw in range(S):
            sites = by_pyro(model, drawn, loads, draw, x, y)
            likelihood = sites["next_token"]["unscaled_log_prob"].reshape(-1, T)[0]
            if model.network.shape.groups > 1:
                likelihood = sites["next_token"]["unscaled_log_prob"].reshape(T, -1)[:, 0]
            np.testing.assert_allclose(drawn.log_likelihood[draw], likelihood, rtol=1e-4, atol=1e-5)
            for layer in range(model.network.shape.layers):
                for ours, site in (("route", f"route_{layer}"), ("compute", f"compute_{layer}")):
                    expected = sites[site]["unscaled_log_prob"][0]  # [T], or [T, G]
                    of_layer = expected.reshape(T, -1).T
                    np.testing.assert_allclose(
                        drawn.log_prior[ours][draw, layer], of_layer, rtol=2e-3, atol=2e-3
                    )
                if layer in model.gated:
                    expected = sites[f"depth_{layer}"]["unscaled_log_prob"].reshape(T)
                    ours = drawn.log_prior["depth"][draw, layer]
                    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    assert drawn.routes.shape == (S, model.network.shape.layers, model.network.shape.groups, T, 3)
    torch.testing.assert_close(drawn.averaged.sum(-1), torch.ones(T))


def test_what_the_guide_says_of_its_draws() -> None:
    """In the first layer its posterior does not depend on draws."""
    model, guide = build(LoadCategorical, CategoricalGuide, layers=1)
    (x,), (y,) = text(1, T)
    with evaluating(model, guide):
        loads = draw_loads(guide, S)
        drawn = draw_text(guide, x, y, loads, S, batch=3)
        q = pyro_meta.guides.walk(model, guide, x[None], pyro_meta.guides.drawn).posteriors[0].route
        for draw in range(S):
            by_hand = sum(
                float(q.mean[0, t, int(drawn.routes[draw, 0, 0, t].argmax())].log())
                for t in range(T)
            )
            assert float(drawn.log_guide[draw]) == pytest.approx(by_hand, rel=1e-4)
        densities = log_density_of_loads(guide, loads)
    assert densities is not None
    for which, dist in enumerate((model.load_dist(0), guide.load_dist(0))):
        for draw in range(S):
            assert loads[0] is not None and dist is not None
            expected = float(dist.log_prob(loads[0][draw, 0]).detach())
            assert float(densities[which][draw, 0, 0]) == pytest.approx(expected, rel=1e-4)


def test_predictions_are_drawn_as_likely_as_they_are() -> None:
    model, guide = build(CostDirichlet, DirichletGuide)
    (x,), (y,) = text(1, T)
    with evaluating(model, guide):
        drawn = draw_text(guide, x, y, draw_loads(guide, 600), 600, batch=200)
    for t in range(T):
        p = drawn.averaged[t].double()
        share = torch.bincount(drawn.predicted[:, t], minlength=13) / 600
        z = (share - p) / (p * (1 - p) / 600).sqrt()
        assert float(z.abs().max()) < 4.5
    np.testing.assert_allclose(
        drawn.log_likelihood.exp().mean(0), drawn.averaged[torch.arange(T), y], rtol=1e-4
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_draws_of_the_prior_follow_their_loads(groups: int) -> None:
    model, guide = build(LoadCategorical, CategoricalGuide, groups=groups)
    positions = torch.arange(T)
    with evaluating(model, guide):
        loads = draw_loads(guide, 400, from_prior=True)
        routes, gates = draw_prior(model, positions, loads, 400)
    assert routes.shape == (400, 2, groups, T, 3) and (gates == 1).all()
    for layer in range(2):
        of_layer = loads[layer]
        assert of_layer is not None
        mean = of_layer.reshape(400, groups, 3)
        z = (routes[:, layer].mean(2) - mean).sum(0) / (mean * (1 - mean) / T).sum(0).sqrt()
        assert float(z.abs().max()) < 4.5


def test_a_guide_of_points_has_no_density() -> None:
    model, guide = build(CostDirichlet, PointGuide)
    (x,), (y,) = text(1, T)
    with evaluating(model, guide):
        drawn = draw_text(guide, x, y, draw_loads(guide, 2), 2, batch=2)
    assert drawn.log_guide.isnan().all()
    assert not drawn.log_prior["route"].isinf().any()


@pytest.mark.parametrize("name", [*long("choices by group", "weights"), "gates"])
def test_the_file_is_of_one_piece(name: str, tmp_path: Path) -> None:
    """Draws of posterior and prior have the same dimensions, and each number its parts."""
    torch.manual_seed(4)
    model, guide = PAIRS[name]()
    network = model.network
    windows = torch.randint(13, (4, T)), torch.randint(13, (4, T))
    path, source = tmp_path / "posterior.nc", Source("a text", "12ab", "34cd")
    write_posterior(
        path, model, guide, windows, CharVocabulary("abcdefghijklm"), 3, 7, W,
        Readout(draws=6, tokens=2 * T), source,
    )  # fmt: skip
    groups = {name: xr.load_dataset(path, group=name, engine="h5netcdf") for name in LAYOUT}
    for group in groups.values():
        told = group.attrs
        assert told["data"] == "a text" and told["weights_sha256"] == "34cd"
        assert told["seed"] == 7 and told["guide"] == type(guide).__name__
        assert told["inference_library"] == "pyro" and told["kl_weight"] == W
    posterior, prior = groups["posterior"], groups["prior"]
    assert posterior.sizes == prior.sizes and set(posterior) == set(prior)
    L, G = network.shape.layers, network.shape.groups
    assert posterior["route"].shape == (1, 6, L, G, 2 * T, 3)
    assert ("load" in posterior) == model.has_loads
    stats, log_prior = groups["sample_stats"], groups["log_prior"]
    likelihood = groups["log_likelihood"]["next_token"].values[0].sum(-1)
    total = likelihood / W
    for part in log_prior.data_vars.values():
        total = total + part.values[0].reshape(6, -1).sum(1)
    np.testing.assert_allclose(stats["lp"].values[0], total, rtol=1e-4)
    cost = groups["constant_data"]["cost"].values  # [M, K]
    for draw in range(6):
        paid = [
            posterior["route"].values[0, draw, layer, group, t] @ cost[t]
            for layer in range(L) for group in range(G) for t in range(2 * T)
        ]  # fmt: skip
        assert stats["cost"].values[0, draw] == pytest.approx(np.mean(paid), rel=1e-4)
    np.testing.assert_array_equal(groups["observed_data"]["next_token"], windows[1][:2].flatten())
    np.testing.assert_array_equal(groups["constant_data"]["input_token"], windows[0][:2].flatten())
    assert groups["posterior_predictive"]["next_token"].shape == (1, 6, 2 * T)
    np.testing.assert_array_equal(groups["tokens"]["next_token"], windows[1].flatten())

    read = load(path).groups
    np.testing.assert_allclose(read["prior"]["route"], prior["route"].values.mean(4), atol=1e-5)
    np.testing.assert_allclose(
        read["log_prior"]["route"], log_prior["route"].values.sum((2, 3)), rtol=1e-4, atol=1e-4
    )
    if model.has_loads:
        expected = log_prior["load"].values.sum((2, 3))
        np.testing.assert_allclose(read["log_prior"]["load"], expected, rtol=1e-5)


def test_a_reading_sums_what_the_file_holds(read_out: Path) -> None:
    """Sequence by sequence, as a report scales it."""
    reading = Reading.of(read_out)
    stored = {
        name: xr.load_dataset(read_out / "posterior.nc", group=name, engine="h5netcdf")
        for name in ("log_prior", "log_likelihood", "constant_data", "prior", "posterior", "tokens")
    }
    sequence = stored["constant_data"]["sequence"].values
    log_prior, likelihood = stored["log_prior"], stored["log_likelihood"]["next_token"].values[0]
    assert "load" in log_prior and len(np.unique(sequence)) == reading.log_prior.shape[1] > 1
    for draw in (0, 23):
        of_loads = float(log_prior["load"].values[0, draw].sum())
        for row in (0, 3):
            tokens = np.flatnonzero(sequence == row)
            of_routes = sum(
                float(log_prior[name].values[0, draw][..., t].sum())
                for name in ("route", "compute")
                for t in tokens
            )
            assert reading.log_prior[draw, row] == pytest.approx(of_routes + of_loads, rel=1e-4)
            expected = float(likelihood[draw, tokens].sum())
            assert reading.log_likelihood[draw, row] == pytest.approx(expected, rel=1e-4)
        prior = stored["prior"]["route"].values[0, draw, :, 0]
        np.testing.assert_allclose(reading.prior_draw_shares[draw], prior.mean(1), atol=1e-6)
    np.testing.assert_array_equal(reading.draws, stored["posterior"]["route"].values[0, :, :, 0])
    np.testing.assert_array_equal(reading.means, stored["tokens"]["posterior_mean"].values[:, 0])
    np.testing.assert_array_equal(reading.targets, stored["tokens"]["next_token"][: len(sequence)])
