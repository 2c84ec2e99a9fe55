"""Guides with routes given in advance, and the guide that is a table."""

import math

import pytest
import torch
from conftest import build, text
from torch import Tensor

from pyro_meta import (
    Features,
    FixedGuide,
    Guide,
    LanguageModel,
    RandomGuide,
    TokenTableGuide,
    UsageError,
)
from pyro_meta.evaluation.executed import executed_figures
from pyro_meta.evaluation.figures import evaluate

LOADS = [[0.1, 0.6, 0.3], [0.0, 0.75, 0.25]]


def features(tokens: Tensor) -> Features:
    state = torch.zeros(*tokens.shape, 16)
    return Features(tokens, state, state, torch.arange(tokens.shape[1]))


def choices(guide: Guide, tokens: Tensor) -> Tensor:
    """One-hot routes [L, B, T, K]."""
    return torch.stack([guide.posterior(layer, features(tokens)).mean for layer in range(2)])


@pytest.fixture
def model() -> LanguageModel:
    return build()[0]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(13, (100, 200), generator=torch.Generator().manual_seed(1))


def test_a_fixed_guide_mixes_as_it_is_told(model: LanguageModel) -> None:
    by_layer = choices(FixedGuide(model, LOADS), text()[0])
    torch.testing.assert_close(by_layer[:, 0, 0], torch.tensor(LOADS))
    assert torch.equal(by_layer, by_layer[:, :1, :1].expand_as(by_layer))
    everywhere = choices(FixedGuide(model, LOADS[0]), text()[0])
    torch.testing.assert_close(everywhere[1, 2, 3], torch.tensor(LOADS[0]))
    torch.testing.assert_close(choices(FixedGuide(model), text()[0])[0, 0, 0], torch.ones(3) / 3)


def test_random_routes_have_their_loads(model: LanguageModel, tokens: Tensor) -> None:
    chosen = choices(RandomGuide(model, LOADS), tokens)
    assert chosen.unique().tolist() == [0.0, 1.0] and (chosen.sum(-1) == 1).all()
    loads = torch.tensor(LOADS)
    error = (loads * (1 - loads) / tokens.numel()).sqrt() + 1e-12
    assert ((chosen.mean((1, 2)) - loads) / error).abs().max() < 4


def test_random_routes_are_unrelated(model: LanguageModel, tokens: Tensor) -> None:
    """Across layers, neighbouring positions, sequences that share a start, and seeds."""
    window = choices(RandomGuide(model, LOADS[0]), tokens)[..., 1]  # [L, B, T]
    other = choices(RandomGuide(model, LOADS[0], seed=1), tokens)[..., 1]
    shifted = choices(RandomGuide(model, LOADS[0]), (tokens + 1) % 13)[..., 1]
    pairs = [
        (window[0], window[1]),
        (window[0, :, 1:], window[0, :, :-1]),
        (window, other),
        (window[:, :, 1:], shifted[:, :, 1:]),
    ]
    for one, two in pairs:
        correlation = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
        assert abs(correlation) * math.sqrt(one.numel()) < 4


def test_random_routes_depend_on_the_prefix_alone(model: LanguageModel, tokens: Tensor) -> None:
    guide = RandomGuide(model, LOADS)
    whole = choices(guide, tokens)
    assert torch.equal(choices(guide, tokens), whole)
    assert torch.equal(choices(guide, tokens[:, :50]), whole[:, :, :50])
    assert torch.equal(choices(guide, tokens.flip(0)), whole.flip(1))


def test_a_table_knows_the_token_and_nothing_else(model: LanguageModel) -> None:
    guide = TokenTableGuide(model)
    tokens = torch.tensor([[3, 5, 3, 5, 5]])
    dist = guide.posterior(0, features(tokens))
    assert torch.equal(dist.mean[0, 0], dist.mean[0, 2])
    assert not torch.equal(dist.mean[0, 0], dist.mean[0, 1])
    assert (dist.mean.argmax(-1) == 0).all()
    torch.testing.assert_close(
        dist.concentration.sum(-1), torch.full((1, 5), 5.15), rtol=0.2, atol=0
    )


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_that_no_hash_can_hold_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"guide.seed: {seed} given"):
        RandomGuide(build()[0], seed=seed)


@pytest.mark.parametrize("guide", [FixedGuide, RandomGuide])
@pytest.mark.parametrize(
    ("loads", "message"),
    [
        ([0.5, 0.5], r"guide.loads: \[0.5, 0.5\] given; one share for each of 3 mechanisms"),
        ([[0.2, 0.3, 0.5]], "1 lists given; one for each of 2 layers"),
        ([0.9, 0.3, -0.2], "shares of at least 0 that sum to 1"),
        ([0.5, 0.3, 0.1], "shares of at least 0 that sum to 1"),
        ([[0.2, 0.3, 0.5], 0.1], "one share for each of 3"),
        ([], "0 lists given"),
    ],
)
def test_bad_loads_are_refused(model: LanguageModel, guide, loads, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        guide(model, loads)


def test_a_fixed_mixture_stays_a_mixture() -> None:
    loads = [0.5, 0.3, 0.2]
    model, _ = build()
    guide = FixedGuide(model, loads)
    guide.harden_below(1.0)
    tokens, targets = text()
    figures = evaluate(model, guide, (tokens, targets), batch=2)
    assert list(figures["load"].values()) == pytest.approx(loads)
    assert figures["val_nll_hard"] == figures["val_nll_soft"]
    assert figures["cost_nominal_soft"] == pytest.approx(0.5 + 0.3 * 0.3 + 0.2 * 0.15)
    assert figures["cost_nominal_hard"] == pytest.approx(1 + 0.3 + 0.15)
    assert figures["hard_fraction"] == 0.0


def test_what_has_no_load_in_a_mixture_is_not_paid_for() -> None:
    model, _ = build()
    guide = FixedGuide(model, [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    figures = evaluate(model, guide, text(), batch=2)
    assert figures["cost_nominal_hard"] == pytest.approx(((0.3 + 0.15) + 1) / 2)
    windows = text(2, model.network.shape.context)
    costs = evaluate(model, guide, windows, batch=2)["cost_macs_hard"]
    section = executed_figures(model, guide, windows, batch=2, repeats=1)
    assert section["macs_ratio_attention"] == pytest.approx(costs, rel=1e-6)
