"""Gradients of choices to second order, against losses that are told by running each choice."""

from typing import Any

import pyro
import pytest
import torch
from conftest import build
from conftest import text as own_text
from pretrained_models import MODELS, text, wrapped
from scipy.stats import spearmanr
from torch import Tensor

from pyro_meta import (
    CategoricalGuide,
    CostCategorical,
    Decision,
    Features,
    LanguageModel,
    LoadCategorical,
    LoadGuide,
    PriorGuide,
)
from pyro_meta.guides import drawn, walk
from pyro_meta.guides.walk import Walked
from pyro_meta.inference.curvature import curvature, of_second_order
from pyro_meta.inference.elbo import RouteELBO
from pyro_meta.network.protocol import Network


def drawn_walk(guide: Any, tokens: Tensor) -> Walked:
    """A walk along draws that all are hard."""
    torch.manual_seed(0)
    return walk(guide.model, guide, tokens, _running)


def _running(guide: Any, layer: int, features: Features, posterior: Any) -> Any:
    draw, _ = drawn(guide, layer, features, posterior)
    return draw, Decision(guide.model.execution(draw.route))


def log_p(network: Network, routes: list[Tensor], tokens: Tensor) -> Tensor:
    def route(layer: int, features: Features) -> Decision:
        return Decision(routes[layer])

    with torch.no_grad():
        return torch.log_softmax(network(tokens, route).double(), -1)


@pytest.mark.parametrize("groups", [1, 2])
def test_curvature_is_the_squared_slope_towards_each_mechanism(groups: int) -> None:
    torch.manual_seed(1)
    _, guide = build(CostCategorical, CategoricalGuide, groups=groups)
    network = guide.model.network.double()
    guide.double()
    tokens, _ = own_text(2, 12)
    walked = drawn_walk(guide, tokens)
    torch.manual_seed(7)
    found = curvature(walked)
    torch.manual_seed(7)
    routes = [one.route.detach() for one in walked.decisions]
    ways = torch.log_softmax(walked.logits.detach(), -1)
    label = torch.distributions.Categorical(logits=ways).sample()[..., None]
    step = 1e-5
    for at in ((0, 0, 11), (1, 1, 4), (0, 1, 7)):
        for k in range(3):
            layer, place = at[0], (*at[1:], *((1,) if groups > 1 else ()))
            towards = torch.nn.functional.one_hot(torch.tensor(k), 3) - routes[layer][place]
            scores = []
            for sign in (1, -1):
                moved = [one.clone() for one in routes]
                moved[layer][place] += sign * step * towards
                scores.append(log_p(network, moved, tokens).gather(-1, label).sum())
            wanted = float((scores[0] - scores[1]) / (2 * step)) ** 2
            assert float(found[layer][(*place, k)]) == pytest.approx(wanted, rel=5e-3, abs=1e-9)


def test_at_an_optimum_it_tells_what_straight_through_cannot() -> None:
    """Along full attention the model's own prediction cannot be bettered: every slope is zero.

    What leaving it costs one token is the divergence of predictions, half of the curvature.
    """
    network = wrapped(MODELS["Llama"](), groups="kv")
    model = LanguageModel(network, LoadCategorical(network))
    guide = LoadGuide(model)
    full, window = (network.mechanism_names.index(name) for name in ("full", "window"))
    with torch.no_grad():
        guide.outputs[..., full] += 100.0
    tokens = text(1, 14)
    walked = drawn_walk(guide, tokens)
    routes = [one.route.detach() for one in walked.decisions]
    assert all(bool((one[..., full] == 1).all()) for one in routes)
    told = torch.stack([torch.stack(curvature(walked)) for _ in range(200)]).mean(0) / 2
    before = log_p(network, routes, tokens)
    exact, wanted = [], []
    for layer in range(3):
        for place in range(6, 14):
            for group in range(2):
                moved = [one.clone() for one in routes]
                moved[layer][0, place, group] = torch.eye(2)[window]
                after = log_p(network, moved, tokens)
                exact.append(float((before.exp() * (before - after)).sum()))
                wanted.append(float(told[layer, 0, place, group, window]))
    assert spearmanr(exact, wanted).statistic > 0.9
    assert 0.3 < sum(exact) / sum(wanted) < 1.5, "of the size of a harm that is not small"


@pytest.mark.parametrize("kind", [CategoricalGuide, LoadGuide])
def test_values_stay_and_the_gradient_is_that_of_both_orders(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model, guide = build(CostCategorical, kind, groups=2)
    tokens, targets = own_text()
    known = torch.rand(2, *tokens.shape, 2, 3)
    monkeypatch.setattr("pyro_meta.inference.curvature.curvature", lambda walked: list(known))

    def found(second_order: bool) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(3)
        with pyro.settings.context(module_local_params=True):
            terms = RouteELBO(second_order=second_order).terms(model, guide, tokens, targets)
        slopes = torch.autograd.grad(terms.loss, list(guide.parameters()))
        return terms.loss.detach(), list(slopes)

    (first, straight), (second, both) = found(False), found(True)
    assert torch.equal(first, second)
    torch.manual_seed(3)
    means = torch.stack(guide(tokens).means)
    added = torch.autograd.grad((0.5 * known * means).sum() / tokens.numel(), guide.parameters())
    for one, two, more in zip(straight, both, added, strict=True):
        torch.testing.assert_close(two, one + more, rtol=1e-4, atol=1e-7)
        assert bool(more.any())


def test_a_guide_that_rests_pays_for_no_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(walked: Any) -> list[Tensor]:
        raise AssertionError("a backward pass for nothing")

    monkeypatch.setattr("pyro_meta.inference.curvature.curvature", never)
    model, guide = build(CostCategorical, CategoricalGuide)
    guide.is_resting = True
    RouteELBO(second_order=True).terms(model, guide, *own_text())


def test_nothing_where_nobody_learns() -> None:
    _, guide = build(CostCategorical, PriorGuide)
    assert float(of_second_order(drawn_walk(guide, own_text()[0]))) == 0
