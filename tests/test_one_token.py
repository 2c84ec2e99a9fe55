"""Single tokens: every choice against whole forward passes, and routers whose worth is known."""

import itertools

import numpy as np
import pytest
import torch
from conftest import build, text
from planted_router import W, router, texts
from test_depth import gated
from torch import Tensor

from pyro_meta import (
    CategoricalGuide,
    CostDirichlet,
    DirichletGuide,
    Guide,
    LoadCategorical,
    LoadDirichlet,
    PointGuide,
)
from pyro_meta.analysis.estimates import State
from pyro_meta.analysis.one_token import MOST_GAP, as_share, gap_of
from pyro_meta.analysis.verdicts import of_single_tokens
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import along_means, walk
from pyro_meta.models.language_model import Draw
from pyro_meta.network.route import Decision, Features
from pyro_meta.posterior import cross_fitted
from pyro_meta.posterior.cross_fitted import given_prefix, objective
from pyro_meta.posterior.objective import against, averaged
from pyro_meta.posterior.one_token import Effort, Tried, effort_for, is_tried, try_all
from pyro_meta.posterior.token_figures import correlation, divergence, efficiency, figures, ranks

ALL = Effort(texts=3, places=3, whole_places=1, horizon=100)


def settled(prior: type, guide: type[Guide], groups: int = 1) -> Guide:
    """A small guide of random weights that ends hard, so that posteriors differ by token."""
    _, made = build(prior=prior, guide=guide, groups=groups, layers=2)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in made.heads.parameters():  # type: ignore[union-attr]
            parameter.add_(0.5 * torch.randn_like(parameter))
    made.harden_below(1.0)
    return made


def tried(guide: Guide, effort: Effort = ALL) -> tuple[Tried, tuple[Tensor, Tensor]]:
    windows = text(3, 12)
    with evaluating(guide.model, guide):
        found = try_all(guide, windows, effort)
    assert found is not None
    return found, windows


class Slow:
    """The same by whole forward passes, one text and one choice at a time."""

    def __init__(self, guide: Guide, tokens: Tensor, targets: Tensor) -> None:
        self.guide, self.model, self.tokens, self.targets = guide, guide.model, tokens, targets
        with evaluating(self.model, guide):
            self.walked = walk(self.model, guide, tokens[None], along_means(hard=True))
        self.deployed = [decision.route[0] for decision in self.walked.decisions]

    def run(self, t: int, choices: dict[tuple[int, int], int]) -> tuple[float, float]:
        """log p(y from t on), and log q of the token's choices, for those of (layer, group)."""
        log_q = 0.0

        def route(layer: int, features: Features) -> Decision:
            nonlocal log_q
            runs = self.deployed[layer].clone()
            q = self.guide.routes(layer, features).mean[0, t]
            for (at, group), k in choices.items():
                if at == layer and runs.dim() == 1:
                    runs[t] = k
                    log_q += float(q[k].log())
                elif at == layer:
                    runs[t, group] = k
                    log_q += float(q[group, k].log())
            gate = self.guide.latents(layer, features).gate
            is_gated = layer in self.model.gated
            opened = self.guide.gate_execution.of_mean(gate, hard=True) if is_gated else None
            return Decision(runs[None], opened)

        with evaluating(self.model, self.guide):
            log_p = self.model.network(self.tokens[None], route)[0].log_softmax(-1)
        return float(log_p[t:].gather(-1, self.targets[t:, None]).sum()), log_q


