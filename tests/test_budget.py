"""A budget: the controller on a simulated plant, the price that it moves, and its options."""

import json
import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT
from conftest import PAIRS, build, text
from torch import Tensor

import pyro_meta.train as train_command
from pyro_meta import (
    CategoricalGuide,
    Choice,
    CostCategorical,
    CostDirichlet,
    Decision,
    Features,
    Guide,
    LoadCategorical,
    LoadDirichlet,
    LoadGuide,
    PointGuide,
    Prior,
    Transformer,
    UsageError,
)
from pyro_meta.guides import along_means, mean_route, walk
from pyro_meta.inference.controllers import BudgetController, Step
from pyro_meta.inference.dual_ascent import DualController
from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.schedules import KLSchedule, Optimisation, Tightening
from pyro_meta.models import ComputePotential
from pyro_meta.posterior.budget import TOLERANCE, budget_figures, missed
from pyro_meta.training.config import Config, read_options
from pyro_meta.training.run import Run


@pytest.fixture
def network() -> Transformer:
    return build()[0].network


def simulate(budget: float, benefit: float, speed: float, steps: int = 1000) -> float:
    """How far the cost ends from the budget, in a training run made of tokens that follow a price.

    Full attention is worth `benefit` nats to a token, give or take as much. The lead of its logit
    grows or shrinks by at most `speed` learning rates a step, with the inertia of the optimiser.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 2000, generator=generator)
    worth, lead = benefit * (1 + draws[0]), 1.5 + 0.5 * draws[1]
    drive = torch.zeros(2000)
    controller, weight, optim = DualController(), KLSchedule(), Optimisation()
    for step in range(steps):
        progress = (step + 1) / steps
        w = weight(progress)
        noise = 0.01 * float(torch.randn((), generator=generator))
        excess = 0.2 + 0.8 * float((lead > 0).double().mean()) + noise - budget
        price = controller.step(excess, 1000 * w) if w > 1e-5 else 0.0
        drive += 0.1 * (((worth - price) / 0.02).clamp(-1, 1) - 0.4 * lead - drive)
        lead += speed * optim.lr_at(progress) * drive
    return 0.2 + 0.8 * float((lead > 0).double().mean()) - budget


@pytest.mark.parametrize("budget", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("benefit", [0.003, 0.03, -0.03])
@pytest.mark.parametrize("speed", [30.0, 100.0])
def test_the_controller_settles_whatever_it_controls(
    budget: float, benefit: float, speed: float
) -> None:
    assert abs(simulate(budget, benefit, speed)) < 0.01


def test_the_controller_does_not_wind_up() -> None:
    """While no price helps, the price stays at its bound, and leaves it once the cost is met."""
    controller = DualController()
    for _ in range(1000):
        assert abs(controller.step(0.5, 0.01)) <= 0.01
    assert controller.integral <= 0.01
    prices = [controller.step(-0.05, 1.0) for _ in range(30)]
    assert prices[-1] < 0


def step(choices: Tensor, temperature: float = 0.005, has_settled: bool = False) -> Step:
    return Step(choices, choices, 1.0, temperature, True, has_settled, lambda figures: figures)


def of_cost(cost: float, context: int = 24) -> Tensor:
    """Choices between `full`, of cost 1, and nothing, whose mean cost is this."""
    return torch.tensor([cost, 0.0, 0.0]).expand(2, 3, context, 3)


def test_it_reckons_with_hard_routes(network: Transformer) -> None:
    controller = BudgetController(ComputePotential(network, [1.0, 0.3, 0.15]), 0.5)
    tokens = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    choices = tokens.repeat(network.shape.context // 2, 1).expand(2, 3, -1, 3)
    found = controller.step(step(choices, temperature=1e-6))
    assert found["cost_budgeted"] == pytest.approx(0.65)
    assert controller.figures() == {"lambda": 0.0, "surcharge": 0.0}, (
        "a KL that is off is no time to act"
    )
    assert controller.step(step(choices[:, :, :-2])) == {}, "short sequences: another scale"
    assert controller.figures()["lambda"] == 0.0
    controller.step(step(choices))
    assert controller.figures()["lambda"] > 0
    for _ in range(30):
        controller.step(step(of_cost(0.3)))
    assert controller.figures()["lambda"] < 0


def test_prices_are_saved(network: Transformer) -> None:
    prices = [ComputePotential(network, [1.0, 0.3, 0.15], rate=2.0) for _ in range(2)]
    one, other = (BudgetController(price, 0.5) for price in prices)
    for number in range(20):
        one.step(step(of_cost(0.9), has_settled=number > 10))
    other.load_state_dict(one.state_dict())
    prices[1].load_state_dict(prices[0].state_dict())
    for has_settled in (False, True):
        for controller in (one, other):
            controller.step(step(of_cost(0.8), has_settled=has_settled))
    assert one.figures() == other.figures()
    assert one.figures()["lambda"] > 0 < one.figures()["surcharge"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_once_the_guide_has_stopped_the_price_of_deciding_meets_the_budget(
    network: Transformer, share: float
) -> None:
    """On posteriors that no longer change; lambda then stays where it was."""
    _, guide = build()
    costs = guide.execution.costs
    budget = float(torch.lerp(costs.min(), costs.max(), share))
    controller = BudgetController(ComputePotential(network, "macs", rate=1.5), budget)
    generator = torch.Generator().manual_seed(0)
    context = network.shape.context
    for _ in range(400):
        noise = torch.randn(2, 8, context, 3, generator=generator)
        means = torch.softmax(noise + torch.tensor([1.0, 0.5, 0.0]), -1)
        guide.execution.price.fill_(0.7 + controller.surcharge)
        figures = controller.step(step(guide.shares(means), has_settled=True))
    assert figures["cost_budgeted"] == pytest.approx(budget, abs=0.03)  # the batch scatters
    assert controller.figures()["lambda"] == 1.5


@pytest.mark.parametrize(("prior", "guide"), PAIRS)
def test_every_guide_that_learns_feels_the_price(prior: type[Prior], guide: type[Guide]) -> None:
    """Under any prior, and without one: what is dear is pulled down by a positive price."""
    model, built = build(prior=prior, guide=guide)
    learned = [one for one in built.parameters() if one.requires_grad]
    if not learned:
        return
    model.charge_compute()
    assert model.compute is not None
    costs = []
    for rate in (-50.0, 50.0):
        model.compute.rate.fill_(rate)
        torch.manual_seed(0)
        terms = Objective(model, built)(*text())
        terms.loss.backward()
        with torch.no_grad():
            for one in learned:
                one -= 1e-3 * one.grad
        weights = Objective(model, built)(*text()).means
        costs.append(float((weights * model.compute.costs(torch.arange(20))).sum(-1).mean()))
        with torch.no_grad():
            for one in learned:
                one += 1e-3 * one.grad
        built.zero_grad()
    assert costs[1] < costs[0]


@pytest.mark.parametrize("budget", [0.01, 1.5, -1.0, math.nan])
def test_a_budget_that_no_route_meets_is_refused(network: Transformer, budget: float) -> None:
    with pytest.raises(UsageError, match=r"budget: .* between 0\.15 .* and 1 .* unit nominal"):
        BudgetController(ComputePotential(network, "nominal"), budget)


def budget_of(config: Config) -> float:
    (controller,) = config.controllers(*config.build(13))
    assert isinstance(controller, BudgetController)
    return controller.budget


def test_a_budget_goes_with_any_prior(tmp_path: Path) -> None:
    config, saved = read_options(["--budget", "0.6"])
    model, _ = config.build(13)
    assert isinstance(model.prior, LoadCategorical) and model.compute is not None
    assert float(model.compute.rate) == 6.0, "where the controller begins"
    assert budget_of(config) == 0.6
    path = tmp_path / "config.yaml"
    path.write_text(saved)
    again, _ = read_options(["--config", str(path)])
    assert budget_of(again) == 0.6
    named, _ = read_options(["--budget=0.5", "--prior=LoadDirichlet", "--prior.cost=nominal"])
    priced = named.build(13)[0]
    assert priced.compute is not None and priced.compute.costs.spec == "nominal"
    assert float(priced.compute.rate) == 3.0, "where the controller begins"
    plain, _ = read_options(["--prior=CostDirichlet"])
    assert plain.build(13)[0].compute is None
    assert Config(prior=CostDirichlet, budget=0.6).build(13)[0].compute is not None
    free, _ = read_options(["--budget=0.5", "--guide=PointGuide"])
    assert isinstance(free.build(13)[1], PointGuide)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0.01"], "is allowed in the unit macs"),
        (["--budget", "0.5", "--guide", "PriorGuide"], "PriorGuide learns nothing"),
        (["--budget", "0.5", "--guide", "FixedGuide"], "FixedGuide learns nothing"),
    ],
)
def test_budgets_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    config, _ = read_options(words)
    with pytest.raises(UsageError, match=message):
        config.build(13)


def test_an_infeasible_budget_of_measured_costs_is_refused_when_training_begins(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path))
    price = ComputePotential(network, "measured")
    with pytest.raises(UsageError, match="is allowed in the unit measured"):
        BudgetController(price, 1e6).require_reachable()
    run = tmp_path / "run"
    words = [*options(tmp_path)[:-1], "--budget=1e6", "--prior.cost=measured", f"--out={run}"]
    with pytest.raises(UsageError, match="is allowed in the unit measured"):
        train_command.main(words)
    assert not run.exists()


def options(folder: Path) -> list[str]:
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return [*MOMENT, f"--data.path={text}", "--budget=0.7"]


def logged(run: Path) -> list[tuple[float, float]]:
    """Loss and lambda of every step."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(record["loss"], record["lambda"]) for record in map(json.loads, lines)]


