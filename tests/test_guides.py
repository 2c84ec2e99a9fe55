"""What every guide promises, over every guide and prior."""

from collections.abc import Iterator

import pytest
import torch
from conftest import ESTIMATED, GUIDES, PAIRS, REFUSED, build, text
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_meta import DirichletGuide, Features, Guide, PaperGuide, Prior, UsageError
from pyro_meta.evaluation import prefix_gap
from pyro_meta.simplex import Point, divergence
from pyro_meta.svi import Objective


def posteriors(guide: Guide, tokens: Tensor) -> list[Distribution]:
    """The posterior of each layer along the mean route."""
    laws: list[Distribution] = []
    follow = guide.mean_route(hard=False)

    def route(layer: int, features: Features) -> Tensor:
        laws.append(guide.posterior(layer, features))
        return follow(layer, features)

    guide.model.network(tokens, route)
    return laws


@pytest.mark.parametrize("guide", GUIDES)
def test_posteriors_have_shape_and_support(guide: type[Guide]) -> None:
    _model, built = build(guide=guide)
    for law in posteriors(built, text()[0]):
        assert law.batch_shape == (3, 20) and law.event_shape == (3,)
        assert law.has_rsample
        draw = law.rsample()
        assert law.support.check(draw).all()
        torch.testing.assert_close(law.mean.sum(-1), torch.ones(3, 20))


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_every_parameter_gets_a_finite_gradient(guide: type[Guide], threshold: float) -> None:
    model, built = build(guide=guide)
    built.threshold.fill_(threshold)
    objective = Objective(model, built)
    objective(*text()).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("prior", "guide"), PAIRS)
@pytest.mark.parametrize("hard", [False, True])
def test_the_past_does_not_depend_on_the_future(
    guide: type[Guide], prior: type[Prior], hard: bool
) -> None:
    """Of the whole language model: routes from the guide, logits from the network."""
    model, built = build(guide=guide, prior=prior)
    built.threshold.fill_(float(hard))
    tokens = text()[0]
    assert prefix_gap(model, built, tokens, range(1, tokens.shape[1])) < 1e-9
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 13
    route = built.mean_route()
    torch.testing.assert_close(
        model.network(tokens, route)[:, :8], model.network(changed, route)[:, :8]
    )


def divergences(guide: Guide) -> Iterator[tuple[Distribution, Distribution]]:
    """The posterior and the prior of each layer."""
    prior = guide.model.prior
    for layer, law in enumerate(posteriors(guide, text()[0])):
        yield law, prior(layer, torch.arange(20)).expand(law.batch_shape)


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


@pytest.mark.parametrize("guide", GUIDES)
def test_autocast_leaves_the_posterior_in_float32(guide: type[Guide]) -> None:
    model, built = build(guide=guide)
    objective = Objective(model, built)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(*text())
    terms.loss.backward()
    assert terms.means.dtype == torch.float32
    assert torch.isfinite(terms.loss)
    exact = Objective(model, built)
    torch.manual_seed(0)
    with torch.no_grad():
        assert abs(float(exact(*text()).nll - terms.nll)) < 0.05


@pytest.mark.parametrize("guide", GUIDES)
def test_state_round_trip(guide: type[Guide]) -> None:
    _, one = build(guide=guide)
    one.threshold.fill_(0.7)
    torch.manual_seed(5)
    _, other = build(guide=guide)
    other.load_state_dict(one.state_dict())
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert other.threshold == pytest.approx(0.7)


def test_the_default_guide_starts_on_full_attention_and_undecided() -> None:
    _model, guide = build(guide=DirichletGuide)
    for law in posteriors(guide, text()[0]):
        assert isinstance(law, Dirichlet)
        assert (law.mean.argmax(-1) == 0).float().mean() > 0.95
        totals = law.concentration.sum(-1)
        assert 10 < totals.median() < 40


def test_a_single_mechanism_needs_no_choice() -> None:
    model, guide = build(mechanisms=("window",))
    terms = Objective(model, guide)(*text())
    torch.testing.assert_close(terms.routes, torch.ones(2, 3, 20, 1))
    torch.testing.assert_close(terms.kl, torch.zeros(2), rtol=0, atol=1e-5)


def test_mean_route_hardens_by_the_threshold() -> None:
    model, guide = build()
    tokens = text()[0]
    features: list[Features] = []
    model.network(tokens, lambda layer, f: features.append(f) or guide.posterior(layer, f).mean)
    soft = guide.mean_route(hard=False)(0, features[0])
    hard = guide.mean_route(hard=True)(0, features[0])
    assert torch.equal(guide.mean_route()(0, features[0]), soft)
    guide.threshold.fill_(1.0)
    assert torch.equal(guide.mean_route()(0, features[0]), hard)
    assert hard.unique().tolist() == [0.0, 1.0]


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