@pytest.mark.parametrize(
    ("prior", "guide", "groups"),
    [
        (LoadCategorical, CategoricalGuide, 1),
        (LoadCategorical, CategoricalGuide, 2),
        (CostDirichlet, DirichletGuide, 1),
    ],
)
def test_tables_are_those_of_whole_forward_passes(
    prior: type, guide: type[Guide], groups: int
) -> None:
    made = settled(prior, guide, groups)
    found, windows = tried(made)
    assert found.log_likelihood.shape == (9, 2 * groups, 3)
    for row in (0, 4, 8):
        slow = Slow(made, *(part[found.text[row]] for part in windows))
        t = int(found.position[row])
        for site, k in itertools.product(range(2 * groups), range(3)):
            wanted, _ = slow.run(t, {divmod(site, groups): k})
            assert found.log_likelihood[row, site, k] == pytest.approx(wanted, abs=1e-4)
        log_p = slow.walked.logits[0].log_softmax(-1)
        nll = -float(log_p.gather(-1, windows[1][found.text[row], :, None]).mean())
        assert found.nll[found.text[row]] == pytest.approx(nll, abs=1e-5)


@pytest.mark.parametrize("order", ["uncertain_last", "random"])
def test_depth_gates_are_shut_or_open_while_a_choice_is_tried(order: str) -> None:
    """As deployed, though the guide's own gates are hard for some tokens alone."""
    model, made = gated()
    model.harden_in(order, seed=3)
    made.harden_below(0.5)
    found, windows = tried(made)
    for row in (0, 5):
        slow = Slow(made, *(part[found.text[row]] for part in windows))
        t = int(found.position[row])
        for site, k in itertools.product(range(3), range(3)):
            wanted, _ = slow.run(t, {(site, 0): k})
            assert found.log_likelihood[row, site, k] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_posterior_and_prior_of_choices_by_hand(groups: int) -> None:
    """log p(z) is the prior's, less the price of compute."""
    made = settled(LoadCategorical, CategoricalGuide, groups)
    found, windows = tried(made)
    model = made.model
    for row in (1, 7):
        slow = Slow(made, *(part[found.text[row]] for part in windows))
        t = int(found.position[row])
        at = torch.tensor([t])
        for layer, group in itertools.product(range(2), range(groups)):
            site = layer * groups + group
            with torch.no_grad():
                q = slow.walked.posteriors[layer].route.mean[0, t]
                p = model.route_dist(layer, at, made.load(layer)).mean[0]
                q, p = (one if groups == 1 else one[group] for one in (q, p))
                assert model.compute is not None
                costs = model.compute.costs.of_groups(at).view(-1)  # [K]
                price = float(model.compute.rate) * costs
            np.testing.assert_allclose(found.log_guide[row, site], q.log(), atol=1e-5)
            np.testing.assert_allclose(found.log_prior[row, site], p.log() - price, atol=1e-5)
            assert found.chosen[row, site] == int(q.argmax())


def test_whole_routes_are_asked_of_the_guide_layer_by_layer() -> None:
    made = settled(LoadCategorical, CategoricalGuide)
    found, windows = tried(made)
    whole = found.whole
    assert whole is not None and whole.choices.shape == (9, 2) and len(whole.token) == 3
    assert np.exp(whole.log_guide).sum(1) == pytest.approx(np.ones(3), abs=1e-5)
    for number, token in enumerate(whole.token):
        slow = Slow(made, *(part[found.text[token]] for part in windows))
        for pattern, (first, second) in enumerate(whole.choices.tolist()):
            t = int(found.position[token])
            wanted, log_q = slow.run(t, {(0, 0): first, (1, 0): second})
            assert whole.log_likelihood[number, pattern] == pytest.approx(wanted, abs=1e-4)
            assert whole.log_guide[number, pattern] == pytest.approx(log_q, abs=1e-4)
            prior = found.log_prior[token, 0, first] + found.log_prior[token, 1, second]
            assert whole.log_prior[number, pattern] == pytest.approx(prior)


def test_a_horizon_cuts_the_text_off() -> None:
    made = settled(LoadCategorical, CategoricalGuide)
    found, windows = tried(made, Effort(texts=2, places=2, whole_places=0, horizon=3))
    assert found.whole is None
    for row in range(4):
        t = int(found.position[row])
        tokens, targets = (part[found.text[row], : t + 3] for part in windows)
        slow = Slow(made, tokens, targets)
        wanted, _ = slow.run(t, {(1, 0): 2})
        assert found.log_likelihood[row, 1, 2] == pytest.approx(wanted, abs=1e-4)


