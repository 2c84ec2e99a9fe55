"""Depth gates as a latent: prior, guides, objective, runs, against what is written out slowly."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from conftest import parts, text
from pyro import poutine
from pyro.distributions import Beta
from test_model import Forwards, svi_gradients
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_meta import (
    BetaDepthGuide,
    CategoricalGuide,
    CostDirichlet,
    Decision,
    DepthGuide,
    DepthPrior,
    DirichletGuide,
    Features,
    FixedGuide,
    Guide,
    LanguageModel,
    LearnedDirichlet,
    LoadCategorical,
    PointDepthGuide,
    PointGate,
    Prior,
    Shape,
    Transformer,
    UsageError,
)
from pyro_meta.contracts.admission import require_sound
from pyro_meta.distributions.simplex import divergence, uncertainty
from pyro_meta.evaluation.causality import prefix_gap
from pyro_meta.evaluation.executed import executed_figures
from pyro_meta.evaluation.figures import evaluate
from pyro_meta.generation.sampling import Sampling, continue_batch
from pyro_meta.guides import mean_route, of_own_token
from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.optimiser import make_optimiser
from pyro_meta.inference.schedules import Optimisation
from pyro_meta.network.costs import costs_at
from pyro_meta.network.macs import block_macs
from pyro_meta.training.run import Run

SHAPE = Shape(vocabulary=13, context=24, width=16, layers=3, heads=2, window=5)


def gated(
    depth: Callable[[LanguageModel], DepthGuide] = BetaDepthGuide,
    prior: type[Prior] = CostDirichlet,
    guide: type[Guide] = DirichletGuide,
    penalty: float = 0.0,
    seed: int = 0,
    **arguments: Any,
) -> tuple[LanguageModel, Guide]:
    """A small model of three layers with gates that are neither open nor shut."""
    torch.manual_seed(seed)
    network = Transformer(SHAPE)
    routes = prior(network)
    model = LanguageModel(network, routes, DepthPrior(network, penalty=penalty))
    built = guide(model)
    built.depth = depth(model, **arguments)
    if depth in (BetaDepthGuide, PointDepthGuide):  # else all tokens are alike at the start
        for head in built.depth.heads:  # type: ignore[union-attr]
            nn.init.normal_(head[-1].weight, std=2.0)
            head[-1].bias.data[0] = 0.0
    return model, built


class ConstantGate(DepthGuide):
    """Every gate is open by the same amount."""

    pays_kl = False

    def __init__(self, model: LanguageModel, start: float = 3.0, value: float = 1.0) -> None:
        super().__init__(model, start)
        self.value = value

    @of_own_token
    def posterior(self, layer: int, features: Features) -> PointGate:
        return PointGate(torch.full_like(features.state[..., 0], self.value))


class Prefix(DepthGuide):
    """Looks at all tokens so far, causally."""

    def posterior(self, layer: int, features: Features) -> Beta:
        count = torch.arange(1, features.tokens.shape[1] + 1)
        mean = torch.sigmoid(3 * (features.state.mean(-1).cumsum(1) / count))
        return Beta(0.05 + 5 * mean, 0.05 + 5 * (1 - mean))


class Leaky(DepthGuide):
    """Looks at all tokens, later ones too."""

    def posterior(self, layer: int, features: Features) -> Beta:
        mean = torch.sigmoid(features.state.mean((1, 2)))[:, None].expand(features.tokens.shape)
        return Beta(1 + mean, 2 - mean)


# -- the prior -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_a_decided_gate_pays_lambda_per_unit_of_cost() -> None:
    """KL(Bernoulli(q) || Bernoulli(pi)) = lambda q c - H(q) + log(1 + e^(-lambda c))."""
    model, _ = gated()
    assert model.depth is not None
    prior = DepthPrior(model.network, run=0.2, floor=1e-12)
    positions = torch.arange(24)
    shares = model.prior(1, positions).mean
    pi, c = prior(1, positions, shares).mean, prior.costs(positions, shares)
    assert prior.rate == pytest.approx(math.log(0.8 / 0.2))
    for q in (0.02, 0.5, 0.9):
        bernoulli = torch.distributions.Bernoulli(torch.tensor(q))
        found = kl_divergence(bernoulli, torch.distributions.Bernoulli(pi))
        rest = torch.log1p(torch.exp(-prior.rate * c))
        torch.testing.assert_close(
            found, prior.rate * q * c - bernoulli.entropy() + rest, atol=1e-10, rtol=1e-10
        )


@pytest.mark.usefixtures("double")
def test_the_cost_of_a_block_is_counted_by_hand() -> None:
    """D = 16, MLP 64 wide, 2 heads of 8, window 5, context 24."""
    model, _ = gated()
    assert model.depth is not None
    beside = 2 * 16 * 16 + 2 * 16 * 64
    assert block_macs(SHAPE) == beside
    unit = beside + 2 * sum(2 * 8 * (t + 1) for t in range(24)) / 24
    shares = torch.tensor([0.5, 0.3, 0.2])
    t = 7
    attention = 2 * (0.5 * 2 * 8 * 8 + 0.3 * 2 * 8 * 5 + 0.2 * 2 * 8 * 8)
    found = model.depth.costs(torch.tensor([t]), shares)
    assert float(found) == pytest.approx((beside + attention) / unit, rel=1e-12)
    everywhere = model.depth.costs(torch.arange(24), torch.tensor([1.0, 0.0, 0.0]))
    assert float(everywhere.mean()) == pytest.approx(1.0, rel=1e-12)
    dist = model.depth(1, torch.arange(24), shares)
    total = dist.concentration1 + dist.concentration0
    torch.testing.assert_close(total, torch.full((24,), 1.1))


def test_a_prior_over_routes_that_learns_gets_no_gradient_from_gates() -> None:
    model, _ = gated(prior=LearnedDirichlet)
    positions = torch.arange(5)
    first, second = (
        model.gate_dist(layer, positions, model.route_dist(layer, positions)) for layer in (0, 1)
    )
    assert not second.mean.requires_grad and model.gated == range(1, 3)
    assert first.mean.tolist() == [1.0] * 5, "everybody runs the first layer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": 0.0}, "gate.run: 0.0"),
        ({"run": 1.0}, "gate.run: 1.0"),
        ({"strength": 0.0}, "gate.strength: 0.0"),
        ({"floor": -1.0}, "gate.floor: -1.0"),
        ({"penalty": -0.1}, "gate.penalty: -0.1"),
    ],
)
def test_the_prior_refuses_what_is_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DepthPrior(Transformer(SHAPE), **arguments)


def test_a_single_layer_has_nothing_to_gate() -> None:
    shape = Shape(vocabulary=13, context=24, width=16, layers=1, heads=2)
    with pytest.raises(UsageError, match="layers: 1 given"):
        DepthPrior(Transformer(shape))


# -- the objective ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("depth", [BetaDepthGuide, PointDepthGuide])
@pytest.mark.parametrize("prior", [CostDirichlet, LearnedDirichlet])
@pytest.mark.parametrize(("weight", "threshold"), [(1.0, 0.0), (0.05, 0.8), (0.3, 1.0)])
def test_our_objective_equals_plain_svi(
    depth: type[DepthGuide], prior: type[Prior], weight: float, threshold: float
) -> None:
    model, guide = gated(depth, prior, penalty=0.0 if depth.pays_kl else 0.05)
    model.temperature = weight
    guide.harden_below(threshold)
    data = text()
    pyro.set_rng_seed(1)
    loss, theirs = svi_gradients(model, guide, data)
    objective = Objective(model, guide)
    pyro.set_rng_seed(1)
    terms = objective(*data)
    terms.loss.backward()
    counted = data[0].numel() / weight  # the likelihood counts 1 / w times
    assert float(terms.loss.detach()) * counted == pytest.approx(loss, rel=1e-10)
    named = objective.named_parameters()
    ours = {name: p.grad * counted for name, p in named if p.grad is not None}
    assert ours.keys() == theirs.keys()
    assert any("depth" in name for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.usefixtures("double")
def test_trace_elbo_agrees_on_average() -> None:
    """The KL estimated by draws: soft gates have a density."""
    model, guide = gated()
    data = text(batch=1, length=4)
    with torch.no_grad():
        elbo = pyro.infer.Trace_ELBO(max_plate_nesting=2)
        found = [float(elbo.differentiable_loss(model, guide, *data)) for _ in range(100)]
        exact = [float(Objective(model, guide)(*data).loss) * 4 for _ in range(100)]
    error = (np.var(found) / 100 + np.var(exact) / 100) ** 0.5
    assert abs(np.mean(found) - np.mean(exact)) < 4 * error


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_objective_equals_the_equations_written_out(threshold: float) -> None:
    """E_q[-log p(y | alpha, g)] + w KL, from torch.distributions and no Pyro."""
    model, guide = gated()
    assert isinstance(guide, DirichletGuide) and isinstance(guide.depth, BetaDepthGuide)
    model.temperature = 0.3
    guide.harden_below(threshold)
    tokens, targets = text()
    torch.manual_seed(2)
    terms = Objective(model, guide)(tokens, targets)
    torch.manual_seed(2)
    kls, gate_kls, gates = [], [], []

    def route(layer: int, features: Any) -> Decision:
        q = torch.distributions.Dirichlet(guide.posterior(layer, features).concentration)
        p = torch.distributions.Dirichlet(model.prior(layer, features.positions).concentration)
        kls.append(kl_divergence(q, p).mean())
        weights = q.rsample()
        if threshold:
            chosen = guide.execution.decide(weights)
            weights = nn.functional.one_hot(chosen, 3) + (weights - weights.detach())
        if layer == 0:
            return Decision(weights)
        out = guide.depth.heads[layer - 1](features.normed)
        total = 900 ** torch.sigmoid(out[..., 1])
        mean = torch.sigmoid(out[..., 0])
        q_gate = torch.distributions.Beta(0.05 + total * mean, 0.05 + total * (1 - mean))
        cost = model.depth.costs(features.positions, p.mean)  # type: ignore[union-attr]
        pi = 1 / (1 + (0.7 / 0.3) ** cost)
        p_gate = torch.distributions.Beta(pi + 0.05, 1.05 - pi)
        gate_kls.append(kl_divergence(q_gate, p_gate).mean())
        gate = q_gate.rsample()
        if threshold:
            gate = (gate > 0.5).double() + (gate - gate.detach())
        gates.append(gate)
        return Decision(weights, gate)

    logits = model.network(tokens, route)
    nll = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(terms.nll, nll, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms.kl, torch.stack(kls))
    torch.testing.assert_close(terms.depth_kl, torch.stack([torch.tensor(0.0), *gate_kls]))
    torch.testing.assert_close(terms.gates, torch.stack([torch.ones(3, 20), *gates]).detach())
    torch.testing.assert_close(terms.loss, nll + 0.3 * (sum(kls) + sum(gate_kls)))
    if threshold:
        assert set(terms.gates.unique().tolist()) == {0.0, 1.0}


@pytest.mark.usefixtures("double")
def test_gates_without_a_kl_pay_for_being_open_in_training() -> None:
    model, guide = gated(PointDepthGuide, penalty=0.4)
    torch.manual_seed(3)
    terms = Objective(model, guide)(*text())
    assert not terms.depth_kl.any()
    torch.testing.assert_close(terms.penalty.detach(), 0.4 * terms.gates[1:].mean())
    torch.testing.assert_close(terms.loss, terms.nll + terms.kl.sum() + terms.penalty)
    model.eval()
    assert Objective(model, guide)(*text()).penalty == 0


@pytest.mark.parametrize(("depth", "penalty"), [(BetaDepthGuide, 0.0), (PointDepthGuide, 0.5)])
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_gates_of_a_guide_that_rests_are_given(
    depth: type[DepthGuide], penalty: float, threshold: float
) -> None:
    model, guide = gated(depth, penalty=penalty)
    guide.harden_below(threshold)
    guide.is_resting = True
    tokens, targets = text()
    terms = Objective(model, guide)(tokens, targets)
    terms.loss.backward()
    found = {name: parameter.grad for name, parameter in model.network.named_parameters()}
    model.network.zero_grad(set_to_none=True)
    routes, gates = terms.routes, terms.gates
    assert gates is not None

    def given(layer: int, features: Features) -> Decision:
        return Decision(routes[layer], gates[layer] if layer else None)

    logits = model.network(tokens, given)
    nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_a_step_walks_the_network_once() -> None:
    model, guide = gated()
    forwards = Forwards(model.network)
    Objective(model, guide)(*text()).loss.backward()
    assert forwards.count == 1
    trace = poutine.trace(guide).get_trace(*text())
    trace.nodes["depth_1"]["value"] = trace.nodes["depth_1"]["value"].clone()
    poutine.replay(model, trace=trace)(*text())
    assert forwards.count == 3, "another gate is another walk"


def test_every_parameter_of_the_gates_is_in_the_group_of_the_router() -> None:
    objective = Objective(*gated())
    groups = make_optimiser(Optimisation(), objective).param_groups
    own = {id(p) for group in groups if group["is_router"] for p in group["params"]}
    named = {n: p for n, p in objective.named_parameters() if n.startswith("guide.depth.")}
    assert len(named) == 8 and all(id(p) in own for p in named.values())


def test_the_prior_and_the_posterior_can_be_drawn_from_by_pyro() -> None:
    model, guide = gated()
    tokens, _ = text()
    with torch.no_grad():
        prior = pyro.infer.Predictive(model, num_samples=3)(tokens)
        posterior = pyro.infer.Predictive(model, guide=guide, num_samples=3)(tokens)
    for drawn in (prior, posterior):
        assert drawn["depth_1"].shape == drawn["depth_2"].shape == (3, 3, 20)
        assert "depth_0" not in drawn


# -- routes ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("hard", [False, True, None])
def test_open_gates_are_the_ungated_model(hard: bool | None) -> None:
    model, guide = gated(ConstantGate, value=1.0)
    plain = LanguageModel(model.network, model.prior)
    ungated = DirichletGuide(plain)
    ungated.load_state_dict(
        {name: x for name, x in guide.state_dict().items() if not name.startswith("depth.")}
    )
    for one in (guide, ungated):
        one.harden_below(0.5)
    tokens, targets = text()
    expected = model.network(tokens, mean_route(ungated, hard))
    assert torch.equal(model.network(tokens, mean_route(guide, hard)), expected)
    torch.manual_seed(1)
    ours = Objective(model, guide)(tokens, targets)
    torch.manual_seed(1)
    theirs = Objective(plain, ungated)(tokens, targets)
    assert torch.equal(ours.loss, theirs.loss)
    assert not theirs.depth_kl.any() and bool((theirs.gates == 1).all())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("hard", [False, True, None])
def test_shut_gates_leave_the_first_layer_alone(hard: bool | None) -> None:
    model, guide = gated(ConstantGate, value=0.0)
    tokens, _ = text()
    alone = copy.deepcopy(model.network)
    alone.blocks = alone.blocks[:1]
    expected = alone(
        tokens,
        lambda layer, x: Decision(guide.execution.of_mean(guide.posterior(layer, x), hard)),
    )
    found = model.network(tokens, mean_route(guide, hard))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gates_turn_hard_as_routes_do() -> None:
    model, guide = gated()
    tokens, _ = text()
    seen: list[tuple[Tensor, ...]] = []

    def noting(layer: int, features: Features) -> Any:
        ways = []
        for hard, threshold in ((False, 0.0), (True, 0.0), (None, 0.0), (None, 0.75), (None, 1.0)):
            guide.harden_below(threshold)
            ways.append(mean_route(guide, hard)(layer, features).gate)
        if layer:
            gate = guide.latents(layer, features).gate
            seen.append((gate.mean, uncertainty(gate), *ways))
        else:
            assert ways == [None] * 5
        return mean_route(guide, False)(layer, features)

    with torch.no_grad():
        model.network(tokens, noting)
    assert len(seen) == 2
    for mean, u, soft, hard, at_zero, partly, at_one in seen:
        assert hard.dtype == at_one.dtype == torch.bool
        assert torch.equal(soft, mean) and torch.equal(at_zero, mean)
        assert torch.equal(hard, mean > 0.5) and torch.equal(at_one, hard)
        assert torch.equal(partly, torch.where(u < 0.75, hard.float(), mean))
        assert (u < 0.75).any() and (u >= 0.75).any()


def test_gates_turn_hard_beside_a_mixture() -> None:
    model, guide = gated(guide=FixedGuide)
    guide.harden_below(1.0)
    route, gate = mean_route(guide)(1, some_features(model))
    assert route.is_floating_point() and gate is not None and gate.dtype == torch.bool


def some_features(model: LanguageModel) -> Features:
    tokens = text()[0]
    state = torch.randn(*tokens.shape, SHAPE.width)
    return Features(tokens, state, state, torch.arange(tokens.shape[1]))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("depth", [BetaDepthGuide, PointDepthGuide, Prefix])
@pytest.mark.parametrize("hard", [False, True])
def test_nothing_later_is_seen(depth: type[DepthGuide], hard: bool) -> None:
    model, guide = gated(depth)
    model.eval()
    tokens, _ = text()
    with torch.no_grad():
        whole = model.network(tokens, mean_route(guide, hard))
        for end in (1, 7, 19):
            changed = tokens.clone()
            changed[:, end:] = (changed[:, end:] + 1) % 13
            for other in (changed, tokens[:, :end]):
                found = model.network(other, mean_route(guide, hard))[:, :end]
                torch.testing.assert_close(found, whole[:, :end], rtol=1e-10, atol=1e-10)
    assert prefix_gap(model, guide, tokens, [1, 7, 19]) < 1e-10
    require_sound(model, guide)


def test_a_gated_model_needs_a_posterior_of_its_gates() -> None:
    model, guide = gated()
    guide.depth = None
    with pytest.raises(UsageError, match=r"`guide\.depth` is not set"):
        Objective(model, guide)(*text())
    network = Transformer(SHAPE)
    with pytest.raises(UsageError, match="BetaDepthGuide needs a model with a prior over gates"):
        BetaDepthGuide(LanguageModel(network, CostDirichlet(network)))


def test_a_guide_of_gates_that_sees_the_future_is_refused() -> None:
    model, guide = gated(Leaky)
    with pytest.raises(UsageError, match="depth: Leaky: the future is seen"):
        require_sound(model, guide)


def test_a_guide_of_gates_that_wrongly_claims_own_tokens_is_refused() -> None:
    class Claims(Prefix):
        @of_own_token
        def posterior(self, layer: int, features: Features) -> Beta:
            return super().posterior(layer, features)

    model, guide = gated(Claims)
    with pytest.raises(UsageError, match="declared of_own_token"):
        require_sound(model, guide)


def test_a_law_of_gates_of_another_shape_is_refused() -> None:
    class Wide(DepthGuide):
        def posterior(self, layer: int, features: Features) -> Beta:
            return Beta(torch.ones_like(features.state), torch.ones_like(features.state))

    model, guide = gated(Wide)
    with pytest.raises(
        UsageError, match=r"Beta of batch \[2, 24, 16\] and event \[\]; its batch must be \[2, 24\]"
    ):
        require_sound(model, guide)


def test_both_posteriors_must_be_of_the_own_token() -> None:
    assert gated()[1].is_of_own_token
    assert not gated(Prefix)[1].is_of_own_token


@pytest.mark.parametrize("depth", [BetaDepthGuide, Prefix])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0])
def test_generation_is_the_same_with_a_cache(depth: type[DepthGuide], threshold: float) -> None:
    model, guide = gated(depth)
    guide.harden_below(threshold)
    prompts = [[1, 2, 3, 4], [5, 6], [7, 8, 9, 1, 2, 3, 4, 5]]

    def continued(cache: bool) -> list[list[int]]:
        return list(continue_batch(model, guide, prompts, 24, Sampling(), 3, cache))

    assert continued(True) == continued(False)


# -- evaluation ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_who_passes_by_a_mixture_pays_for_nothing() -> None:
    model, guide = gated(guide=FixedGuide)
    guide.harden_below(1.0)
    windows = text(4, SHAPE.context)
    figures = evaluate(model, guide, windows, batch=4)
    assert figures["depth"]["skipped_hard"] > 0.05
    section = executed_figures(model, guide, windows, batch=4, repeats=1)
    assert section["macs_ratio_attention"] == pytest.approx(figures["cost_macs_hard"], rel=1e-6)


def test_figures_count_what_runs() -> None:
    model, guide = gated()
    guide.harden_below(1.0)
    windows = text(batch=4)
    figures = evaluate(model, guide, windows, batch=3)
    tokens = windows[0]
    K, L = 3, 3
    choices, gates, kls, us = [], [], [], []

    def route(layer: int, features: Features) -> Any:
        decision = mean_route(guide, True)(layer, features)
        choices.append(nn.functional.one_hot(decision.route, K).double())
        gates.append(torch.ones(tokens.shape) if decision.gate is None else decision.gate.double())
        if layer in model.gated:
            q = guide.latents(layer, features).gate
            routes = model.route_dist(layer, features.positions)
            p = model.gate_dist(layer, features.positions, routes)
            kls.append(divergence(q, p.expand(q.batch_shape)).mean())
            us.append(uncertainty(q).mean())
        return decision

    with torch.no_grad():
        model.eval().network(tokens, route)
    choice, gate = torch.stack(choices), torch.stack(gates)  # [L, B, T, K], [L, B, T]
    run = choice * gate[..., None]
    costs = costs_at(model.network, "macs", torch.arange(20))
    assert 0.05 < float(1 - gate.mean()) < 0.6, "some are shut"
    assert figures["cost_macs_hard"] == pytest.approx(float((run * costs).sum(-1).mean()))
    depth = figures["depth"]
    assert depth["skipped_hard"] == pytest.approx(float(1 - gate.mean()))
    assert depth["skipped_by_layer"] == pytest.approx((1 - gate.mean((1, 2))).tolist())
    assert depth["skipped_by_layer"][0] == 0
    assert depth["kl_per_token"] == pytest.approx(float(sum(kls)))
    assert depth["uncertainty"] == pytest.approx(float(sum(us)) / (L - 1))
    for layer in range(L):
        expected = (run[layer].sum((0, 1)) / gate[layer].sum()).tolist()
        assert [*figures["load_by_layer"][layer].values()] == pytest.approx(expected, rel=1e-6)
    assert sum(figures["load"].values()) == pytest.approx(1.0, rel=1e-6)
    guide.harden_below(0.0)
    soft = evaluate(model, guide, windows, batch=4)
    assert 0 < soft["depth"]["skipped_soft"] < 1
    assert soft["depth"]["skipped_soft"] == pytest.approx(depth["skipped_soft"])


def test_loads_are_shares_where_nobody_runs_a_layer() -> None:
    model, guide = gated()
    guide.gate_execution.price.fill_(1e6)  # type: ignore[union-attr]
    figures = evaluate(model, guide, text(batch=4), batch=4)
    assert figures["depth"]["skipped_by_layer"] == [0.0, 1.0, 1.0]
    assert figures["load"] == pytest.approx(figures["load_by_layer"][0])
    rows = [[*row.values()] for row in figures["load_by_layer"]]
    assert [sum(row) for row in rows] == pytest.approx([1.0] * 3)
    FixedGuide(model, rows)  # the baseline of the same loads can be made


def test_an_ungated_model_has_no_section() -> None:
    network = Transformer(SHAPE)
    model = LanguageModel(network, CostDirichlet(network))
    assert "depth" not in evaluate(model, DirichletGuide(model), text(), batch=3)


# -- runs ------------------------------------------------------------------------------------------

STATE = {"step": 1, "seconds": 0.0, "corpus": "", "processes": 1}


def test_a_checkpoint_keeps_the_gates(tmp_path: Path) -> None:
    saved, loaded = gated(seed=1), gated(seed=2)
    assert saved[1].depth is not None and loaded[1].depth is not None
    saved[1].gate_execution.price.fill_(0.4)
    run = Run(tmp_path)
    run.save_checkpoint(parts(saved), None, STATE)
    run.load_checkpoint(parts(loaded))
    assert float(loaded[1].gate_execution.price) == pytest.approx(0.4)
    tokens = text()[0]
    ways = [model.network(tokens, mean_route(guide, True)) for model, guide in (saved, loaded)]
    assert torch.equal(*ways)


def test_a_checkpoint_of_other_gates_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save_checkpoint(parts(gated()), None, STATE)
    with pytest.raises(UsageError, match=r"its depth is pyro_meta.*BetaDepthGuide"):
        run.load_checkpoint(parts(gated(PointDepthGuide)))


def test_a_checkpoint_without_gates_is_not_taken_for_one_with(tmp_path: Path) -> None:
    network = Transformer(SHAPE)
    model = LanguageModel(network, CostDirichlet(network))
    pair = model, DirichletGuide(model)
    run = Run(tmp_path)
    run.save_checkpoint(parts(pair), None, STATE)
    run.load_checkpoint(parts(pair))
    with pytest.raises(UsageError, match="its depth is None"):
        run.load_checkpoint(parts(gated()))


@pytest.mark.parametrize("groups", [1, 2])
def test_who_skips_a_layer_does_not_pay_for_it(groups: int) -> None:
    charged = []
    for start in (-20.0, 20.0):
        torch.manual_seed(0)
        network = Transformer(replace(SHAPE, groups=groups))
        model = LanguageModel(network, LoadCategorical(network), DepthPrior(network))
        guide = CategoricalGuide(model)
        guide.depth = PointDepthGuide(model, start=start)
        charged.append(Objective(model, guide)(*text()).compute)
    shut, still = charged
    assert still[1:].min() > 0.1
    torch.testing.assert_close(shut[0], still[0], rtol=0.2, atol=0)  # every token runs the first
    assert shut[1:].abs().max() < 1e-6
