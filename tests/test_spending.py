"""Budgets that are moved without training anew: prices, key visits, routes that labels tell."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import build
from conftest import text as own_text
from pretrained_models import MODELS, guide_of, logits_of, refused, text, wrapped
from slow import long
from torch import Tensor

from pyro_meta import (
    CategoricalGuide,
    DirichletGuide,
    FixedGuide,
    Guide,
    LoadCategorical,
    LoadGuide,
    PointGuide,
    UsageError,
)
from pyro_meta.evaluation.beside import routes_beside
from pyro_meta.evaluation.oracle import choices_of_least_harm, harms_by_label
from pyro_meta.evaluation.spending import at_price, measured_spending, price_for, visits_at
from pyro_meta.guides.spending import Spending
from pyro_meta.network.leaving_full import along, fully
from pyro_meta.pretrained import PretrainedNetwork, convert, load_routes, restore, save_routes
from pyro_meta.pretrained.conversion import deployed


def pair(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return tokens[:, :-1], tokens[:, 1:]


def visits_of(guide: Guide, windows: tuple[Tensor, Tensor]) -> float:
    """As the table of a run has them."""
    rows = routes_beside(guide.model, guide, windows, 2)
    return float(rows["routes, hard"]["visits"])


def routed(name: str = "Llama", kind: Any = CategoricalGuide, **more: Any) -> Guide:
    if kind.of_choices is not False:
        more = {"prior": LoadCategorical, **more}
    return guide_of(wrapped(MODELS[name]()), kind, **more)


@pytest.mark.parametrize("name", ["Llama", *long("GPT-2")])
@pytest.mark.parametrize("kind", [CategoricalGuide, DirichletGuide, PointGuide, LoadGuide])
def test_visits_along_the_curve_are_those_that_routes_make(name: str, kind: Any) -> None:
    guide, windows = routed(name, kind), pair(text(4, 41))
    curve = measured_spending(guide.model, guide, windows, 2)
    own = float(guide.execution.price)
    assert len(curve.visits) > 4 and curve.visits[-1] == pytest.approx(1)
    assert curve.visits[0] == pytest.approx(
        float(visits_at(guide.model.network, 40).sum(0).min()), abs=1e-6
    )
    for visits, price in zip(curve.visits, curve.prices, strict=True):
        with at_price(guide, price):
            # tokens that turn meet other features; of a split by heads there are none
            near = 1e-6 if kind is LoadGuide else 0.06
            assert visits_of(guide, windows) == pytest.approx(visits, abs=near)
    assert float(guide.execution.price) == own


@pytest.mark.parametrize("kind", [CategoricalGuide, LoadGuide])
@pytest.mark.parametrize("share", [0.01, 0.02, 0.04, 0.5, 0.96, 0.98, 0.99])
def test_budgets_near_the_ends_of_the_curve_are_met_too(share: float, kind: Any) -> None:
    """The ends are prices at which the last token turns, and no figures beyond all of them."""
    guide, windows = routed(kind=kind), pair(text(4, 41))
    curve = measured_spending(guide.model, guide, windows, 2)
    least, most = curve.visits[0], curve.visits[-1]
    wanted = least + share * (most - least)
    with at_price(guide, curve.price_for(wanted)):
        gaps = [b - a for a, b in zip(curve.visits, curve.visits[1:], strict=False)]
        assert visits_of(guide, windows) == pytest.approx(wanted, abs=max(gaps) + 0.02)
    steps = [a - b for a, b in zip(curve.prices, curve.prices[1:], strict=False)]
    assert max(steps) < 100, "between two points a straight line means something"


@pytest.mark.parametrize("visits", [0.45, 0.7])
def test_a_budget_is_met_by_passes(visits: float) -> None:
    guide, windows = routed(), pair(text(6, 41))
    guide.execution.price.fill_(0.25)
    rows = routes_beside(guide.model, guide, windows, 2, budgets=[visits, 0.9])
    assert list(rows) == [
        f"routes, hard, at {visits}", f"random tokens, the same loads, at {visits}",
        "routes, hard, at 0.9", "random tokens, the same loads, at 0.9", "full", "window",
    ]  # fmt: skip
    found = rows[f"routes, hard, at {visits}"]
    assert found["visits"] == pytest.approx(visits, abs=0.01)
    assert float(guide.execution.price) == 0.25, "as it was"
    with at_price(guide, found["price"]):
        assert visits_of(guide, windows) == found["visits"]


def test_our_own_network_has_prices_too() -> None:
    model, guide = build(LoadCategorical, CategoricalGuide)
    windows = own_text(4, 24)
    price = price_for(model, guide, windows, 2, 0.5)
    with at_price(guide, price):
        assert visits_of(guide, windows) == pytest.approx(0.5, abs=0.06)


def test_mixtures_have_no_price() -> None:
    guide = guide_of(wrapped(MODELS["Llama"]()), FixedGuide)
    with pytest.raises(UsageError, match="mixes"):
        measured_spending(guide.model, guide, pair(text()), 2)


@pytest.mark.parametrize(
    ("visits", "prices"),
    [
        ([], []), ([0.2, 0.1], [1, 2]), ([0.1, 0.2], [1, 2]), ([0.1], [1, 2]),
        ([0.1, float("nan"), 1.0], [2, 1, 0]), ([0.1, 0.2], [float("inf"), 1]),
        ([[0.1], [0.2]], [2, 1]), (["0.1", "0.2"], [2, 1]),
    ],
)  # fmt: skip
def test_curves_that_are_none(visits: Any, prices: Any) -> None:
    with pytest.raises(UsageError, match="rise as prices fall"):
        Spending(visits, prices)


def test_between_points_by_a_straight_line() -> None:
    curve = Spending([0.2, 0.4, 1.0], [10.0, 2.0, -4.0])
    assert curve.price_for(0.3) == pytest.approx(6) and curve.price_for(1.0) == -4
    assert curve.price_for(0.1999) == 10 and curve.price_for(1.0001) == -4, "to rounding"
    for beyond in (0.19, 1.01, float("nan"), -1, "0.3", None, True):
        refused(lambda beyond=beyond: curve.price_for(beyond), repr(beyond), "0.200 to 1.000")  # type: ignore[misc]


# -- at run time ---------------------------------------------------------------------------------


def test_a_converted_model_is_moved_to_a_budget(tmp_path: Path) -> None:
    guide, windows = routed(), pair(text(4, 41))
    made = guide.model.network.hf_model  # type: ignore[attr-defined]
    refused(lambda: convert(made, guide, budget=0.5), "0.5", "measured_spending")
    guide.spending = measured_spending(guide.model, guide, windows, 2)
    convert(made, guide, budget=0.5)
    assert visits_of(guide, windows) == pytest.approx(0.5, abs=0.06)
    wanted = logits_of(made, windows[0])
    save_routes(made, tmp_path)
    restore(made)
    again = load_routes(MODELS["Llama"](), tmp_path)
    assert torch.equal(logits_of(again, windows[0]), wanted), "the price was saved"
    moved = load_routes(MODELS["Llama"](), tmp_path, budget=0.9)
    theirs = deployed(moved).guide
    assert theirs.spending == guide.spending
    assert theirs.execution.price < guide.execution.price
    refused(lambda: load_routes(MODELS["Llama"](), tmp_path, budget=0.1), "0.1", "allowed")


def test_a_budget_that_fails_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    guide, windows = routed(), pair(text(4, 41))
    guide.spending = measured_spending(guide.model, guide, windows, 2)

    def failing(*given: Any) -> None:
        raise UsageError("no")

    monkeypatch.setattr("pyro_meta.pretrained.conversion.require_faithful", failing)
    with pytest.raises(UsageError, match="no"):
        convert(guide.model.network.hf_model, guide, budget=0.5)  # type: ignore[attr-defined]
    assert float(guide.execution.price) == 0


def test_routes_of_a_damaged_curve_are_refused(tmp_path: Path) -> None:
    guide, windows = routed(), pair(text(4, 41))
    guide.spending = measured_spending(guide.model, guide, windows, 2)
    save_routes(convert(guide.model.network.hf_model, guide), tmp_path)  # type: ignore[attr-defined]
    for wrong in ({"visits": [1, 0]}, 3, {"visits": [1.0, 0.5], "prices": [0, 1]}):
        found = json.loads((tmp_path / "routes.json").read_text()) | {"spending": wrong}
        (tmp_path / "routes.json").write_text(json.dumps(found))
        refused(lambda: load_routes(MODELS["Llama"](), tmp_path), "cannot be built")


# -- what labels tell ----------------------------------------------------------------------------


def harm_of(network: PretrainedNetwork, windows: Any, at: tuple[int, ...], k: int) -> float:
    """By how much the loss rises if one token's route moves a little way to k: by two passes."""
    step = 0.01  # norms are in float32
    tokens, targets = windows

    def loss(share: float) -> float:
        weights = [one.detach().double() for one in fully(network, tokens)]
        layer, *place = at
        full = network.mechanism_names.index("full")
        weights[layer][(*place, full)] = 1 - share
        weights[layer][(*place, k)] = share
        with torch.no_grad():
            logits = network(tokens, along(weights)).double()
            return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))

    return (loss(step) - loss(-step)) / (2 * step)