def test_a_run_logs_and_keeps_lambda(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_command.main([*options(tmp_path), f"--out={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["prior"] == {"lambda": logged(run)[-1][1], "surcharge": last["surcharge"]}
    assert last["surcharge"] != 0.0
    assert logged(run)[0][1] == 6.0 != logged(run)[-1][1]


@pytest.mark.long
def test_a_killed_run_resumes_with_its_lambda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train_command.main([*options(tmp_path), f"--out={whole}"]) == 0
    original = Run.append_metrics

    def append(self: Run, record: dict[str, Any]) -> None:
        if record["step"] == 11:
            raise KeyboardInterrupt
        original(self, record)

    words = [*options(tmp_path), f"--out={killed}"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", append)
        with pytest.raises(KeyboardInterrupt):
            train_command.main(words)
    assert train_command.main(["--resume", str(killed)]) == 0
    assert logged(killed) == logged(whole)


@pytest.mark.long
@pytest.mark.parametrize("budget", [0.3, 0.6])
@pytest.mark.parametrize(
    "classes",
    [
        (),
        ("--prior=LoadDirichlet",),
        ("--prior=LoadCategorical", "--guide=CategoricalGuide"),
        ("--guide=PointGuide",),
    ],
)
def test_a_trained_router_meets_its_budget(
    tmp_path: Path, budget: float, classes: tuple[str, ...]
) -> None:
    """Within three hundredths of full attention, on validation text."""
    words = [
        *classes,
        "--preset=tiny", "--steps=1000", "--validate_every=0", "--validation_tokens=32768",
        "--accelerator=cpu", "--prior.cost=nominal", f"--budget={budget}",
        f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    assert train_command.main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["cost_nominal_hard"] == pytest.approx(budget, abs=0.03)


@pytest.mark.parametrize("kind", [CategoricalGuide, LoadGuide])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_guide_that_follows_moves_with_the_price_at_once(kind: type[Guide], groups: int) -> None:
    """Its posterior is that of no price, times exp(-lambda c), with c averaged over the context."""
    model, guide = build(prior=LoadCategorical, guide=partial(kind, follows=True), groups=groups)
    assert model.compute is not None
    network, (tokens, _) = model.network, text()
    costs = model.compute.costs(torch.arange(network.shape.context)).mean(0) / groups
    model.compute.rate.fill_(0.0)
    free = walk(model, guide, tokens, along_means()).means[0]
    model.compute.rate.fill_(7.0)
    priced = walk(model, guide, tokens, along_means()).means[0]
    wanted = torch.softmax(free.log() - 7.0 * costs, -1)
    torch.testing.assert_close(priced, wanted)


def test_who_follows_needs_a_price_and_choices() -> None:
    with pytest.raises(UsageError, match="has no price of compute to follow"):
        build(prior=CostCategorical, guide=partial(CategoricalGuide, follows=True))
    with pytest.raises(UsageError, match="is a prior of weights"):
        build(prior=LoadDirichlet, guide=partial(LoadGuide, follows=True))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_followed_price_meets_a_budget_that_tightens(network: Transformer, share: float) -> None:
    """On posteriors that answer to the price as those of a guide that follows it do."""
    compute = ComputePotential(network, "macs")
    context = network.shape.context
    costs = compute.costs(torch.arange(context))  # [T, K]
    least, most = BudgetController(compute, 0.9).reachable
    budget = least + share * (most - least)
    controller = BudgetController(compute, budget, Tightening(0.0, 0.5), is_followed=True)
    generator = torch.Generator().manual_seed(0)
    met = []
    for number in range(100):
        progress = (number + 1) / 100
        noise = torch.randn(2, 8, context, 3, generator=generator)
        lead = torch.tensor([3.0, 0.0, 0.0]) - compute.rate * costs.mean(0)
        means = torch.softmax(2 * noise + lead, -1)
        choices = torch.nn.functional.one_hot(means.argmax(-1), 3).float()
        seen = Step(choices, means, progress, 1e-6, True, False, lambda figures: figures)
        met.append(controller.step(seen)["cost_budgeted"])
    allowed = most + (budget - most) * 0.5
    assert met[25] == pytest.approx(allowed, abs=0.08)
    assert sum(met[-20:]) / 20 == pytest.approx(budget, abs=0.02)


def test_a_budget_falls_between_two_shares_of_training_or_at_once() -> None:
    slowly = Tightening(0.2, 0.6)
    assert [slowly(0.4, at) for at in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx(
        [1.0, 1.0, 0.7, 0.4, 0.4]
    )
    at_once = Tightening(0.5, 0.5)
    assert [at_once(0.4, at) for at in (0.0, 0.4, 0.5, 0.6)] == [1.0, 1.0, 0.4, 0.4]
    assert [Tightening()(0.4, at) for at in (0.0, 1.0)] == [0.4, 0.4]


def test_a_budget_that_nobody_gave_does_not_tighten() -> None:
    with pytest.raises(UsageError, match="tighten: it is given without budget"):
        Config(tighten=Tightening(0.0, 0.5))
    with pytest.raises(UsageError, match=r"tighten\.begin, tighten\.end: 0\.6, 0\.5 given"):
        Tightening(0.6, 0.5)


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_decided_at_once_is_what_posterior_means_decide(follows: bool, groups: int) -> None:
    """Also after price, loads or decisions were moved, in place or by a checkpoint."""
    guide_of = partial(CategoricalGuide, follows=follows)
    model, guide = build(prior=LoadCategorical, guide=guide_of, groups=groups)
    other_model, other = build(prior=LoadCategorical, guide=guide_of, groups=groups)
    assert isinstance(guide, CategoricalGuide) and guide.load_posterior is not None
    tokens = text()[0]

    def require_same() -> Tensor:
        with torch.no_grad():
            walked = walk(model, guide, tokens, along_means(True))
            wanted = torch.stack([one.route for one in walked.decisions])
            found: list[Tensor] = []
            route = mean_route(guide, hard=True)

            def noting(layer: int, features: Features) -> Decision:
                found.append(route(layer, features).route)
                return route(layer, features)

            model.network(tokens, noting)
        assert torch.equal(torch.stack(found), wanted)
        return wanted

    with torch.no_grad():
        for head in guide.heads:
            head[-1].weight.normal_()
        seen = [require_same()]
        assert model.compute is not None
        model.compute.rate.fill_(-4.0)
        seen.append(require_same())
        guide.load_posterior.logits.add_(torch.tensor([0.0, 0.0, 90.0]))
        seen.append(require_same())
        guide.execution.price.fill_(-90.0)
        seen.append(require_same())
        guide.load_state_dict(other.state_dict())
        model.load_state_dict(other_model.state_dict())
        seen.append(require_same())
    moved = [not torch.equal(one, two) for one, two in pairwise(seen)]
    assert moved == [follows, follows, True, True]


class Contrary(CategoricalGuide):
    """Says something else than the class that it comes of."""

    def posterior(self, layer: int, features: Features) -> Choice:
        return Choice(logits=-super().posterior(layer, features).logits)


def test_a_subclass_is_asked_for_its_own_posterior() -> None:
    model, guide = build(prior=LoadCategorical, guide=Contrary)
    tokens = text()[0]
    with torch.no_grad():
        walked = walk(model, guide, tokens, along_means(True))
        route = mean_route(guide, hard=True)
        found: list[Tensor] = []

        def noting(layer: int, features: Features) -> Decision:
            found.append(route(layer, features).route)
            return route(layer, features)

        model.network(tokens, noting)
    for one, decision in zip(found, walked.decisions, strict=True):
        assert torch.equal(one, decision.route)


# -- at the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["macs", "nominal", "measured", "[3,2,1]"])
def test_a_run_that_few_steps_keep_from_its_budget_says_so(
    tmp_path: Path,
    cost: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pyro_meta.network.measured_costs.measure_costs", lambda *_: [1.0, 0.8, 2])
    monkeypatch.setattr("pyro_meta.network.costs.measure_costs", lambda *_: [1.0, 0.8, 2.0])
    run = tmp_path / "run"
    asked = {"[3,2,1]": 2.9, "measured": 1.9}.get(cost, 0.95)
    words = [*options(tmp_path)[:-1], f"--budget={asked}", f"--prior.cost={cost}"]
    assert train_command.main([*words, "--tighten.end=0.5", f"--out={run}"]) == 0
    found = json.loads((run / "summary.json").read_text())["budget"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["asked"] == asked and not found["is_met"]
    assert found["reached"] == pytest.approx(last["cost_budgeted"], abs=0.15)  # of one batch
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("budget: ")]
    assert f"{asked:g} asked, {found['reached']:.3f} reached ({found['of']} " in line
    assert "more than 0.03 apart; what helps: more --steps than 12" in line


@pytest.mark.parametrize(
    ("reached", "of", "tighten_end", "helps"),
    [
        (0.62, "MACs of attention", 0.5, None),
        (0.58, "key visits", 0.0, None),
        (0.64, "MACs of attention", 0.0, "more --steps than 20"),
        (0.91, "MACs of attention", 0.5, "more --steps than 20, or a --tighten.end before 0.5"),
        (0.4, "nominal cost", 0.5, "more --steps than 20"),
        (
            0.4, "key visits", 0.5,
            "more --steps than 20, or without training "
            "pyro_meta.pretrained.convert(..., budget=0.6)",
        ),
    ],
)  # fmt: skip
def test_what_helps_to_meet_a_budget(
    reached: float, of: str, tighten_end: float, helps: str | None
) -> None:
    model, _ = build(prior=LoadCategorical, guide=CategoricalGuide)
    controller = BudgetController(ComputePotential(model.network, "macs"), 0.6)
    figures = budget_figures(controller, {"cost_macs_hard": reached}, of == "key visits")
    line = missed(figures | {"of": of}, 20, tighten_end)
    assert figures["is_met"] == (line is None) == (abs(reached - 0.6) <= TOLERANCE)
    assert line is None if helps is None else str(line).endswith(f"what helps: {helps}")
