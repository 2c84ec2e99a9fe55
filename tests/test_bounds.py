"""Bounds on the evidence against enumeration and against Pyro's own; noise of gradients, slowly."""

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from conftest import build, text
from pyro.infer import RenyiELBO
from torch import Tensor

from pyro_meta import (
    BetaDepthGuide,
    CategoricalGuide,
    ConcreteGuide,
    CostCategorical,
    CostDirichlet,
    DepthPrior,
    DirichletGuide,
    FixedGuide,
    Guide,
    LanguageModel,
    LoadCategorical,
    LogisticNormalGuide,
    LogisticNormalPrior,
    PointGuide,
    Prior,
    PriorGuide,
)
from pyro_meta.guides import along_means, walk
from pyro_meta.inference.elbo import Objective, RouteELBO
from pyro_meta.network.route import Decision
from pyro_meta.posterior.bounds import bounds, gradient_noise

pytestmark = pytest.mark.usefixtures("double")


def undecided(guide: Guide, scale: float = 0.7) -> None:
    """Routes that differ from the prior's and from token to token."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))


def z_score(found: Tensor, expected: float) -> float:
    error = float(found.std()) / len(found) ** 0.5
    return abs(float(found.mean()) - expected) / (error + 1e-12)


def test_bounds_are_those_of_every_pattern_of_choices() -> None:
    """One layer, two tokens, three mechanisms: all 9 patterns, and all 81 pairs of them."""
    model, guide = build(prior=CostCategorical, guide=CategoricalGuide, layers=1)
    undecided(guide)
    model.charge_compute()
    assert model.compute is not None
    model.compute.rate.fill_(0.8)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(2)  # so that routes matter
    guide.harden_below(1.0)
    tokens, targets = text(batch=1, length=2)
    with torch.no_grad():
        walked = walk(model, guide, tokens, along_means())
        q = walked.posteriors[0].route.mean[0]  # [T, K]
        p = model.route_dist(0, torch.arange(2)).mean.expand(2, 3)
        costs = model.compute.costs(torch.arange(2))  # [T, K]
        patterns = list(itertools.product(range(3), repeat=2))
        log_q, log_p, log_y = [], [], []
        for pattern in patterns:
            chosen = torch.tensor([pattern])
            logits = model.network(tokens, lambda *asked, chosen=chosen: Decision(chosen))
            log_y.append(float(logits.log_softmax(-1).gather(-1, targets[..., None]).sum()))
            log_q.append(sum(float(q[t, k].log()) for t, k in enumerate(pattern)))
            prior = sum(float(p[t, k].log()) for t, k in enumerate(pattern))
            log_p.append(prior - sum(0.8 * float(costs[t, k]) for t, k in enumerate(pattern)))
    chance = np.exp(log_q)
    assert chance.sum() == pytest.approx(1)
    nll = -float(chance @ np.array(log_y)) / 2
    kl = float(chance @ (np.array(log_q) - np.array(log_p))) / 2
    log_r = np.array(log_y) + np.array(log_p) - np.array(log_q)
    iwae = sum(
        chance[a] * chance[b] * (np.logaddexp(log_r[a], log_r[b]) - math.log(2)) / 2
        for a in range(9)
        for b in range(9)
    )
    evidence = float(np.log(np.exp(np.array(log_y) + np.array(log_p)).sum())) / 2
    assert -(nll + kl) < iwae < evidence, "so that the case tells them apart"
    found = bounds(model, guide, tokens.expand(1500, -1), targets.expand(1500, -1), draws=2)
    assert found.iwae is not None and found.elbo is not None
    torch.testing.assert_close(found.kl, torch.full((1500,), kl), rtol=1e-10, atol=1e-10)
    assert z_score(found.nll, nll) < 4
    assert z_score(found.iwae, iwae) < 4
    assert z_score(found.elbo, -(nll + kl)) < 4
    assert z_score(found.objective(0.1), nll + 0.1 * kl) < 4
    many = bounds(model, guide, tokens.expand(20, -1), targets.expand(20, -1), draws=400).iwae
    assert many is not None and iwae < float(many.mean()) < evidence + 2e-2, "it rises with S"


@pytest.mark.parametrize(
    ("prior", "guide", "threshold", "is_gated"),
    [
        (CostDirichlet, DirichletGuide, 0.0, False),
        (CostDirichlet, DirichletGuide, 1.0, True),
        (LogisticNormalPrior, LogisticNormalGuide, 0.5, False),
        (CostDirichlet, ConcreteGuide, 0.0, False),
        (CostCategorical, CategoricalGuide, 1.0, True),
        (CostDirichlet, PriorGuide, 0.0, False),
    ],
)
def test_iwae_is_that_of_pyro(
    prior: type[Prior], guide: type[Guide], threshold: float, is_gated: bool
) -> None:
    """`RenyiELBO(alpha=0)` of a text, by model and guide as Pyro traces them."""
    plain, built = build(prior=prior, guide=guide)
    if is_gated:
        model = LanguageModel(plain.network, plain.prior, DepthPrior(plain.network))
        built = guide(model)
        built.depth = BetaDepthGuide(model)
    else:
        model = plain
    if guide is not PriorGuide:
        undecided(built, 0.3)
    built.harden_below(threshold)
    model.eval(), built.eval()
    tokens, targets = text(batch=1, length=4)
    S, N = 3, 25
    slow = RenyiELBO(alpha=0.0, num_particles=S)
    with torch.no_grad(), pyro.validation_enabled(False):
        theirs = torch.tensor([-slow.loss(model, built, tokens, targets) / 4 for _ in range(N)])
    ours = bounds(model, built, tokens.expand(N, -1), targets.expand(N, -1), draws=S).iwae
    assert ours is not None
    spread = (ours.var() / N + theirs.var() / N) ** 0.5
    assert abs(float(ours.mean() - theirs.mean())) < 4 * float(spread)


def test_one_draw_is_that_of_the_objective() -> None:
    """By the same random numbers, of training's own estimator."""
    model, guide = build(prior=CostCategorical, guide=CategoricalGuide)
    undecided(guide)
    model.temperature = 0.3
    tokens, targets = text()
    torch.manual_seed(5)
    terms = RouteELBO().terms(model, guide, tokens, targets)
    torch.manual_seed(5)
    found = bounds(model, guide, tokens, targets, draws=1)
    torch.testing.assert_close(found.kl.mean(), terms.kl.detach().sum(), rtol=1e-10, atol=1e-10)
    close = {"rtol": 1e-6, "atol": 0.0}  # losses are read in single precision
    torch.testing.assert_close(found.nll.mean(), terms.nll.detach(), **close)
    torch.testing.assert_close(found.objective(0.3).mean(), terms.loss.detach(), **close)