@pytest.mark.parametrize("groups", ["kv", 1])
def test_harms_are_those_of_one_token_moved(groups: Any) -> None:
    made = MODELS["Llama"]().double()
    network = wrapped(made, groups=groups)
    windows = pair(text(2, 20))
    harms = harms_by_label(network, *windows)
    assert harms.shape == (3, 2, 19, 2 if groups == "kv" else 1, 2)
    assert not harms[..., network.mechanism_names.index("full")].any()
    other = network.mechanism_names.index("window")
    for at in ((0, 0, 18, 0), (1, 1, 12, -1), (2, 0, 15, 0)):
        place = at if groups == "kv" else at[:-1]
        wanted = harm_of(network, windows, place, other)
        assert float(harms[(*at, other)]) == pytest.approx(wanted, rel=2e-2, abs=5e-5)


def test_harms_of_early_tokens_are_zero() -> None:
    """A window that sees everything is full attention."""
    network = wrapped(MODELS["Llama"]())
    harms = harms_by_label(network, *pair(text(2, 20)))
    assert harms[:, :, :4].abs().max() < 1e-4 < harms[:, :, 10:].abs().max()


def test_choices_of_least_harm_meet_the_visits_and_are_the_best() -> None:
    network = wrapped(MODELS["Llama"]())
    draw = torch.Generator().manual_seed(0)
    harms = torch.rand(3, 2, 30, 2, generator=draw)
    seen = visits_at(network, 30)
    full, window = (network.mechanism_names.index(name) for name in ("full", "window"))
    for visits in (0.5, 0.8, 1.0):
        choices = choices_of_least_harm(network, harms, visits)
        made = torch.stack([seen[t, choices[:, :, t]] for t in range(30)], 2).sum(2).mean()
        assert visits <= float(made) < visits + 0.02
        rate = harms / (seen[:, full] - seen[:, window]).clamp(min=1e-12)[:, None]
        left, kept = rate[choices == window], rate[choices == full]
        if len(left):
            assert left.max() <= kept.min()
    assert (choices_of_least_harm(network, harms, 1.0)[:, :, 10:] == full).all()


def test_random_tokens_keep_the_loads_of_every_text_and_head() -> None:
    from pyro_meta.evaluation.beside import _along, _dealt

    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(2, 3, 1, 2, generator=generator)
    choices = (torch.rand(2, 3, 300, 2, generator=generator) < chance).to(torch.int8)
    route = _along(_dealt(choices, 0))
    dealt = []
    for layer in range(2):
        features: Any = type("F", (), {"tokens": torch.zeros(3, 300)})
        dealt.append(route(layer, features).route)
    found = torch.stack(dealt)
    assert not torch.equal(found, choices.long())
    assert torch.equal(found.sum(2), choices.long().sum(2)), "of each text and head"
    for begin in (0, 128, 256):
        near = slice(begin, begin + 128)
        assert torch.equal(found[:, :, near].sum(2), choices[:, :, near].long().sum(2))
    alike = choices[:, :, :1].expand_as(choices)
    assert torch.equal(_dealt(alike, 0), alike), "nothing to deal where all tokens are alike"
