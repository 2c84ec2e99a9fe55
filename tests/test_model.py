"""The Pyro model and guide, in our objective and in plain Pyro."""

import copy
import math
from typing import Any

import pyro
import pytest
import torch
from conftest import GUIDES, PAIRS, build, text
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from pyro_meta import (
    CostDirichlet,
    Decision,
    DirichletGuide,
    Guide,
    LanguageModel,
    Prior,
    RouteELBO,
    UsageError,
)
from pyro_meta.guides import along_means, mean_route, walk
from pyro_meta.inference.elbo import Objective


class Forwards:
    """Counts the passes through a network."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        network.register_forward_hook(self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


def svi_gradients(
    model: LanguageModel, guide: Guide, data: tuple[Tensor, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of `pyro.infer.SVI`, caught in place of its optimiser."""
    caught: dict[str, Tensor] = {}
    named = {f"model.{name}": p for name, p in model.named_parameters()}
    named |= {f"guide.{name}": p for name, p in guide.named_parameters()}

    def catch(parameters: Any) -> None:
        given = {id(parameter) for parameter in parameters}
        for name, parameter in named.items():
            if id(parameter) in given and parameter.grad is not None:
                caught[name] = parameter.grad.clone()

    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), TraceMeanField_ELBO())
    svi.optim = catch
    return svi.step(*data), caught


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("prior", "guide"), PAIRS)
@pytest.mark.parametrize(("weight", "threshold"), [(1.0, 0.0), (0.05, 0.0), (0.3, 1.0)])
def test_our_objective_equals_plain_svi(
    guide: type[Guide], prior: type[Prior], weight: float, threshold: float
) -> None:
    model, built = build(guide=guide, prior=prior)
    model.temperature = weight
    built.harden_below(threshold)
    data = text()
    pyro.set_rng_seed(1)
    loss, theirs = svi_gradients(model, built, data)
    objective = Objective(model, built)
    pyro.set_rng_seed(1)
    terms = objective(*data)
    terms.loss.backward()
    tokens = data[0].numel()
    counted = tokens / weight  # the likelihood counts 1 / w times
    assert float(terms.loss.detach()) * counted == pytest.approx(loss, rel=1e-10)
    named = objective.named_parameters()
    ours = {name: p.grad * counted for name, p in named if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.usefixtures("double")
def test_the_objective_equals_the_equations_written_out() -> None:
    """E_q[-log p(y | alpha)] + w KL, from torch.distributions and no Pyro."""
    model, guide = build()
    model.temperature = 0.3
    tokens, targets = text()
    torch.manual_seed(2)
    terms = Objective(model, guide)(tokens, targets)
    torch.manual_seed(2)
    kls = []

    def route(layer: int, features: Any) -> Decision:
        q = Dirichlet(guide.posterior(layer, features).concentration)
        kls.append(
            kl_divergence(q, Dirichlet(model.prior(layer, features.positions).concentration))
        )
        return Decision(q.rsample())

    logits = model.network(tokens, route)
    nll = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(terms.nll, nll, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms.kl, torch.stack([kl.mean() for kl in kls]))
    torch.testing.assert_close(terms.loss, nll + 0.3 * sum(kl.mean() for kl in kls))


def test_a_step_is_one_forward_pass() -> None:
    """Ours hands the model what the guide has walked; plain SVI does not, and pays two."""
    model, guide = build(dropout=0.3)
    forwards = Forwards(model.network)
    Objective(model, guide)(*text()).loss.backward()
    assert forwards.count == 1
    with torch.no_grad():
        Objective(model, guide)(*text())
    assert forwards.count == 2
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO()).step(*text())
    assert forwards.count == 4
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), RouteELBO()).step(*text())
    assert forwards.count == 5


def test_the_model_keeps_nothing_of_a_pass() -> None:
    """A replay without what the guide returned walks anew, whatever has changed meanwhile."""
    (model, guide), (other, _) = build(), build()
    data = text()
    trace = poutine.trace(guide).get_trace(*data)
    walked = trace.nodes["_RETURN"]["value"]

    def logits(*args: Any) -> Tensor:
        nodes = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args).nodes
        return nodes["next_token"]["fn"].logits

    torch.testing.assert_close(logits(*data), logits(*data, walked))
    model.network = other.network
    forwards = Forwards(other.network)
    fresh = logits(*data)
    assert forwards.count == 1
    assert not torch.allclose(fresh, logits(*data, walked)), "that was handed on"
    assert forwards.count == 1
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()