def test_choices_of_weights_are_counted_in_draws() -> None:
    """P(decide(alpha) = k) by many draws of our own; the prior's weighed by the price."""
    made = settled(LoadDirichlet, DirichletGuide)
    found, windows = tried(made)
    slow = Slow(made, *(part[0] for part in windows))
    at = torch.tensor([int(found.position[0])])
    with torch.no_grad():
        q = slow.walked.posteriors[1].route
        draws = q.sample(torch.Size([20_000]))[:, 0, at[0]]
        of_prior = made.model.route_dist(1, at, made.load(1)).sample(torch.Size([20_000]))
        weight = torch.exp(-made.model.charge(at, Draw(of_prior, None)))[:, 0]
    choice = made.execution.decide(draws)
    share = torch.stack([(choice == k).double().mean() for k in range(3)]).numpy()
    error = np.sqrt(share * (1 - share) / 2000) + 1e-3
    assert (np.abs(np.exp(found.log_guide[0, 1]) - share) < 4 * error).all()
    choice = made.execution.decide(of_prior[:, 0])
    share = torch.stack([((choice == k) * weight).double().mean() for k in range(3)]).numpy()
    error = np.sqrt(share / 2000) + 1e-3
    assert (np.abs(np.exp(found.log_prior[0, 1]) - share) < 4 * error).all()


def test_who_is_not_tried() -> None:
    soft = settled(LoadCategorical, CategoricalGuide)
    assert is_tried(soft)
    soft.harden_below(0.5)
    assert not is_tried(soft)
    _, point = build(guide=PointGuide)
    point.harden_below(1.0)
    with evaluating(point.model, point):
        assert not is_tried(point) or try_all(point, text(2, 9), ALL) is None
    _, alone = build(prior=LoadCategorical, guide=CategoricalGuide, mechanisms=("window",))
    alone.harden_below(1.0)
    with evaluating(alone.model, alone):
        assert try_all(alone, text(2, 9), ALL) is None


def test_what_is_affordable() -> None:
    model, _ = build(layers=2)
    small = effort_for(model.network, 20)
    assert (small.horizon, small.whole_places) == (20, 2)
    deep, _ = build(layers=6)
    assert effort_for(deep.network, 20).whole_places == 0, "3^6 patterns"


def test_a_deep_network_is_tried_layer_by_layer() -> None:
    """Its whole routes could not even be written down: 3^50 of them."""
    _, guide = build(prior=LoadCategorical, guide=CategoricalGuide, layers=50)
    guide.harden_below(1.0)
    effort = effort_for(guide.model.network, 12)
    assert effort.whole_places == 0
    found, _ = tried(guide, Effort(texts=1, places=1, whole_places=0, horizon=4))
    assert found.whole is None and found.log_likelihood.shape == (1, 50, 3)
    assert np.isfinite(found.log_likelihood).all()


# -- figures ---------------------------------------------------------------------------------