def test_a_point_has_no_bound_and_loads_are_at_their_means() -> None:
    model, guide = build(prior=CostDirichlet, guide=PointGuide)
    found = bounds(model, guide, *text(), draws=3)
    assert found.iwae is None and found.elbo is None
    assert not found.kl.any() and bool((found.nll > 0).all())
    model, guide = build(prior=LoadCategorical, guide=CategoricalGuide, layers=1)
    undecided(guide)
    tokens, targets = text(batch=1, length=3)
    found = bounds(model, guide, tokens, targets, draws=2)
    with torch.no_grad():
        route = walk(model, guide, tokens, along_means(False)).posteriors[0].route.mean
        load = guide.load(0)
    assert load is not None and model.compute is not None
    costs = model.compute.costs(torch.arange(3))
    expected = 0.0
    for t, k in itertools.product(range(3), range(3)):
        share = float(route[0, t, k])
        priced = float(model.compute.rate) * float(costs[t, k])
        expected += share * (math.log(share) - math.log(float(load[k])) + priced)
    assert float(found.kl) == pytest.approx(expected / 3, rel=1e-9)


def test_noise_of_the_gradient_is_its_variance_over_draws() -> None:
    model, guide = build(prior=LoadCategorical, guide=CategoricalGuide)
    undecided(guide)
    tokens, targets = text()
    torch.manual_seed(2)
    found = gradient_noise(model, guide, tokens, targets, 0.2, draws=6)
    assert found is not None and model.temperature == 1.0
    model.temperature = 0.2
    objective = Objective(model, guide)
    gradients = []
    torch.manual_seed(2)
    for _ in range(6):
        objective.zero_grad()
        objective(tokens, targets).loss.backward()
        flat = [one.grad.flatten().numpy() for one in guide.parameters() if one.grad is not None]
        gradients.append(np.concatenate(flat))
    slow = np.array(gradients)
    variance = sum(np.var(slow[:, i], ddof=1) for i in range(slow.shape[1]))
    square = np.mean([float(row @ row) for row in slow])
    assert found.variance == pytest.approx(variance, rel=1e-8)
    assert found.noise == pytest.approx(variance / square, rel=1e-8)
    assert 0 < found.noise < 6 / 5


def test_who_draws_nothing_has_no_noise() -> None:
    model, guide = build(prior=CostDirichlet, guide=PointGuide)
    found = gradient_noise(model, guide, *text(), kl_weight=0.1, draws=3)
    assert found is not None and found.noise < 1e-12, "nothing but rounding"
    for still in (PriorGuide, FixedGuide):
        model, guide = build(prior=CostDirichlet, guide=still)
        assert gradient_noise(model, guide, *text(), kl_weight=0.1) is None