def test_what_the_guide_walked_serves_no_other_latents() -> None:
    """A model under a condition goes its own way, in our objective as in Pyro's."""
    model, guide = build()
    route = torch.eye(3)[torch.zeros(3, 20, dtype=torch.long)]
    losses = []
    for objective in (RouteELBO(), TraceMeanField_ELBO()):
        conditioned = poutine.condition(model, data={"route_0": route})
        rest = poutine.block(guide, hide=["route_0"])
        torch.manual_seed(1)
        losses.append(float(objective.loss(conditioned, rest, *text())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_walk_keeps_what_was_met_on_the_way() -> None:
    model, guide = build()
    tokens = text()[0]
    with torch.no_grad():
        walked = walk(model, guide, tokens, along_means(hard=True))
        expected = model.network(tokens, mean_route(guide, hard=True))
    assert torch.equal(walked.logits, expected)
    layers = zip(walked.posteriors, walked.priors, walked.draws, walked.decisions, strict=True)
    for layer, (q, p, draw, decision) in enumerate(layers):
        assert q.route.batch_shape == p.route.batch_shape == (3, 20)
        assert torch.equal(decision.route, guide.execution.decide(q.route.mean))
        assert torch.equal(draw.route, q.route.mean) and decision.gate is None
        expected_prior = model.prior(layer, torch.arange(20)).mean
        assert torch.equal(p.route.mean, expected_prior.expand(3, 20, 3))
        assert torch.equal(q.gate.mean, torch.ones(3, 20))


def test_a_guide_that_returns_nothing_is_named() -> None:
    class Silent(DirichletGuide):
        def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
            super().forward(tokens, targets)

    model, guide = build(guide=Silent)
    with pytest.raises(UsageError, match=r"forward\(\) of Silent returned NoneType"):
        RouteELBO().terms(model, guide, *text())


@pytest.mark.usefixtures("double")
def test_our_elbo_serves_plain_svi() -> None:
    model, guide = build()
    pyro.set_rng_seed(3)
    ours = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), RouteELBO()).step(*text())
    pyro.set_rng_seed(3)
    terms = RouteELBO().terms(model, guide, *text())
    assert ours == pytest.approx(float(terms.loss.detach()) * text()[0].numel(), rel=1e-10)


def test_a_prior_is_never_evaluated_under_autocast() -> None:
    seen: list[bool] = []

    class Watching(CostDirichlet):
        def forward(self, layer: int, positions: Tensor) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(layer, positions)

    model, guide = build(prior=Watching)
    with torch.autocast("cpu", torch.bfloat16):
        Objective(model, guide)(*text())
    assert seen and not any(seen)


def test_sites_and_plates_are_those_of_the_design() -> None:
    model, guide = build()
    trace = poutine.trace(model).get_trace(text()[0])
    trace.compute_log_prob()
    for layer in range(2):
        site = trace.nodes[f"route_{layer}"]
        assert site["fn"].batch_shape == (3, 20) and site["fn"].event_shape == (3,)
        plates = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
        assert plates == {"sequence": -2, "position": -1}
    assert trace.nodes["next_token"]["value"].shape == (3, 20)
    guided = poutine.trace(guide).get_trace(text()[0])
    assert [name for name in guided.nodes if name.startswith("route")] == ["route_0", "route_1"]


@pytest.mark.parametrize("guide", GUIDES)
def test_predictive_draws_routes_and_text(guide: type[Guide]) -> None:
    model, built = build(guide=guide)
    tokens, _ = text()
    posterior = Predictive(model, guide=built, num_samples=4)(tokens)
    prior = Predictive(model, num_samples=4)(tokens)
    for draws in (posterior, prior):
        assert draws["route_1"].shape == (4, 3, 20, 3)
        assert draws["next_token"].shape == (4, 3, 20)


def test_plain_svi_learns() -> None:
    """On a text that repeats, thirty steps of Pyro's own SVI halve the loss."""
    model, guide = build()
    tokens = torch.arange(24).repeat(4, 1) % 4
    data = (tokens[:, :-1], tokens[:, 1:])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), TraceMeanField_ELBO())
    model.temperature = 1e-3
    losses = [svi.step(*data) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_two_models_in_one_process_stay_apart() -> None:
    first, second = build(), build()
    for model, guide in (first, second):
        Objective(model, guide)(*text()).loss.backward()
    assert len(pyro.get_param_store()) == 0
    weights = [model.network.embedding.weight for model, _ in (first, second)]
    assert not torch.equal(*weights)


def test_more_particles_average_to_the_same_loss() -> None:
    model, guide = build()
    with torch.no_grad():
        one = [float(RouteELBO().terms(model, guide, *text()).nll) for _ in range(200)]
        many = [float(RouteELBO(8).terms(model, guide, *text()).nll) for _ in range(25)]
    mean, error = torch.tensor(one).mean(), torch.tensor(one).std() / math.sqrt(len(one))
    other = torch.tensor(many)
    z = (other.mean() - mean) / math.hypot(error, other.std() / math.sqrt(len(many)))
    assert abs(z) < 4
    assert other.std() < torch.tensor(one).std()
