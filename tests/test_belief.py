"""Belief against known answers: a conjugate toy, sums over all choices, and a guide that lies."""

import numpy as np
import pytest
import torch
from conftest import PAIRS, PRIORS, build, text
from conjugate import K, conjugate
from scipy import stats
from slow import long
from torch.distributions import Dirichlet, kl_divergence

from pyro_meta import (
    CategoricalGuide,
    LoadCategorical,
    LogisticNormalGuide,
    LogisticNormalPrior,
    PointGuide,
    Prior,
    PriorGuide,
    SymmetricDirichlet,
)
from pyro_meta.analysis import one_token
from pyro_meta.analysis.importance_weights import USABLE, weigh
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.inference.elbo import RouteELBO
from pyro_meta.posterior import belief, nuts
from pyro_meta.posterior.approximation import beside_truth
from pyro_meta.posterior.belief import measure
from pyro_meta.posterior.exact import Handful
from pyro_meta.posterior.free_posterior import descend, free
from pyro_meta.posterior.importance import block_terms
from pyro_meta.posterior.objective import against, averaged, estimate, frozen

W = 0.5


@pytest.mark.parametrize("w", [1.0, 0.25])
def test_a_free_posterior_finds_the_conjugate_one(w: float) -> None:
    """Dirichlet(1 + onehot(y) / w) of each token: the mean to Monte Carlo error."""
    exact, _, targets = conjugate(2, 8, w)
    place = torch.ones(2, 8, K, requires_grad=True)
    prior = Dirichlet(torch.ones(K))

    def objective() -> torch.Tensor:
        q = free(place, of_choices=False)
        told = q.rsample().gather(-1, targets[..., None])[..., 0].clamp(min=1e-30).log()
        return (w * kl_divergence(q, prior) - told).sum()

    torch.manual_seed(1)
    descend(place, objective, steps=600)
    found = place.detach().exp()
    wanted = exact.exact(targets)
    mean, of_exact = (one / one.sum(-1, keepdim=True) for one in (found, wanted))
    torch.testing.assert_close(mean, of_exact, atol=0.03, rtol=0)


@pytest.mark.parametrize(("factor", "is_believed"), [(1.0, True), (1.1, True), (30.0, False)])
def test_k_hat_catches_an_over_confident_guide(factor: float, is_believed: bool) -> None:
    guide, tokens, targets = conjugate(6, 4, W, factor)
    with evaluating(guide.model, guide):
        (terms,) = block_terms(guide.model, guide, (tokens, targets), draws=1000, lengths=(4,))
    found = weigh(terms.log_likelihood.numpy(), terms.log_ratio.numpy(), W)
    if factor == 1:
        assert (found.k_hat < 0.5).all() and found.efficiency.min() > 0.999
        assert np.abs(found.gap).max() < 1e-6
    assert bool((found.k_hat < USABLE).all()) is is_believed
    if not is_believed:
        assert (found.k_hat > USABLE).all() and found.gap.min() > 0.1


@pytest.mark.parametrize("w", [*long(1.0), 0.3])
def test_nuts_finds_the_conjugate_posterior(w: float) -> None:
    exact, tokens, targets = conjugate(1, 3, w)
    handful = Handful(exact, tokens[0], targets[0], 2, w)
    with frozen(exact.model):
        chain = nuts.sample(handful, handful.means, warmup=150, samples=400)
    dist = Dirichlet(exact.exact(targets)[0, -2:].double())
    error = dist.variance.sqrt() / chain.effective**0.5
    assert chain.effective > 100 and chain.split_r_hat < 1.05
    assert float(((chain.moments.mean[0] - dist.mean) / error).abs().max()) < 4
    spread = chain.moments.deviation[0] / dist.variance.sqrt()
    assert float((spread - 1).abs().max()) < 4 / (2 * chain.effective) ** 0.5 + 0.05


