"""from_pyro_svi: any model and guide in ArviZ's groups, every number held against one by hand."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import build, text
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.optim import Adam
from torch import Tensor

import pyro_meta
from pyro_meta import UsageError, from_pyro_svi
from pyro_meta.analysis import arviz_versions

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(sigma: Tensor, y: Tensor) -> None:
    """The eight schools, as Pyro's own example has them, not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.fixture(scope="module")
def fitted() -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoNormal(schools)
    svi = SVI(schools, guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(50):
        svi.step(ERRORS, EFFECTS)
    names = [f"school {index}" for index in "ABCDEFGH"]
    data = from_pyro_svi(
        schools, guide, ERRORS, EFFECTS, num_samples=60, coords={"school": names},
        constant_data={"sigma": ERRORS}, dims={"sigma": ["school"]},
    )  # fmt: skip
    return guide, data


def of(data: Any, group: str, name: str) -> np.ndarray:
    """Values of a variable, the chain left out where there is one."""
    values = data[group][name]
    assert values.dtype.kind == "f"
    return np.asarray(values.values[0] if "chain" in values.dims else values.values)


def test_every_group_is_there_and_plates_name_the_dimensions(fitted: Any) -> None:
    data = fitted[1]
    groups = {
        "posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood",
        "log_prior", "sample_stats", "observed_data", "constant_data",
    }  # fmt: skip
    assert {str(one).strip("/") for one in data.groups()} - {""} == groups
    for group in ("posterior", "prior"):
        assert data[group]["theta"].dims == ("chain", "draw", "school")
        assert set(data[group].data_vars) == {"mu", "tau", "eta", "theta"}
        assert data[group].attrs["inference_library"] == "pyro"
    assert data["posterior"]["school"].values[0] == "school A"
    assert data["observed_data"]["y"].dims == ("school",)
    np.testing.assert_array_equal(of(data, "observed_data", "y"), EFFECTS)
    np.testing.assert_array_equal(of(data, "constant_data", "sigma"), ERRORS)
    assert data["log_likelihood"]["y"].shape == (1, 60, 8)
    assert data["log_prior"]["mu"].shape == (1, 60), "the deterministic site has no density"
    assert "theta" not in data["log_prior"]


def test_densities_are_those_by_hand(fitted: Any) -> None:
    guide, data = fitted
    mu, tau, eta, theta = (
        torch.from_numpy(of(data, "posterior", name)) for name in ("mu", "tau", "eta", "theta")
    )
    torch.testing.assert_close(theta, mu[:, None] + tau[:, None] * eta)
    log_prior = {
        "mu": torch.distributions.Normal(0.0, 5.0).log_prob(mu),
        "tau": torch.distributions.HalfCauchy(5.0).log_prob(tau),
        "eta": torch.distributions.Normal(0.0, 1.0).log_prob(eta),
    }
    for name, expected in log_prior.items():
        np.testing.assert_allclose(of(data, "log_prior", name), expected, rtol=1e-4, atol=1e-5)
    log_likelihood = torch.distributions.Normal(theta, ERRORS).log_prob(EFFECTS)
    np.testing.assert_allclose(of(data, "log_likelihood", "y"), log_likelihood, rtol=1e-4)
    lp = log_likelihood.sum(1) + sum(v.reshape(60, -1).sum(1) for v in log_prior.values())
    np.testing.assert_allclose(of(data, "sample_stats", "lp"), lp, rtol=1e-4)
    with torch.no_grad():
        log_guide = torch.zeros(60)
        for name, value in {"mu": mu, "tau": tau.log(), "eta": eta}.items():
            of_site = torch.distributions.Normal(
                getattr(guide.locs, name), getattr(guide.scales, name)
            )
            log_guide += of_site.log_prob(value).reshape(60, -1).sum(1)
        log_guide -= tau.log()  # d tau / d log tau
    np.testing.assert_allclose(of(data, "sample_stats", "log_guide"), log_guide, rtol=1e-3)


def test_predictions_and_priors_are_drawn_from_where_they_say(fitted: Any) -> None:
    data = fitted[1]
    z = (of(data, "posterior_predictive", "y") - of(data, "posterior", "theta")) / ERRORS.numpy()
    assert abs(z.mean()) < 4 / np.sqrt(z.size) and abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)
    z = (of(data, "prior_predictive", "y") - of(data, "prior", "theta")) / ERRORS.numpy()
    assert abs(z.mean()) < 4 / np.sqrt(z.size) and abs(z.std() - 1) < 4 / np.sqrt(2 * z.size)
    mu = of(data, "prior", "mu")
    assert abs(mu.mean()) < 4 * 5 / np.sqrt(60) and abs(mu.std() - 5) < 4 * 5 / np.sqrt(120)


