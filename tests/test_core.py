"""What the model means: temperature, what is executed, leading dimensions, prices."""

import copy
import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from conftest import PAIRS, build, text
from conjugate import Choosing, K, conjugate
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights
from slow import all_but, long
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from pyro_meta import (
    CategoricalGuide,
    Choice,
    CostCategorical,
    CostDirichlet,
    DirichletGuide,
    Guide,
    LanguageModel,
    LayersGuide,
    LoadCategorical,
    LoadDirichlet,
    LoadGuide,
    LoadPrior,
    PeriodicGuide,
    PointGuide,
    Prior,
    RouteELBO,
    Shape,
    SymmetricDirichlet,
    UsageError,
)
from pyro_meta.distributions import RouteExecution
from pyro_meta.inference.elbo import Objective
from pyro_meta.models import ComputePotential
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision
from pyro_meta.network.transformer import Transformer
from pyro_meta.training.config import Config

SHAPE = Shape(vocabulary=13, context=24, width=16, layers=2, heads=2, window=5)

ELBOS = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, RenyiELBO]
LEARNING = [
    (prior, guide)
    for prior, guide in PAIRS
    if guide in (DirichletGuide, CategoricalGuide, LoadGuide, PointGuide)
]


# -- one temperature -------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("w", [0.1, *long(1.0)])
def test_nuts_finds_the_tempered_posterior(w: float) -> None:
    """Of y ~ Categorical(alpha) and alpha ~ Dirichlet(1): (1 + 1 / w) / (3 + 1 / w)."""
    network = Choosing()
    model = LanguageModel(network, SymmetricDirichlet(network))  # type: ignore[arg-type]
    model.temperature = w
    tokens, targets = torch.tensor([[0]]), torch.tensor([[1]])
    pyro.set_rng_seed(0)
    chain = MCMC(NUTS(model), num_samples=400, warmup_steps=150, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain.run(tokens, targets)
    route = chain.get_samples()["route_0"][:, 0, 0]
    exact = Dirichlet(torch.tensor([1.0, 1 + 1 / w, 1.0]))
    error = 4 * exact.stddev[1] / math.sqrt(100)  # draws of a chain are alike
    assert float(route.mean(0)[1]) == pytest.approx(float(exact.mean[1]), abs=float(error))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("w", [0.1, 0.5, 1.0])
def test_importance_weights_and_renyi_agree_with_the_same_target(w: float) -> None:
    """With the exact tempered posterior for a guide every weight is the evidence itself."""
    guide, tokens, targets = conjugate(2, 5, w)
    guide.model.temperature = w
    exact = guide.exact(targets)
    prior = torch.ones(K)
    log_evidence = float(
        (_log_beta(exact) - _log_beta(prior)).sum()  # E_p[alpha_y^(1/w)], token by token
    )
    weights, *_ = vectorized_importance_weights(
        guide.model, guide, tokens, targets, num_samples=7, max_plate_nesting=2, normalized=False
    )
    expected = torch.full((7,), log_evidence)
    torch.testing.assert_close(weights.detach(), expected, rtol=1e-8, atol=1e-8)
    for alpha in (0.0, 0.5, 2.0):
        loss = RenyiELBO(alpha=alpha, num_particles=3).loss(guide.model, guide, tokens, targets)
        assert loss == pytest.approx(-log_evidence, rel=1e-8)
    assert Trace_ELBO().loss(guide.model, guide, tokens, targets) == pytest.approx(-log_evidence)


def _log_beta(a: Tensor) -> Tensor:
    return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))


