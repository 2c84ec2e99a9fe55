"""What guides do beyond their contract, which test_contracts.py puts them all to."""

from collections.abc import Iterator

import pytest
import torch
from conftest import ESTIMATED, GUIDES, PAIRS, REFUSED, build, text
from leaky import LeakyGuide
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.nn.functional import cross_entropy

from pyro_meta import Decision, DirichletGuide, Features, Guide, PaperGuide, Prior, UsageError
from pyro_meta.distributions.simplex import Point, divergence
from pyro_meta.evaluation.causality import prefix_gap
from pyro_meta.guides import mean_route
from pyro_meta.inference.elbo import Objective
from pyro_meta.network.costs import costs_at


def posteriors(guide: Guide, tokens: Tensor) -> list[Distribution]:
    """The posterior of each layer along the mean route."""
    dists: list[Distribution] = []
    follow = mean_route(guide, hard=False)

    def route(layer: int, features: Features) -> Decision:
        dists.append(guide.posterior(layer, features))
        return follow(layer, features)

    guide.model.network(tokens, route)
    return dists


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_every_parameter_of_the_network_gets_a_gradient(
    guide: type[Guide], threshold: float
) -> None:
    model, built = build(guide=guide)
    built.harden_below(threshold)
    objective = Objective(model, built)
    objective(*text()).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_routes_of_a_guide_that_rests_are_given(guide: type[Guide], threshold: float) -> None:
    model, built = build(guide=guide)
    built.harden_below(threshold)
    built.is_resting = True
    objective, (tokens, targets) = Objective(model, built), text()
    terms = objective(tokens, targets)
    terms.loss.backward()
    found = {name: parameter.grad for name, parameter in model.network.named_parameters()}
    assert all(p.grad is not None for p in built.parameters())  # as processes in parallel need
    model.network.zero_grad(set_to_none=True)
    logits = model.network(tokens, lambda layer, features: Decision(terms.routes[layer]))
    nll = cross_entropy(logits.flatten(0, 1), targets.flatten())
    nll.backward()
    torch.testing.assert_close(terms.nll, nll)
    for name, parameter in model.network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


@pytest.mark.usefixtures("double")
def test_the_prefix_gap_is_rounding_unless_a_guide_leaks() -> None:
    tokens = text()[0]
    assert prefix_gap(*build(), tokens, range(1, tokens.shape[1])) < 1e-9
    assert prefix_gap(*build(guide=LeakyGuide), tokens, range(1, tokens.shape[1])) > 1e-6


def divergences(guide: Guide) -> Iterator[tuple[Distribution, Distribution]]:
    """The posterior and the prior of each layer."""
    prior = guide.model.prior
    for layer, dist in enumerate(posteriors(guide, text()[0])):
        yield dist, prior(layer, torch.arange(20)).expand(dist.batch_shape)


@pytest.mark.parametrize(("prior", "guide"), [pair for pair in PAIRS if pair not in ESTIMATED])
def test_divergences_are_analytic_and_not_negative(prior: type[Prior], guide: type[Guide]) -> None:
    _model, built = build(guide=guide, prior=prior)
    for q, p in divergences(built):
        kl = kl_divergence(q, p)
        assert kl.shape == (3, 20)
        assert (kl >= -1e-6).all()
        if not guide.pays_kl:
            torch.testing.assert_close(kl, torch.zeros(3, 20), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("prior", "guide"), sorted(ESTIMATED, key=str))
def test_divergences_without_closed_form_are_estimated_by_the_draw(
    prior: type[Prior], guide: type[Guide]
) -> None:
    _model, built = build(guide=guide, prior=prior)
    for q, p in divergences(built):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)
        draw = q.rsample()
        ratio = q.log_prob(draw) - p.log_prob(draw)
        torch.testing.assert_close(divergence(q, p, draw), ratio, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("prior", "guide"), sorted(REFUSED, key=str))
