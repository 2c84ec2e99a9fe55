"""A budget: the controller on a simulated plant, the prior that it moves, and its options."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import MOMENT
from conftest import build, text
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import kl_divergence

import pyro_meta.train as train_command
from pyro_meta import BudgetDirichlet, CostDirichlet, Transformer, UsageError
from pyro_meta.inference.controllers import BudgetController, Step
from pyro_meta.inference.dual_ascent import DualController
from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.schedules import KLSchedule, Optimisation
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


def test_the_pull_of_a_budget_does_not_saturate(network: Transformer) -> None:
    """Of a decided token: the KL of full over that of the cheapest grows with lambda."""

    def charge(prior: CostDirichlet | BudgetDirichlet) -> float:
        p = prior(0, torch.tensor([23]))
        full, linear = (
            Dirichlet(0.05 + 20.0 * torch.nn.functional.one_hot(torch.tensor(k), 3)) for k in (0, 2)
        )
        return float(kl_divergence(full, p) - kl_divergence(linear, p))

    nominal = [1.0, 0.3, 0.15]
    saturated = [charge(CostDirichlet(network, rate, cost=nominal)) for rate in (30.0, 300.0)]
    assert saturated[1] == pytest.approx(saturated[0], rel=0.05)
    prior = BudgetDirichlet(network, cost=nominal)
    charges = []
    for rate in (-300.0, -30.0, -3.0, 0.0, 3.0, 30.0, 300.0):
        prior.rate.fill_(rate)
        charges.append(charge(prior))
    assert charges == sorted(charges)
    assert charges[3] == pytest.approx(0, abs=1e-4)
    assert charges[6] == pytest.approx(10 * charges[5], rel=0.05)


def test_at_first_it_is_a_cost_dirichlet(network: Transformer) -> None:
    prior = BudgetDirichlet(network)
    prior.rate.fill_(2.5)
    law, same = (p(0, torch.arange(24)) for p in (prior, CostDirichlet(network, rate=2.5)))
    torch.testing.assert_close(law.concentration, same.concentration)


def step(choices: Tensor, kl_weight: float = 0.005, has_settled: bool = False) -> Step:
    return Step(choices, kl_weight, True, has_settled, lambda figures: figures)


def of_cost(cost: float, context: int = 24) -> Tensor:
    """Choices between `full`, of cost 1, and nothing, whose mean cost is this."""
    return torch.tensor([cost, 0.0, 0.0]).expand(2, 3, context, 3)


def test_it_reckons_with_hard_routes(network: Transformer) -> None:
    prior = BudgetDirichlet(network, cost=[1.0, 0.3, 0.15])
    controller = BudgetController(prior, 0.5)
    tokens = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    choices = tokens.repeat(network.shape.context // 2, 1).expand(2, 3, -1, 3)
    found = controller.step(step(choices, kl_weight=1e-6))
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
    priors = [BudgetDirichlet(network, cost=[1.0, 0.3, 0.15]) for _ in range(2)]
    one, other = (BudgetController(prior, 0.5) for prior in priors)
    for number in range(20):
        one.step(step(of_cost(0.9), has_settled=number > 10))
    other.load_state_dict(one.state_dict())
    priors[1].load_state_dict(priors[0].state_dict())
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
    _, guide = build(prior=BudgetDirichlet)
    costs = guide.execution.costs
    budget = float(torch.lerp(costs.min(), costs.max(), share))
    prior = BudgetDirichlet(network)
    prior.rate.fill_(1.5)
    controller = BudgetController(prior, budget)
    generator = torch.Generator().manual_seed(0)
    context = network.shape.context
    for _ in range(400):
        noise = torch.randn(2, 8, context, 3, generator=generator)
        means = torch.softmax(noise + torch.tensor([1.0, 0.5, 0.0]), -1)
        guide.execution.price.fill_(0.7 + controller.surcharge)
        figures = controller.step(step(guide.execution.shares(means), has_settled=True))
    assert figures["cost_budgeted"] == pytest.approx(budget, abs=0.03)  # the batch scatters
    assert controller.figures()["lambda"] == 1.5


def test_every_guide_with_a_kl_feels_the_price() -> None:
    """Gradients of the heads differ between two prices."""
    model, guide = build(prior=BudgetDirichlet)
    found = []
    for rate in (-50.0, 50.0):
        model.prior.rate.fill_(rate)
        torch.manual_seed(0)
        Objective(model, guide)(*text()).loss.backward()
        found.append(guide.heads[0][-1].bias.grad.clone())
        guide.zero_grad()
    full = found[1][0] - found[0][0]  # a dear mechanism is pulled down by a positive price
    assert full > 0


@pytest.mark.parametrize("budget", [0.01, 1.5, -1.0, math.nan])
def test_a_budget_that_no_route_meets_is_refused(network: Transformer, budget: float) -> None:
    with pytest.raises(UsageError, match=r"budget: .* between 0\.15 .* and 1 .* unit nominal"):
        BudgetController(BudgetDirichlet(network, cost="nominal"), budget)


def budget_of(config: Config) -> float:
    (controller,) = config.controllers(*config.build(13))
    assert isinstance(controller, BudgetController)
    return controller.budget


def test_a_budget_chooses_the_prior(tmp_path: Path) -> None:
    config, saved = read_options(["--budget", "0.6"])
    assert yaml.safe_load(saved)["prior"]["class_path"].endswith("BudgetDirichlet")
    assert isinstance(config.build(13)[0].prior, BudgetDirichlet)
    assert budget_of(config) == 0.6
    path = tmp_path / "config.yaml"
    path.write_text(saved)
    again, _ = read_options(["--config", str(path)])
    assert budget_of(again) == 0.6
    named, _ = read_options(["--budget=0.5", "--prior=BudgetDirichlet", "--prior.cost=nominal"])
    assert named.build(13)[0].prior.costs.spec == "nominal"
    assert isinstance(Config(budget=0.6).build(13)[0].prior, BudgetDirichlet)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0.5", "--prior", "PaperDirichlet"], "PaperDirichlet has none to meet"),
        (["--budget", "0.5", "--prior", "CostDirichlet"], "CostDirichlet has none to meet"),
        (["--prior", "BudgetDirichlet"], "budget: none given"),
        (["--budget", "0.01"], "is allowed in the unit macs"),
        (["--budget", "0.5", "--guide", "PointGuide"], "that of PointGuide is always 0"),
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
    prior = BudgetDirichlet(network, cost="measured")
    with pytest.raises(UsageError, match="is allowed in the unit measured"):
        BudgetController(prior, 1e6).require_reachable()
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
    assert logged(run)[0][1] == 0.0 != logged(run)[-1][1]


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
def test_a_trained_router_meets_its_budget(tmp_path: Path, budget: float) -> None:
    """Within a percentage point of full attention, on validation text."""
    words = [
        "--preset=tiny", "--steps=1000", "--validate_every=0", "--validation_tokens=32768",
        "--accelerator=cpu", "--prior=BudgetDirichlet", "--prior.cost=nominal",
        f"--budget={budget}", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    assert train_command.main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["cost_nominal_hard"] == pytest.approx(budget, abs=0.01)