# -- what is executed --------------------------------------------------------------------------


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize(("prior", "guide"), PAIRS)
@pytest.mark.parametrize("threshold", [*long(0.0), 0.5, *long(1.0)])
def test_every_stock_elbo_is_finite(
    elbo: Any, prior: type[Prior], guide: type[Guide], threshold: float
) -> None:
    model, built = build(prior=prior, guide=guide)
    built.harden_below(threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = elbo(num_particles=2).loss_and_grads(model, built, *text(batch=2, length=9))
    gradients = [one.grad for part in (model, built) for one in part.parameters()]
    assert math.isfinite(loss)
    assert any(one is not None for one in gradients)
    assert all(one is None or bool(torch.isfinite(one).all()) for one in gradients)


@pytest.mark.parametrize("prior", [CostDirichlet, LoadDirichlet, CostCategorical, LoadCategorical])
def test_what_is_executed_is_a_function_of_the_draw(prior: type[Prior]) -> None:
    guide = CategoricalGuide if prior.of_choices else DirichletGuide
    model, built = build(prior=prior, guide=guide)
    tokens, _ = text()
    for threshold in (0.0, 0.6, 1.0):
        built.harden_below(threshold)
        trace = poutine.trace(model).get_trace(tokens)
        for layer in range(2):
            draw = trace.nodes[f"route_{layer}"]["value"]
            runs = trace.nodes[f"executed_{layer}"]["value"]
            assert torch.equal(runs, model.execution(draw))
        drawn = Predictive(model, guide=built, num_samples=6)(tokens)
        assert len(drawn["route_0"].unique(dim=0)) == 6, "draws vary"
        if threshold == 1.0:
            assert set(drawn["executed_1"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("prior", [CostDirichlet, LoadDirichlet, CostCategorical, LoadCategorical])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_hard_route_can_be_scored(prior: type[Prior], threshold: float) -> None:
    model, _ = build(prior=prior, guide=CategoricalGuide if prior.of_choices else DirichletGuide)
    model.harden_below(threshold)
    tokens, targets = text()
    vertices = {f"route_{layer}": torch.eye(3)[torch.randint(3, (3, 20))] for layer in range(2)}
    conditioned = poutine.condition(model, data=vertices)
    trace = poutine.trace(conditioned).get_trace(tokens, targets)
    assert math.isfinite(float(trace.log_prob_sum().detach()))
    for name, vertex in vertices.items():
        assert torch.equal(trace.nodes[name.replace("route", "executed")]["value"], vertex)


def test_a_resting_guide_runs_along_its_means() -> None:
    """And its sites are draws all the same."""
    _, guide = build()
    guide.harden_below(1.0)
    guide.is_resting = True
    trace = poutine.trace(guide).get_trace(*text())
    walked = trace.nodes["_RETURN"]["value"]
    for layer, decision in enumerate(walked.decisions):
        mean = walked.posteriors[layer].route.mean
        assert torch.equal(decision.route, mean.argmax(-1))
        drawn = trace.nodes[f"route_{layer}"]["value"]
        assert not torch.equal(drawn, torch.eye(3)[decision.route])


# -- leading dimensions ----------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("prior", "guide"), LEARNING)
def test_particles_side_by_side_are_particles_one_by_one(
    prior: type[Prior], guide: type[Guide], groups: int
) -> None:
    """Each vectorised particle has the log density that it has alone, in model and guide."""
    model, built = build(prior=prior, guide=guide, groups=groups)
    model.temperature, S = 0.3, 4
    built.harden_below(0.7)
    data = text(batch=2, length=7)
    nesting = 2 if groups == 1 else 3
    with pyro.plate("particles", S, dim=-nesting - 1):
        wide_q = poutine.trace(built).get_trace(*data)
        wide_p = poutine.trace(poutine.replay(model, trace=wide_q)).get_trace(*data)
    for trace in (wide_p, wide_q):
        trace.compute_log_prob()
    sites = [name for name, node in wide_q.nodes.items() if node["type"] == "sample"]
    latents = [name for name in sites if name.startswith(("route", "load"))]
    for particle in range(S):
        values = {name: wide_q.nodes[name]["value"][particle] for name in latents}
        alone_q = poutine.trace(poutine.condition(built, data=values)).get_trace(*data)
        alone_p = poutine.trace(poutine.condition(model, data=values)).get_trace(*data)
        for wide, alone in ((wide_q, alone_q), (wide_p, alone_p)):
            alone.compute_log_prob()
            for name in (*latents, "next_token", "compute_1"):
                if name in wide:
                    found = wide.nodes[name]["log_prob"]
                    found = found.expand(S, *found.shape[1:])[particle]
                    expected = alone.nodes[name]["log_prob"].expand_as(found)
                    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("groups", [*long(1), 2])
@pytest.mark.parametrize("elbo", all_but([TraceMeanField_ELBO, RenyiELBO], ELBOS))
def test_vectorised_losses_are_those_one_by_one(elbo: Any, groups: int) -> None:
    """To the last digits where nothing is random, and in the mean where something is."""
    nesting = 2 if groups == 1 else 3

    def loss(model: LanguageModel, guide: Guide, vectorised: bool, particles: int = 3) -> float:
        made = elbo(
            num_particles=particles, vectorize_particles=vectorised, max_plate_nesting=nesting
        )
        found: float = made.loss(model, guide, *text(batch=2, length=7))
        return found

    model, point = build(guide=PointGuide, groups=groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = loss(model, point, False), loss(model, point, True)
        assert one == pytest.approx(other, rel=1e-9)
        model, guide = build(groups=groups)
        with torch.no_grad():
            found = torch.tensor(
                [[loss(model, guide, how, 4) for _ in range(60)] for how in (False, True)]
            )
    error = (found.var(1) / 60).sum().sqrt()
    assert abs(float(found[0].mean() - found[1].mean())) < 4 * float(error)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("prior", "guide"), LEARNING)
def test_what_vectorises_runs(prior: type[Prior], guide: type[Guide], groups: int) -> None:
    model, built = build(prior=prior, guide=guide, groups=groups)
    data, nesting = text(batch=2, length=7), 2 if groups == 1 else 3
    of_groups = () if groups == 1 else (groups,)
    drawn = Predictive(model, guide=built, num_samples=5, parallel=True)(data[0])
    assert drawn["route_1"].shape == (5, 2, 7, *of_groups, 3)
    assert drawn["executed_1"].shape == (5, 2, 7, *of_groups, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        k_hat = psis_diagnostic(
            model, built, *data, num_particles=50, max_simultaneous_particles=25,
            max_plate_nesting=nesting,
        )  # fmt: skip
        loss = ReweightedWakeSleep(
            num_particles=3, vectorize_particles=True, max_plate_nesting=nesting
        ).loss(model, built, *data)
    assert isinstance(k_hat, float)
    assert all(math.isfinite(float(part)) for part in (loss if isinstance(loss, tuple) else [loss]))


# -- choices, loads and prices -----------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rate", [0.0, 3.0, 24.0])
def test_the_kl_of_a_choice_is_its_cost_less_its_entropy(rate: float, groups: int) -> None:
    """KL = lambda E_q[c] - H(q) + log sum_k exp(-lambda c_k), in the objective of training."""
    model, guide = build(guide=CategoricalGuide, groups=groups)
    model.prior.rate = rate  # type: ignore[assignment]
    tokens, targets = text()
    with torch.no_grad():
        terms = Objective(model, guide)(tokens, targets)
    costs = model.prior.costs(torch.arange(20))  # type: ignore[operator]
    costs = costs if groups == 1 else costs[:, None] / groups
    q = terms.means  # [L, B, T, K] or [L, B, T, G, K]
    paid = rate * (q * costs).sum(-1) - torch.special.entr(q).sum(-1)
    expected = paid + (-rate * costs).logsumexp(-1)
    if groups > 1:
        expected = expected.sum(-1)
    torch.testing.assert_close(terms.kl, expected.mean((1, 2)), rtol=1e-9, atol=1e-9)


def decided(model: LanguageModel, name: str) -> Guide:
    """A guide that is all but sure of one mechanism."""
    guide = LoadGuide(model, total=800.0) if not model.prior.of_choices else LoadGuide(model)
    index = model.network.mechanism_names.index(name)
    with torch.no_grad():
        guide.outputs[..., :3] = 30.0 * torch.eye(3)[index]
    return guide


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rate", [1.0, 3.0, 6.0, 12.0, 24.0])
@pytest.mark.parametrize("prior", [LoadDirichlet, LoadCategorical, CostCategorical, CostDirichlet])
def test_lambda_is_a_price(prior: type[Prior], rate: float) -> None:
    """A decided token pays lambda times the difference in cost, in any prior with a potential."""
    network = build(layers=1)[0].network
    model = LanguageModel(network, prior(network))
    if not isinstance(model.prior, LoadPrior):
        model.compute = ComputePotential(network, "macs")
    if prior is CostCategorical:
        model.prior.rate, rate_of_potential = rate, 0.0  # type: ignore[assignment]
    else:
        rate_of_potential = rate
    model.compute.rate.fill_(rate_of_potential)  # type: ignore[union-attr]
    tokens, targets = text(batch=40)
    paid = {}
    for name in ("full", "window"):
        torch.manual_seed(3)
        with torch.no_grad():
            terms = Objective(model, decided(model, name))(tokens, targets)
        paid[name] = float((terms.kl if prior is CostCategorical else terms.compute).sum())
    costs = model.compute.costs(torch.arange(20)).mean(0)  # type: ignore[union-attr]
    expected = rate * float(costs[0] - costs[1])
    assert paid["full"] - paid["window"] == pytest.approx(expected, rel=0.02)


@pytest.mark.usefixtures("double")
def test_a_learned_load_cannot_undo_the_price() -> None:
    """Where a token's loss does not depend on its route, loads learned at a price are cheap."""
    for prior, guide in ((LoadCategorical, CategoricalGuide), (LoadDirichlet, DirichletGuide)):
        torch.manual_seed(0)
        model, built = build(prior=prior, guide=guide, layers=1)
        model.network.requires_grad_(False)
        model.network.readout.weight.zero_()
        tokens, targets = text(batch=16)
        optimiser = torch.optim.Adam(built.parameters(), lr=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            Objective(model, built)(tokens, targets).loss.backward()
            optimiser.step()
        with torch.no_grad():
            means = Objective(model, built)(tokens, targets).means.mean((0, 1, 2))
        costs = model.compute.costs(torch.arange(20)).mean(0)  # type: ignore[union-attr]
        assert int(means.argmax()) == int(costs.argmin())
        load = built.load(0)
        assert load is not None and int(load.argmax()) == int(costs.argmin())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("groups", [1, 2])
def test_the_objective_with_loads_is_written_out(groups: int) -> None:
    """nll + w (KL of routes given the load + its share of KL of the loads + lambda alpha c)."""
    model, guide = build(prior=LoadDirichlet, groups=groups)
    model.temperature, model.text_tokens = 0.3, 600
    tokens, targets = text()
    trace = poutine.trace(guide).get_trace(tokens, targets)
    walked = trace.nodes["_RETURN"]["value"]
    kl, load_kl, compute = 0.0, 0.0, 0.0
    costs = model.compute.costs(torch.arange(20))  # type: ignore[union-attr]
    costs = costs if groups == 1 else costs[:, None] / groups
    for layer in range(2):
        load = trace.nodes[f"load_{layer}"]["value"]
        q = walked.posteriors[layer].route.concentration
        p = (0.25 * load + 0.05).expand_as(q)
        kl = kl + kl_divergence(Dirichlet(q), Dirichlet(p)).sum()
        own = guide.load_dist(layer)
        centre = model.load_dist(layer).concentration
        load_kl = load_kl + kl_divergence(Dirichlet(own.concentration), Dirichlet(centre)).sum()  # type: ignore[union-attr]
        compute = compute + 3.0 * (trace.nodes[f"route_{layer}"]["value"] * costs).sum()
    nll = torch.nn.functional.cross_entropy(
        walked.logits.flatten(0, 1), targets.flatten(), reduction="sum"
    )
    expected = (nll + 0.3 * (kl + load_kl * 60 / 600 + compute)) / 60
    replayed = poutine.replay(guide, trace=trace)
    terms = RouteELBO().terms(model, replayed, tokens, targets)  # type: ignore[arg-type]
    torch.testing.assert_close(terms.loss, expected, rtol=1e-9, atol=1e-9)


def test_families_that_do_not_go_together_are_refused() -> None:
    for prior, guide in ((CostDirichlet, CategoricalGuide), (LoadCategorical, DirichletGuide)):
        with pytest.raises(UsageError, match=r"infers .* and .* is a prior of"):
            build(prior=prior, guide=guide)


def test_the_static_split_is_one_route_for_each_layer_and_group() -> None:
    for prior in (CostDirichlet, LoadCategorical):
        for groups in (1, 2):
            model, guide = build(prior=prior, guide=LoadGuide, groups=groups, layers=3)
            assert isinstance(guide, LoadGuide)
            with torch.no_grad():
                guide.outputs.normal_()
            terms = Objective(model, guide)(*text())
            flat = terms.means.flatten(1, 2)  # [L, B T, ..]
            assert torch.equal(flat, flat[:, :1].expand_as(flat))
            if groups > 1:
                assert not torch.equal(terms.means[..., 0, :], terms.means[..., 1, :])


def test_periodic_layers() -> None:
    _, guide = build(guide=PeriodicGuide, layers=4)
    assert guide.loads.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]  # type: ignore[union-attr]
    model, _ = build(layers=5)
    assert PeriodicGuide(model, every=4).loads[:, 0].tolist() == [0, 0, 0, 1, 0]
    with pytest.raises(UsageError, match=r"guide\.every: 0 given"):
        PeriodicGuide(model, every=0)
    with pytest.raises(UsageError, match="needs the mechanism window"):
        build(guide=PeriodicGuide, mechanisms=("full", "linear"))
    assert LayersGuide(model, [4, 0]).loads[:, 0].tolist() == [1, 0, 0, 0, 1]
    assert not LayersGuide(model).loads[:, 0].any()
    for beyond in (-1, 5):
        with pytest.raises(UsageError, match=rf"guide\.full: {beyond} given; 0 to 4 are"):
            LayersGuide(model, [beyond])


def test_a_choice_of_what_is_not_a_number_is_drawn_as_such() -> None:
    """So that a loss that is not finite is found by training, and raises nothing here."""
    with pyro.validation_enabled(False):  # as in training
        dist = Choice(logits=torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    for draw in (dist.rsample(torch.Size([5])), dist.sample(torch.Size([5]))):
        assert set(draw[:, 0].unique().tolist()) <= {0.0, 1.0}
        assert bool(draw[:, 1].isnan().all())


# -- what stands around it -------------------------------------------------------------------------


@pytest.mark.parametrize("price", [0.7, 300.0, 1e6, 3e38])
def test_a_high_price_of_hard_routes_never_turns_dear(price: float) -> None:
    execution = RouteExecution(torch.tensor([1.0, 0.12, 0.06]))
    execution.price.fill_(price)
    means = torch.softmax(3 * torch.randn(200, 3), -1)
    decided = execution.decide(means)
    dearer = execution.costs - execution.costs.min()
    wanted = (means.double().log() - price * dearer.double()).argmax(-1)
    assert torch.equal(decided, wanted)
    if price > 100:
        assert (decided == 2).all()


def test_an_object_can_be_made_again_of_its_arguments() -> None:
    class Own(LoadCategorical):
        def __init__(self, network: Network, *rest: int, **more: Any) -> None:
            super().__init__(network, **more)

    network = Transformer(SHAPE)
    made = Own(network, rate=9.0)
    assert made.arguments == {"rate": 9.0}
    again = Own(network, **made.arguments)
    assert again.rate == 9.0 and copy.deepcopy(again).arguments == made.arguments
    assert Own(network, 4).arguments == {"*rest": [4]}
    assert LoadCategorical(network, 5.0).arguments == {"rate": 5.0}


def test_the_family_of_a_partial_is_that_of_its_class() -> None:
    model, guide = Config(prior=partial(CostDirichlet, rate=3.0)).build(13)
    assert isinstance(model.prior, CostDirichlet) and isinstance(guide, DirichletGuide)


def test_weights_of_all_groups_are_not_taken_for_weights_by_group() -> None:
    """Where a text is as long as there are groups, both would have the same shape."""
    network = Transformer(replace(SHAPE, groups=2))
    weights = torch.full((3, 2, 3), 1 / 3)
    with pytest.raises(ValueError, match="or broadcastable"):
        network(torch.randint(5, (3, 2)), lambda *asked: Decision(weights))
    network(torch.randint(5, (3, 2)), lambda *asked: Decision(weights[:, :, None]))
