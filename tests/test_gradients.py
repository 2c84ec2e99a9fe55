"""Gradients of the objective against quadrature: one token and two mechanisms.

The truth is an integral over a grid, differentiated through the density. The estimator is the mean
over many sequences of one token, differentiated through its draws. They share nothing but the
distribution.
"""

import math

import pytest
import torch
from conftest import ANY_FAMILY, GUIDES, PAIRS
from slow import all_but
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_meta import CategoricalGuide, Choice, Guide, LanguageModel, LoadPrior, Prior, Shape
from pyro_meta.attention import Mechanism
from pyro_meta.attention.mechanisms import Full, Window
from pyro_meta.distributions import Point
from pyro_meta.inference.elbo import Objective
from pyro_meta.network.route import Features, Route, as_weights

ROWS, REPEATS = 2000, 40
TEMPERATURE, RATE = 0.4, 1.7


class Bent(nn.Module):
    """A "network" of one layer whose loss is a bent function of the first weight."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = Shape(vocabulary=2, context=8, width=8, layers=1, heads=1)
        self.embedding = nn.Embedding(2, 8)
        self.mechanisms: list[Mechanism] = [Full(8, 1), Window(8, 1)]
        self.mechanism_names = ["full", "window"]
        self.leading_mechanisms = [("full", "window")]

    def forward(self, tokens: Tensor, route: Route, cache: object = None) -> Tensor:
        state = self.embedding(tokens)
        features = Features(tokens, state, state, torch.arange(tokens.shape[1]))
        return self.logits(as_weights(route(0, features).route, 2))

    @staticmethod
    def logits(weights: Tensor) -> Tensor:
        a = weights[..., 0]
        return torch.stack([2.0 * torch.sin(2.5 * a) - a**2, torch.zeros_like(a)], -1)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device


def nll(weights: Tensor) -> Tensor:
    """Of target 0."""
    return -Bent.logits(weights).log_softmax(-1)[..., 0]


def grid(points: int) -> tuple[Tensor, Tensor]:
    """Points [N, 2] of the simplex, and log(da) of the step between them, [N]."""
    t = torch.linspace(-40.0, 40.0, points)
    log_a, log_b = nn.functional.logsigmoid(t), nn.functional.logsigmoid(-t)
    return torch.stack([log_a.exp(), log_b.exp()], -1), log_a + log_b + math.log(80 / (points - 1))


def mean_of(dist: Distribution, values: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
    """E[values] [..] over a grid, differentiable through the density."""
    points, log_step = at
    chance = (dist.log_prob(points) + log_step).exp()
    assert float(chance.sum(0).detach()) == pytest.approx(1.0, abs=1e-3)
    return (chance * values).sum(0)


def exact(model: LanguageModel, guide: Guide) -> Tensor:
    """The objective of one token, by quadrature."""
    token = torch.zeros(1, 1, dtype=torch.long)
    state = model.network.embedding(token)
    q = guide.posterior(0, Features(token, state, state, torch.arange(1)))
    q = q.expand(torch.Size([1, 1]))
    at = grid(4001)
    costs = torch.zeros(2) if model.compute is None else model.compute.costs(torch.arange(1))[0]
    rate = 0.0 if model.compute is None else float(model.compute.rate)

    def of_routes(load: Tensor | None) -> Tensor:
        p = model.route_dist(0, torch.arange(1), load).expand(q.batch_shape)
        if isinstance(q, Point):
            weights = q.weights[0, 0]
            return nll(weights) + TEMPERATURE * rate * (weights * costs).sum()
        if isinstance(q, Choice):
            # straight through: the loss is linearised at the vertex that was drawn
            chance, vertices = q.probs[0, 0], torch.eye(2).requires_grad_()
            (slope,) = torch.autograd.grad(nll(vertices).sum(), vertices)
            along = (chance.detach()[:, None] * slope).sum(0) @ chance
            value = (chance.detach() * nll(vertices).detach()).sum() - along.detach() + along
            kl = (chance * (q.logits[0, 0] - p.logits[0, 0])).sum()
            return value + TEMPERATURE * (kl + rate * (chance * costs).sum())
        points = at[0][:, None, None]
        paid = q.log_prob(points) - p.log_prob(points) + rate * (points * costs).sum(-1)
        wide = (points, at[1][:, None, None])
        return mean_of(q, nll(points) + TEMPERATURE * paid, wide)[0, 0]

    if not isinstance(model.prior, LoadPrior):
        return of_routes(None)
    load_q, load_p = guide.load_dist(0), model.load_dist(0)
    assert load_q is not None
    coarse = grid(801)
    inner = torch.stack([of_routes(load) for load in coarse[0].clamp(min=1e-12)])
    share = 1 / ROWS
    kl = mean_of(load_q, load_q.log_prob(coarse[0]) - load_p.log_prob(coarse[0]), coarse)
    return mean_of(load_q, inner, coarse) + TEMPERATURE * share * kl


def learned(guide: Guide) -> dict[str, nn.Parameter]:
    return {name: one for name, one in guide.named_parameters() if one.requires_grad}


def cases() -> list[tuple[type[Prior], type[Guide]]]:
    return [
        (prior, guide)
        for prior, guide in PAIRS
        if guide in {*GUIDES} - ANY_FAMILY or guide.__name__ in ("LoadGuide", "PointGuide")
    ]


def every_day() -> list[tuple[type[Prior], type[Guide]]]:
    """Each guide once, by turns with the priors that it may have."""
    found: dict[type[Guide], list[type[Prior]]] = {}
    for prior, guide in cases():
        found.setdefault(guide, []).append(prior)
    return [
        (priors[turn % len(priors)], guide) for turn, (guide, priors) in enumerate(found.items())
    ]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("prior", "guide"), all_but(every_day(), cases()))
def test_the_gradient_of_the_objective_is_that_of_its_integral(
    prior: type[Prior], guide: type[Guide]
) -> None:
    """Within 4 standard errors in every output; of choices it is that of straight-through draws."""
    network = Bent()
    model = LanguageModel(network, prior(network))  # type: ignore[arg-type]
    given = {"start": 0.3} if guide.__name__ not in ("PaperGuide",) else {}
    built = guide(model, **given)
    model.temperature = TEMPERATURE
    if guide is CategoricalGuide or model.prior.of_choices:
        model.charge_compute()
    if model.compute is not None:
        model.compute.rate.fill_(RATE)
    parameters = learned(built)
    truth = dict(
        zip(
            parameters,
            torch.autograd.grad(exact(model, built), [*parameters.values()], allow_unused=True),
            strict=True,
        )
    )
    data = torch.zeros(2, ROWS, 1, dtype=torch.long)
    objective, found = Objective(model, built), []
    torch.manual_seed(0)
    for _ in range(REPEATS):
        loss = objective(*data).loss
        found.append(torch.autograd.grad(loss, [*parameters.values()], allow_unused=True))
    for index, (name, expected) in enumerate(truth.items()):
        if expected is None:
            assert all(gradients[index] is None for gradients in found), name
            continue
        draws = torch.stack([gradients[index] for gradients in found])
        error = draws.std(0) / math.sqrt(REPEATS)
        z = (draws.mean(0) - expected) / error.clamp(min=1e-9 + 1e-4 * float(expected.abs().max()))
        assert float(z.abs().max()) < 4.0, f"{name}: {z}"