def test_the_conjugate_handful_has_no_gaps() -> None:
    exact, tokens, targets = conjugate(1, 3, W)
    found = beside_truth(Handful(exact, tokens[0], targets[0], 2, W), draws=4000, steps=300)
    assert found is not None and found.method == "NUTS"
    a = exact.exact(targets)[0, -2:].double()
    ratio = torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1)) + torch.lgamma(torch.tensor(3.0))
    log_evidence = float(ratio.sum())  # B(1 + onehot / w) / B(1), and B(1, 1, 1) = 1 / Gamma(3)
    assert found.optimum == pytest.approx(-W * log_evidence / 2, abs=0.01)
    assert abs(found.guide - found.optimum) < 0.02
    assert found.approximation + 1e-3 >= 0 and found.approximation < 0.02


def test_enumeration_agrees_with_weighted_draws_of_the_prior() -> None:
    """Hard routes of a real network: sums over choices against brute importance sampling."""
    model, guide = build(prior=SymmetricDirichlet)
    guide.harden_below(1.0)
    tokens, targets = text(1, 9)
    with evaluating(model, guide):
        handful = Handful(guide, tokens[0], targets[0], 2, 0.2)
        exact = handful.enumerate()
        assert exact is not None and exact.patterns == 3**4 and handful.all_hard
        draws = Dirichlet(torch.ones(2, 2, K, dtype=torch.float64)).sample(torch.Size([20_000]))
        log_weight = handful.log_likelihood(draws) / 0.2
    weight = log_weight.softmax(0)
    effective = float(1 / (weight**2).sum())
    mean = (weight[:, None, None, None] * draws).sum(0)
    z = (mean - exact.moments.mean) / (exact.moments.deviation / effective**0.5)
    assert float(z.abs().max()) < 4
    evidence = float(log_weight.logsumexp(0)) - np.log(len(draws))
    assert evidence == pytest.approx(exact.log_evidence, abs=4 / effective**0.5 + 0.02)


def test_the_guide_of_a_handful_is_the_guide() -> None:
    model, guide = build()
    tokens, targets = text(1, 9)
    with evaluating(model, guide):
        handful = Handful(guide, tokens[0], targets[0], 3, 0.1)
        routes, ratio, likelihood = handful.draw_guide(500)
    assert routes.shape == (500, 2, 3, 3) and handful.enumerate() is None, "routes are soft"
    z = (routes[:, 0].mean(0) - handful.means[0]) / (routes[:, 0].std(0) / 500**0.5)
    assert float(z.abs().max()) < 4, "in the first layer nothing depends on draws"
    assert torch.allclose(handful.log_likelihood(routes), likelihood, atol=1e-3)
    assert ratio.shape == (500,)