def some_tables(seed: int = 0, N: int = 24, S: int = 2, K: int = 3) -> Tried:
    rng = np.random.default_rng(seed)
    log_q, log_p = (np.log(rng.dirichlet(np.ones(K), (N, S))) for _ in range(2))
    return Tried(
        text=np.repeat(np.arange(N // 4), 4), position=np.tile(np.arange(4), N // 4),
        log_likelihood=rng.normal(size=(N, S, K)), log_guide=log_q, log_prior=log_p,
        features=rng.normal(size=(N, S, 5)), chosen=log_q.argmax(-1), nll=np.full(N // 4, 2.0),
        groups=1, whole=None,
    )  # fmt: skip


def test_every_figure_by_a_loop() -> None:
    tables, w = some_tables(), 0.3
    found = figures(tables, w)
    best = given_prefix(
        tables.log_likelihood, tables.log_guide, tables.log_prior, tables.features, tables.text, w
    )
    gaps, further = np.zeros(6), np.zeros(6)
    shares, kls, places, given_y, best_given_y, paid = [], [], [], [], [], []
    for n, s in itertools.product(range(24), range(2)):
        q, p, x = (np.exp(one[n, s]) for one in (tables.log_guide, tables.log_prior, best))
        told = tables.log_likelihood[n, s]
        y = p * np.exp(told / w)
        y = y / y.sum()

        def cost(r: np.ndarray, p: np.ndarray = p, told: np.ndarray = told) -> float:
            return sum(r[k] * (w * np.log(r[k] / p[k]) - told[k]) for k in range(3))

        assert x.sum() == pytest.approx(1)
        gaps[n // 4] += (cost(q) - cost(x)) / 4
        further[n // 4] += (cost(x) - cost(y)) / 4
        shares.append(1 / sum(x[k] ** 2 / q[k] for k in range(3)))
        kls.append(sum(q[k] * np.log(q[k] / x[k]) for k in range(3)))
        places.append(1 + sum(y[k] > y[q.argmax()] for k in range(3)))
        given_y.append(1 / sum(y[k] ** 2 / q[k] for k in range(3)))
        best_given_y.append(1 / sum(y[k] ** 2 / x[k] for k in range(3)))
        paid.append(sum(q[k] * np.log(q[k] / p[k]) for k in range(3)))
    loss = 2.0 + w * sum(paid) / 24
    assert found["loss"] == pytest.approx(loss)
    assert found["efficiency_median"] == pytest.approx(np.median(shares))
    assert found["kl_mean"] == pytest.approx(np.mean(kls))
    assert found["rank_mean"] == pytest.approx(np.mean(places))
    assert found["first_share"] == pytest.approx(np.mean(np.array(places) == 1))
    assert found["efficiency_median_given_targets"] == pytest.approx(np.median(given_y))
    assert found["best_efficiency_median_given_targets"] == pytest.approx(np.median(best_given_y))
    assert found["gap"]["value"] == pytest.approx(gaps.mean())
    assert found["gap"]["share_of_loss"] == pytest.approx(gaps.mean() / loss)
    half = 2.5706 * gaps.std(ddof=1) / 6**0.5  # t of 5 degrees of freedom
    wanted = [gaps.mean() - half, gaps.mean() + half]
    assert found["gap"]["interval"] == pytest.approx(wanted, rel=1e-4)
    assert found["conditioning"]["value"] == pytest.approx(further.mean())
    assert sum(site["gap"]["value"] for site in found["by_site"]) == pytest.approx(gaps.mean())


def test_indifference_by_hand() -> None:
    """Entropies that fall as more is at stake: a rank correlation of -1."""
    tables = some_tables()
    sure = np.linspace(0.4, 0.95, 24)[:, None].repeat(2, 1)
    log_q = np.log(np.stack([sure, (1 - sure) / 2, (1 - sure) / 2], -1))
    stake = np.linspace(0.1, 3, 24)[:, None, None] * np.array([1.0, 0.5, 0.0])
    changed = Tried(**{**vars(tables), "log_guide": log_q, "log_likelihood": stake.repeat(2, 1)})
    found = figures(changed, 0.3)
    assert found["indifference"] == pytest.approx(-1)
    assert of_single_tokens({"one_token": found})[2].answer == "yes"
    assert correlation(np.arange(5.0), np.ones(5)) != correlation(np.ones(5), np.ones(5)), "NaN"


def test_efficiency_divergence_and_ranks_by_hand() -> None:
    q, p = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    assert efficiency(q, p) == pytest.approx(1 / (0.0625 / 0.5 + 0.25 / 0.25 + 0.0625 / 0.25))
    assert divergence(q, p) == pytest.approx(0.25 * np.log(2))
    assert ranks(q, p) == 2 and ranks(q, q) == 1
    assert objective(q, np.zeros(3), p, 0.5) == pytest.approx(0.125 * np.log(2))


def test_what_is_predicted_of_a_text_does_not_depend_on_its_targets() -> None:
    """Cross-fitting; and one prediction by the normal equations of ridge regression."""
    tables = some_tables(N=40)
    folds = cross_fitted._folds(tables.text)
    words = [cross_fitted._centred(one) for one in (tables.log_guide, tables.log_prior)]
    args = (*words, tables.features, folds)
    goals = tables.log_likelihood
    before = list(cross_fitted._predictions(goals, *args))
    other = goals.copy()
    other[folds == 2] += 100 * np.random.default_rng(1).normal(size=other[folds == 2].shape)
    after = list(cross_fitted._predictions(other, *args))
    assert len(before) == 5 * len(cross_fitted.PENALTIES)
    for ours, theirs in zip(before, after, strict=True):
        np.testing.assert_allclose(ours[folds == 2], theirs[folds == 2], atol=1e-9)
        assert not np.allclose(ours[folds != 2], theirs[folds != 2])
    x = cross_fitted._standardised(np.concatenate(words, -1).reshape(80, -1))
    x = np.concatenate([np.ones((80, 1)), x], 1)
    kept = np.repeat(folds != 2, 2)
    y = goals.reshape(80, 3)
    penalty = cross_fitted.PENALTIES[1]
    solved = np.linalg.solve(
        x[kept].T @ x[kept] + penalty * np.eye(x.shape[1]), x[kept].T @ y[kept]
    )
    np.testing.assert_allclose(before[1].reshape(80, 3)[~kept], x[~kept] @ solved, atol=1e-8)


def test_the_regression_of_one_layer_by_the_normal_equations() -> None:
    tables = some_tables(N=40)
    folds = cross_fitted._folds(tables.text)
    words = [cross_fitted._centred(one) for one in (tables.log_guide, tables.log_prior)]
    found = list(cross_fitted._predictions(tables.log_likelihood, *words, tables.features, folds))[
        len(cross_fitted.PENALTIES)
    ]
    x = cross_fitted._standardised(tables.features[:, 1])
    x = np.concatenate([np.ones((40, 1)), x / np.sqrt((x**2).sum(1).mean())], 1)
    kept, y = folds != 0, tables.log_likelihood[:, 1]
    square = x[kept].T @ x[kept] + cross_fitted.PENALTIES[0] * np.eye(x.shape[1])
    solved = np.linalg.solve(square, x[kept].T @ y[kept])
    np.testing.assert_allclose(found[folds == 0, 1], x[~kept] @ solved, atol=1e-8)


# -- routers whose worth is known ------------------------------------------------------------


def judged(guide: Guide) -> dict:
    windows = texts(guide.model.network, 24, 48)  # type: ignore[arg-type]
    with evaluating(guide.model, guide):
        found = try_all(guide, windows, Effort(texts=24, places=24, whole_places=2, horizon=48))
    assert found is not None
    return figures(found, W)


def test_the_exact_posterior_given_the_prefix_passes() -> None:
    """It fails k-hat against y, as any guide of its kind must; here it is what is wanted."""
    found = judged(router())
    share = as_share(gap_of(found), found["loss"])
    assert share.at_most(MOST_GAP) is State.YES, share
    assert found["efficiency_median"] > 0.9
    assert [line.is_good for line in of_single_tokens({"one_token": found})[:2]] == [True, True]


@pytest.mark.parametrize("swapped", [0.1, 0.3])
def test_a_router_with_swapped_mechanisms_is_found_out(swapped: float) -> None:
    """Within a factor of two of what it truly loses, with all its routes drawn at once."""
    good, bad = router(), router(swapped)
    tokens, targets = texts(good.model.network, 24, 48)  # type: ignore[arg-type]
    with evaluating(good.model, bad.model):
        ours, theirs = (
            float(averaged(guide, tokens, against(targets), 50).loss(W).mean())
            for guide in (good, bad)
        )
    found = judged(bad)
    truth = theirs - ours
    assert truth > 0.02 * ours
    assert truth / 2 < found["gap"]["value"] < 2 * truth
    assert of_single_tokens({"one_token": found})[1].is_good is False