def test_pairs_that_cannot_train_are_refused(prior: type[Prior], guide: type[Guide]) -> None:
    with pytest.raises(UsageError, match=f"{guide.__name__}.*{prior.__name__}|always 0"):
        build(guide=guide, prior=prior)


def test_the_default_guide_starts_undecided_on_full_attention_first_then_on_windows() -> None:
    model, guide = build(guide=DirichletGuide)
    full, window, linear = (
        model.network.mechanism_names.index(n) for n in ("full", "window", "linear")
    )
    first, *others = posteriors(guide, text()[0])
    for dist in (first, *others):
        assert isinstance(dist, Dirichlet)
        assert 3 < dist.concentration.sum(-1).median() < 9
        assert (dist.mean[..., window] > 3 * dist.mean[..., linear]).float().mean() > 0.95
    assert (first.mean[..., full] > 1.3 * first.mean[..., window]).float().mean() > 0.95
    for dist in others:
        assert (dist.mean[..., window] > 5 * dist.mean[..., full]).float().mean() > 0.95


def test_a_single_mechanism_needs_no_choice() -> None:
    model, guide = build(mechanisms=("window",))
    terms = Objective(model, guide)(*text())
    torch.testing.assert_close(terms.routes, torch.ones(2, 3, 20, 1))
    torch.testing.assert_close(terms.kl, torch.zeros(2), rtol=0, atol=1e-5)


def test_mean_route_hardens_by_the_threshold() -> None:
    model, guide = build()
    tokens = text()[0]
    features: list[Features] = []
    model.network(
        tokens, lambda layer, f: Decision(features.append(f) or guide.posterior(layer, f).mean)
    )
    soft = mean_route(guide, hard=False)(0, features[0]).route
    hard = mean_route(guide, hard=True)(0, features[0]).route
    assert torch.equal(mean_route(guide)(0, features[0]).route, soft)
    guide.harden_below(1.0)
    assert torch.equal(mean_route(guide)(0, features[0]).route, hard)
    assert torch.equal(hard, soft.argmax(-1))  # choices: each token runs its own mechanism


def test_a_hard_token_weighs_its_posterior_against_the_price() -> None:
    """In evaluation and in training."""
    model, guide = build()
    guide.execution.price.fill_(9.0)
    guide.harden_below(1.0)
    tokens = text()[0]
    everywhere = torch.arange(model.network.shape.context)
    prices = 9.0 * costs_at(model.network, "macs", everywhere).mean(0)
    assert float(prices[0]) == pytest.approx(9.0)  # full attention is the unit
    decided: list[Tensor] = []
    dear: list[bool] = []

    def route(layer: int, features: Features) -> Decision:
        mean = guide.posterior(layer, features).mean
        expected = (mean.log() - prices).argmax(-1)
        dear.append(bool((expected != mean.argmax(-1)).any()))
        for hard in (None, True):
            assert torch.equal(mean_route(guide, hard)(layer, features).route, expected)
        assert torch.equal(guide.execution.shares(mean), torch.eye(3)[expected])
        decided.append(expected)
        return Decision(expected)

    with torch.no_grad():
        model.network(tokens, route)
        terms = Objective(model, guide)(*text())
    assert any(dear), "the price decided nothing"
    assert torch.equal(terms.routes.argmax(-1), torch.stack(decided))


class NotDirichlet(Prior):
    def forward(self, layer: int, positions: Tensor) -> Point:
        return Point(torch.full((len(positions), 3), 1 / 3))


def test_bad_arguments_are_refused_by_name() -> None:
    model, _ = build()
    with pytest.raises(UsageError, match="hidden: 0"):
        DirichletGuide(model, hidden=0)
    with pytest.raises(UsageError, match="total: 1000"):
        DirichletGuide(model, total=1000.0)
    with pytest.raises(UsageError, match="does not define posterior"):
        Guide(model)
    with pytest.raises(UsageError, match="NotDirichlet is not"):
        build(prior=NotDirichlet, guide=PaperGuide)