def test_the_objective_is_that_of_training() -> None:
    model, guide = build()
    guide.harden_below(1.0)
    tokens, targets = text()
    torch.manual_seed(5)
    with torch.no_grad():
        ours = estimate(guide, tokens, against(targets))
        torch.manual_seed(5)
        terms = RouteELBO().terms(model, guide, tokens, targets)
    assert float(ours.nll.mean()) == pytest.approx(float(terms.nll), abs=1e-5)
    assert float(ours.kl.mean()) == pytest.approx(float(terms.kl.sum()), abs=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_blocks_weigh_what_a_whole_walk_weighs(threshold: float) -> None:
    """Read from the cache or as a whole: the same likelihood for the same routes."""
    model, guide = build()
    guide.harden_below(threshold)
    windows = text(2, 20)
    with evaluating(model, guide):
        found = list(block_terms(model, guide, windows, draws=5, lengths=(1, 4)))
    assert {int(terms.length[0]) for terms in found} == {1, 4}
    for terms in found:
        assert terms.log_likelihood.shape == terms.log_ratio.shape == (5, 2)
        assert bool((terms.log_likelihood < 0).all())
        assert bool((terms.position + terms.length <= 20).all())
    first = found[0]
    assert int(first.position[0]) == 0 and torch.isfinite(first.log_ratio).all()
    wide = [terms.log_likelihood.std(0).max() for terms in found if int(terms.length[0]) == 4]
    assert max(map(float, wide)) > 0


def test_guides_without_density_are_passed_over() -> None:
    model, guide = build(guide=PointGuide)
    with evaluating(model, guide):
        assert list(block_terms(model, guide, text(2, 20), draws=5)) == []
        tokens, targets = text(1, 9)
        assert beside_truth(Handful(guide, tokens[0], targets[0], 1, 0.1)) is None


def test_other_distributions_are_weighed_too() -> None:
    model, guide = build(prior=LogisticNormalPrior, guide=LogisticNormalGuide)
    guide.harden_below(1.0)
    tokens, targets = text(1, 9)
    with evaluating(model, guide):
        found = list(block_terms(model, guide, text(2, 20), draws=5, lengths=(2,)))
        assert all(torch.isfinite(terms.log_ratio).all() for terms in found)
    beside = beside_truth(Handful(guide, tokens[0], targets[0], 1, 0.1), draws=50, steps=10)
    assert beside is not None and beside.method == "enumeration"
    assert np.isfinite([beside.guide, beside.best, beside.optimum]).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_can_be_held_beside_the_truth(prior: type[Prior]) -> None:
    """Also one with parameters of its own: they learn nothing where a posterior is sought."""
    (kind, *_) = (one for given, one in PAIRS if given is prior and one.pays_kl)
    model, guide = build(prior=prior, guide=kind)
    guide.harden_below(1.0)
    tokens, targets = text(1, 9)
    with evaluating(model, guide), torch.enable_grad():
        beside = beside_truth(Handful(guide, tokens[0], targets[0], 1, 0.1), draws=20, steps=4)
    assert beside is not None
    assert np.isfinite([beside.guide, beside.best, beside.optimum]).all()
    assert all(one.grad is None for one in [*model.parameters(), *guide.parameters()])


def test_simulation_based_calibration_of_the_conjugate_toy() -> None:
    """Ranks of alpha* among draws of its posterior are uniform (Talts et al. 2018, 1804.06788).

    For a guide that sees x and not y this holds only where q(alpha | x) = p(alpha | x), so that no
    trained router is put to it.
    """
    rng = np.random.default_rng(0)

    def ranks(factor: float) -> np.ndarray:
        found = []
        for _ in range(600):
            alpha = rng.dirichlet(np.ones(K))
            counts = rng.multinomial(5, alpha)
            draws = rng.dirichlet(factor * (1 + counts), 19)
            found.append(int((draws[:, 0] < alpha[0]).sum()))
        return np.bincount(found, minlength=20)

    assert stats.chisquare(ranks(1.0)).pvalue > 1e-3
    assert stats.chisquare(ranks(8.0)).pvalue < 1e-6


def test_the_evidence_lower_bound_of_a_known_posterior() -> None:
    """With the exact posterior it is the evidence itself: log p(y) = -log K for each token."""
    exact, tokens, targets = conjugate(4, 40, 1.0)
    with evaluating(exact.model, exact):
        bound = belief._objective(exact, (tokens, targets))
        torch.manual_seed(0)
        parts = averaged(exact, tokens, against(targets), 2)
    assert bound["uniform"] == pytest.approx(-np.log(K))
    assert bound["elbo"] == pytest.approx(-np.log(K), abs=0.05)
    assert bound["nll"] == pytest.approx(float(parts.nll.mean()))
    assert bound["elbo"] == -(bound["nll"] + bound["kl"])


def test_nothing_is_measured_of_a_guide_without_a_posterior() -> None:
    _, guide = build(guide=PriorGuide)
    assert measure(guide, text(1, 9), W) == {
        "objective": None, "one_token": None, "beside_truth": [],
    }  # fmt: skip


def test_what_is_measured_of_choices() -> None:
    _, guide = build(prior=LoadCategorical, guide=CategoricalGuide, groups=2)
    guide.harden_below(1.0)
    with evaluating(guide.model, guide):
        found = measure(guide, text(4, 12), W)
    assert found["beside_truth"] == []
    one_token.require_whole(found["one_token"], "belief.json")
    assert len(found["one_token"]["by_site"]) == 4 and found["one_token"]["choices"] == 81