def test_arviz_works_on_it(fitted: Any) -> None:
    data = fitted[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz as az

        table = az.summary(data, var_names=["mu", "theta"], kind="stats")
        assert len(table) == 9
        assert np.isfinite(az.loo(data).elpd_loo)
        sensitivity = arviz_versions.psense(data, "prior", ["mu", "tau"])
    assert {"mu", "tau"} == set(sensitivity) and all(v >= 0 for v in sensitivity.values())


W = 0.25


def conjugate(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(1.0, 2.0))
    with pyro.plate("i", len(y)), poutine.scale(scale=1 / W):
        pyro.sample("y", dist.Normal(z, 3.0), obs=y)


@pytest.mark.usefixtures("double")
def test_a_tempered_likelihood_is_counted_as_the_model_counts_it() -> None:
    """Of the exact tempered posterior log p(y, z) - log q(z) is the same for every z."""
    y = torch.tensor([0.3, -1.2, 2.2])
    precision = 1 / 4 + len(y) / W / 9
    mean = (1 / 4 + float(y.sum()) / W / 9) / precision

    def guide(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(mean, precision**-0.5))

    data = from_pyro_svi(conjugate, guide, y, num_samples=20)
    gap = of(data, "sample_stats", "lp") - of(data, "sample_stats", "log_guide")
    np.testing.assert_allclose(gap, gap[0], rtol=0, atol=1e-10)
    likelihood = data["log_likelihood"]["y"]
    assert likelihood.attrs["scale"] == 1 / W and "scale" not in data["log_prior"]["z"].attrs
    z = of(data, "posterior", "z")
    by_hand = -np.log(3 * np.sqrt(2 * np.pi)) - (y.numpy() - z[:, None]) ** 2 / 18
    np.testing.assert_allclose(likelihood.values[0], by_hand, atol=1e-10)
    lp = of(data, "log_prior", "z") + likelihood.values[0].sum(1) / W
    np.testing.assert_allclose(of(data, "sample_stats", "lp"), lp, atol=1e-10)


def test_events_and_nested_plates_have_dimensions_of_their_own() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("row", 3, dim=-2), pyro.plate("column", 2, dim=-1):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
            pyro.sample("y", dist.Categorical(p), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("row", 3, dim=-2), pyro.plate("column", 2, dim=-1):
            pyro.sample("p", dist.Dirichlet(2 * torch.ones(4)))

    y = torch.randint(4, (3, 2))
    data = from_pyro_svi(model, guide, y, num_samples=5, dims={"p": ["row", "column", "kind"]})
    assert data["posterior"]["p"].dims == ("chain", "draw", "row", "column", "kind")
    assert data["log_prior"]["p"].dims == ("chain", "draw", "row", "column")
    assert data["posterior_predictive"]["y"].shape == (1, 5, 3, 2)
    plain = from_pyro_svi(model, guide, y, num_samples=5)
    assert plain["posterior"]["p"].dims[2:] == ("row", "column", "p_dim_2")


def subsampled(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("i", len(y), subsample_size=2) as some:
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[some])


def of_z(y: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def of_nothing(y: Tensor) -> None:
    pass


@pytest.mark.parametrize(
    ("model", "guide", "options", "said"),
    [
        (subsampled, of_z, {}, "plate i: 2 of 5 are subsampled"),
        (conjugate, of_nothing, {}, "site z: the model samples it and the guide does not"),
        (conjugate, of_z, {"num_samples": 0}, "num_samples: 0 given"),
        (conjugate, of_z, {"dims": {"y": []}}, "dims: y has 1 dimensions, and 0 are named"),
        (conjugate, of_z, {"coords": {"i": ["a"]}}, "coords: i has 1 names, and is 5 long"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    model: Callable[..., None], guide: Callable[..., None], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        from_pyro_svi(model, guide, torch.zeros(5), **({"num_samples": 2} | options))


def test_a_guide_of_points_has_the_same_draw_each_time() -> None:
    guide = AutoDelta(conjugate)
    data = from_pyro_svi(conjugate, guide, torch.zeros(4), num_samples=3)
    assert np.ptp(of(data, "posterior", "z")) == 0 and np.ptp(of(data, "prior", "z")) > 0


def test_our_own_model_of_text() -> None:
    """Routes have plates of sequences and positions; compute is a factor, and counts in lp."""
    model, guide = build(pyro_meta.LoadCategorical, pyro_meta.CategoricalGuide)
    model.temperature = 0.5
    model.eval(), guide.eval()
    x, y = text(2, 6)
    data = from_pyro_svi(model, guide, x, y, num_samples=4)
    posterior = data["posterior"]
    assert posterior["route_1"].dims[2:4] == ("sequence", "position")
    assert posterior["route_1"].shape == (1, 4, 2, 6, 3) and posterior["load_0"].shape == (1, 4, 3)
    assert data["posterior_predictive"]["next_token"].shape == (1, 4, 2, 6)
    assert data["log_likelihood"]["next_token"].attrs["scale"] == 2.0
    for draw in range(4):
        routes = [torch.from_numpy(posterior[f"route_{i}"].values[0, draw]) for i in range(2)]
        loads = [torch.from_numpy(posterior[f"load_{i}"].values[0, draw]) for i in range(2)]
        condition = {f"route_{i}": routes[i] for i in range(2)} | {
            f"load_{i}": loads[i] for i in range(2)
        }
        with torch.no_grad():
            trace = poutine.trace(poutine.condition(model, condition)).get_trace(x, y)
        expected = float(trace.log_prob_sum())
        assert of(data, "sample_stats", "lp")[draw] == pytest.approx(expected, rel=1e-5)
        logits = trace.nodes["next_token"]["fn"].logits.log_softmax(-1)
        by_hand = logits.gather(-1, y[..., None])[..., 0]
        np.testing.assert_allclose(
            data["log_likelihood"]["next_token"].values[0, draw], by_hand, rtol=1e-4
        )
