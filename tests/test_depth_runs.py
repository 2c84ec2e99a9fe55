"""Runs with depth gates: options, what is logged, resuming, the file of the posterior, belief."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import MOMENT, error_line, run_here
from test_depth import Leaky, Prefix, gated
from torch import Tensor

import pyro_meta.train as train_command
from pyro_meta import (
    BetaDepthGuide,
    Features,
    Guide,
    LanguageModel,
    PointDepthGuide,
    UsageError,
    report,
)
from pyro_meta.analysis.of_run import PASSAGE_TOKENS
from pyro_meta.analysis.reading import Reading
from pyro_meta.contracts import broken
from pyro_meta.data.corpus import Truth
from pyro_meta.data.vocabulary import CharVocabulary
from pyro_meta.distributions import GateExecution
from pyro_meta.evaluation.figures import evaluate, evaluating
from pyro_meta.evaluation.known_truth import score_against_truth
from pyro_meta.guides import along_means, mean_route, walk
from pyro_meta.inference.controllers import BudgetController, GateController, Step
from pyro_meta.inference.elbo import Objective
from pyro_meta.network.route import Decision
from pyro_meta.posterior import nuts
from pyro_meta.posterior.exact import Handful
from pyro_meta.posterior.importance import block_terms
from pyro_meta.posterior.one_token import Effort, try_all
from pyro_meta.posterior.readout import write_posterior
from pyro_meta.training.config import Config, read_options
from pyro_meta.training.devices import make_fabric
from pyro_meta.training.loop import _choices, _figures, train
from pyro_meta.training.run import Run
from pyro_meta.training.settings import Gates, Readout

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 40


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run of a moment whose gates learn from the start."""
    (tmp_path / "text.txt").write_text(TEXT)
    return [
        *MOMENT, f"--data.path={tmp_path / 'text.txt'}", "--optim.router_begin=0",
        "--kl.begin=0", "--gate.start=0.5", "--depth=beta",
    ]  # fmt: skip


# -- options ---------------------------------------------------------------------------------------


def test_options_reach_prior_and_guide() -> None:
    config, yaml = read_options(
        ["--preset=tiny", "--depth=beta", "--gate.run=.2", "--gate.strength=2", "--gate.start=-1",
         "--gate.price=.5"]
    )  # fmt: skip
    model, guide = config.build(13)
    assert model.depth is not None and isinstance(guide.depth, BetaDepthGuide)
    assert (model.depth.run, model.depth.strength, model.depth.penalty) == (0.2, 2.0, 0.0)
    assert float(guide.gate_execution.price) == 0.5
    assert float(guide.depth.heads[0][-1].bias[0].detach()) == -1.0
    assert "depth: beta" in yaml
    config, _ = read_options(["--preset=tiny", "--depth=point", "--gate.penalty=.2"])
    model, guide = config.build(13)
    assert model.depth is not None and isinstance(guide.depth, PointDepthGuide)
    assert model.depth.penalty == 0.2


def test_by_default_there_are_no_gates() -> None:
    model, guide = read_options(["--preset=tiny"])[0].build(13)
    assert model.depth is None and guide.depth is None
    assert not any("depth" in name for name in (*model.state_dict(), *guide.state_dict()))


def test_a_guide_of_ones_own_is_named_by_its_import_path() -> None:
    config, _ = read_options(["--preset=tiny", "--depth=test_depth.Prefix"])
    assert type(config.build(13)[1].depth).__name__ == Prefix.__name__


class Startless(PointDepthGuide):
    """Its constructor takes no `start`."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth=bta"], "did you mean beta"),
        (["--depth=pyro_meta.Guide"], "is not a depthguide"),
        (["--gate.run=.2"], "gate.run: 0.2 given, and it does nothing with depth: none"),
        (["--depth=point", "--gate.strength=2"], "gate.strength: 2.0 given, and it does nothing"),
        (["--depth=beta", "--gate.penalty=.2"], "gate.penalty: 0.2 given, and it does nothing"),
        (["--depth=beta", "--gate.price=.inf"], "gate.price: inf"),
        (["--depth=beta", "--gate.price=x"], "gate.price"),
        (["--depth=beta", "--gate.price=1e40"], "gate.price: 1e+40"),
        (["--depth=test_depth_runs.Startless"], "must be made of a model and `start`"),
        (["--depth=beta", "--gate.start=.nan"], "gate.start: nan given"),
        (["--gate.skip=.2"], "gate.skip: 0.2 given, and it does nothing with depth: none"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read_options(["--preset=tiny", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth=beta", "--layers=1"], "layers: 1 given"),
        (["--depth=beta", "--gate.run=1.5"], "gate.run: 1.5 given"),
        (["--depth=beta", "--gate.skip=.5"], "gate.skip: 0.5 given; above 0 and below 0.5"),
        (["--depth=point", "--gate.skip=0"], "gate.skip: 0.0 given; above 0 and below 0.5"),
        (["--depth=beta", "--gate.strength=0"], "gate.strength: 0.0 given"),
        (["--depth=point", "--gate.penalty=-1"], "gate.penalty: -1.0 given"),
    ],
)
def test_values_out_of_range_are_refused_when_the_model_is_built(
    words: list[str], message: str
) -> None:
    config, _ = read_options(["--preset=tiny", *words])
    with pytest.raises(UsageError, match=re.escape(message)):
        config.build(13)


def test_a_refusal_is_one_line(words: list[str], tmp_path: Path) -> None:
    done = run_here("train", *words, "--layers=1", f"--out={tmp_path / 'run'}")
    assert "depth gates need at least 2" in error_line(done)
    assert not (tmp_path / "run").exists()


def test_gates_that_see_the_future_are_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="depth: Leaky: the future is seen"):
        train_command.main([*words[:-2], "--depth=test_depth.Leaky", f"--out={tmp_path / 'run'}"])


def test_every_option_of_the_gates_is_of_use_somewhere() -> None:
    for depth, used in {"beta": {"run", "strength"}, "point": {"penalty"}}.items():
        for name in ("run", "strength", "penalty"):
            gate = Gates(**{name: 0.123})
            if name in used:
                Config(depth=depth, gate=gate)
            else:
                with pytest.raises(UsageError, match=f"gate.{name}"):
                    Config(depth=depth, gate=gate)


# -- training --------------------------------------------------------------------------------------


class _Killed(Exception):
    """As if the process ended here."""


def trained(words: list[str], folder: Path, kill_at: int | None = None) -> tuple[Run, Any]:
    """Train in this process, without the evaluation; on from the checkpoint if there is one."""
    config, yaml = read_options(words)
    corpus = config.data.corpus()
    torch.manual_seed(config.seed)
    model, guide = config.build(corpus.vocabulary.size, corpus.vocabulary.separators)
    is_resumed = folder.exists()
    made = Run.open(folder) if is_resumed else Run.create(folder, yaml, corpus)

    def watch(record: dict[str, Any]) -> None:
        if record["step"] == kill_at:
            raise _Killed

    controllers = config.controllers(model, guide)
    fabric = make_fabric(config)
    train(config, corpus, made, fabric, model, guide, controllers, watch, is_resumed)
    return made, (model, guide)


def lines(run: Run) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key != "tokens_per_second"}
        for record in run.metrics()
    ]


@pytest.mark.parametrize("depth", ["beta", "point"])
def test_a_killed_run_resumes_to_the_same_losses(
    words: list[str], tmp_path: Path, depth: str
) -> None:
    words = [*words, f"--depth={depth}", "--budget=0.5", "--gate.skip=0.3"]
    whole, (_, guide) = trained(words, tmp_path / "whole")
    with pytest.raises(_Killed):
        trained(words, tmp_path / "killed", kill_at=7)
    resumed, (_, again) = trained(words, tmp_path / "killed")
    assert lines(resumed) == lines(whole)
    for name, value in guide.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_gates_are_logged_and_counted(words: list[str], tmp_path: Path) -> None:
    made, (model, _) = trained(words, tmp_path / "run")
    records = list(made.metrics())
    assert all(0 < record["gate_open"] <= 1 and record["depth_kl"] > 0 for record in records)
    for record in records:
        parts = ("nll", "kl", "load_kl", "depth_kl", "compute")
        assert record["elbo"] == pytest.approx(-sum(record[part] for part in parts))
        total = sum(record[part] for part in parts[1:])
        assert record["loss"] == pytest.approx(record["nll"] + record["kl_weight"] * total)
    assert any("depth" in record for record in records), "a validation"
    assert model.depth is not None


def shares(shut: Tensor) -> Step:
    """A step in which these tokens [L, N] would skip a layer."""
    choices = (~shut).float()[:, None, :, None]
    return Step(choices, choices, 1.0, 0.005, True, False, lambda figures: figures)


def test_the_price_moves_until_the_share_is_met() -> None:
    """Gates that do not move, each at a price of its own."""
    execution = GateExecution()
    controller = GateController(execution, 4, 0.3)
    means = torch.cat([torch.ones(1, 1000), torch.rand(3, 1000) * 0.3 + 0.7])
    for _ in range(300):
        controller.step(shares(~execution.decide(means)))
    shut = ~execution.decide(means)
    assert float(shut.float().mean()) == pytest.approx(0.3, abs=0.01)
    before = float(execution.price)
    assert before > 0
    for _ in range(1000):
        controller.step(shares(torch.zeros(4, 10, dtype=torch.bool)))  # open to the last digit
    assert float(execution.price) == 20
    execution.price.fill_(before)
    found = GateController(execution, 4).step(shares(shut))
    assert float(execution.price) == before == found["gate_price"], "no target"
    assert found["gate_shut"] == pytest.approx(0.3, abs=0.01)


def test_a_run_meets_its_share(words: list[str], tmp_path: Path) -> None:
    steps = ["--steps=80", "--optim.router_begin=.2", "--gate.skip=.25"]
    made, _ = trained([*words, *steps], tmp_path / "run")
    last = list(made.metrics())[-10:]
    assert sum(record["gate_shut"] for record in last) / 10 == pytest.approx(0.25, abs=0.05)
    first = next(made.metrics())
    assert first["gate_shut"] == 0 and first["gate_price"] == 0 != last[-1]["gate_price"]


def test_an_ungated_run_logs_no_gates(words: list[str], tmp_path: Path) -> None:
    plain = [word for word in words if not word.startswith(("--gate", "--depth"))]
    made, _ = trained(plain, tmp_path / "run")
    assert not any({"gate_open", "depth_kl", "depth"} & record.keys() for record in made.metrics())


def test_the_penalty_shuts_gates(words: list[str], tmp_path: Path) -> None:
    def last(penalty: float) -> float:
        made, _ = trained(
            [*words, "--depth=point", f"--gate.penalty={penalty}", "--optim.router=20"],
            tmp_path / f"run{penalty}",
        )
        return float(list(made.metrics())[-1]["gate_open"])

    assert last(2.0) < last(0.0) - 0.1


def test_a_budget_counts_no_layer_that_a_token_skips() -> None:
    model, guide = gated()
    model.charge_compute()
    tokens = torch.randint(13, (4, 24))
    terms = [Objective(model, guide)(tokens, tokens) for _ in range(2)]
    choices = _choices(guide, terms)
    assert choices.shape == (3, 8, 24, 3)
    shut = choices.sum(-1) == 0
    means = torch.cat([one.gate_means for one in terms], 1)
    assert torch.equal(shut, means <= 0.5) and shut.any() and not shut[0].any()
    controller = BudgetController(model.compute, 0.5)  # type: ignore[arg-type]
    everything = guide.shares(torch.cat([one.means for one in terms], 1))
    counted, in_all = (
        controller.step(Step(one, one, 1.0, 0.005, True, False, lambda figures: figures))[
            "cost_budgeted"
        ]
        for one in (choices, everything)
    )
    assert counted < in_all
    costs = {"nominal": torch.ones(24, 3), "macs": torch.ones(24, 3)}
    figures = _figures(model, terms, costs)
    opened = torch.cat([one.gates for one in terms], 1)
    assert figures["gate_open"] == pytest.approx(float(opened.mean()))
    assert figures["cost_macs"] == pytest.approx(float(opened.mean()), rel=1e-5)


# -- what a run leaves -----------------------------------------------------------------------------


def test_the_command_leaves_everything_and_resumes_it(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train_command.main([*words, "--gate.skip=.25", f"--out={folder}"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["depth"]) == {
        "skipped_hard", "skipped_soft", "skipped_by_layer", "uncertainty", "kl_per_token",
    }  # fmt: skip
    assert (folder / "posterior.nc").is_file()
    model, guide, *_ = Run.open(folder).load()
    assert model.depth is not None and isinstance(guide.depth, BetaDepthGuide)
    report.main([str(folder), "--belief=false"])
    assert 'id="section-depth"' in (folder / "report" / "report.html").read_text()
    assert (folder / "report" / "skipped.png").is_file()
    found = json.loads((folder / "report" / "report.json").read_text())
    page = (folder / "report" / "report.html").read_text()
    share = 1 - page.count(' by" style=') / page.count('<span class="k')
    assert "Tokens without a colour skip the layer." in page
    assert "run each mechanism, of those that run the layer" in html.unescape(page)
    reading = Reading.of(folder)
    runs = reading.runs[:, :PASSAGE_TOKENS]
    assert share == pytest.approx(runs.mean()) and 0 < share < 1
    together = reading.shares_among(np.ones(reading.runs.shape[1], dtype=bool))
    named = dict(zip(reading.mechanisms, together, strict=True))
    assert named == pytest.approx(summary["load"]), "as in the summary"
    skipped = [row["skipped"] for row in found["depth"]["by_layer"]]
    assert skipped == pytest.approx(summary["depth"]["skipped_by_layer"])
    done = run_here("generate", str(folder), "--prompt=the", "--max_tokens=8")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, Guide, Path]:
    """posterior.nc of gated routes, all hard."""
    torch.manual_seed(0)
    model, guide = gated()
    guide.harden_below(1.0)
    path = tmp_path_factory.mktemp("read") / "posterior.nc"
    windows = torch.randint(13, (4, 12)), torch.randint(13, (4, 12))
    write_posterior(
        path,
        model,
        guide,
        windows,
        CharVocabulary("abcdefghijklm"),
        3,
        0,
        0.1,
        Readout(draws=6, tokens=24),
    )
    return model, guide, path


@pytest.mark.long
def test_the_file_holds_gates_beside_routes(file: tuple[LanguageModel, Guide, Path]) -> None:
    model, guide, path = file
    stats, posterior, prior, log_prior = (
        xr.open_dataset(path, group=group, engine="h5netcdf")
        for group in ("tokens", "posterior", "prior", "log_prior")
    )
    tokens = torch.from_numpy(stats["input_token"].values).long().view(4, 12)
    gates: list[Tensor] = []

    def route(layer: int, features: Features) -> Any:
        decision = mean_route(guide, True)(layer, features)
        shut = decision.gate is None
        gates.append(torch.ones(4, 12, dtype=torch.bool) if shut else decision.gate)  # type: ignore
        return decision

    with evaluating(model, guide):
        model.network(tokens, route)
    expected = torch.stack(gates).flatten(1).numpy()
    assert np.array_equal(stats["depth_runs"].values.astype(bool), expected)
    assert 0 < expected[1:].mean() < 1
    assert np.array_equal(stats["depth_mean"].values > 0.5, expected)
    assert (stats["depth_mean"].values[0] == 1).all() and (stats["depth_kl"].values[0] == 0).all()
    assert (stats["depth_kl"].values[1:] > 0).all()
    assert posterior["depth"].dims == ("chain", "draw", "layer", "token")
    assert posterior["depth"].shape == (1, 6, 3, 24) and prior["depth"].shape == (1, 6, 3, 24)
    assert (
        log_prior["depth"].shape == (1, 6, 3, 24)
        and (log_prior["depth"].values[:, :, 0] == 0).all()
    )
    for drawn in (posterior["depth"].values, prior["depth"].values):
        assert ((drawn >= 0) & (drawn <= 1)).all() and (drawn[:, :, 0] == 1).all()
        assert drawn[:, :, 1:].std() > 0.05


@pytest.mark.long
def test_what_runs_is_that_of_the_hard_walk_before_tokens_are_hard(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, guide = gated()
    windows = torch.randint(13, (4, 12)), torch.randint(13, (4, 12))
    path = tmp_path / "posterior.nc"
    write_posterior(
        path,
        model,
        guide,
        windows,
        CharVocabulary("abcdefghijklm"),
        3,
        0,
        0.1,
        Readout(draws=2, tokens=12),
    )
    stats = xr.open_dataset(path, group="tokens", engine="h5netcdf")
    skipped = 1 - stats["depth_runs"].mean("token").values
    assert skipped == pytest.approx(evaluate(model, guide, windows, 4)["depth"]["skipped_by_layer"])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("depth", [BetaDepthGuide, Prefix])
def test_belief_examines_routes_given_the_gates(threshold: float, depth: Any) -> None:
    torch.manual_seed(0)
    model, guide = gated(depth)
    guide.harden_below(threshold)
    windows = torch.randint(13, (3, 12)), torch.randint(13, (3, 12))
    with evaluating(model, guide):
        (first, *_) = block_terms(model, guide, windows, draws=4, lengths=(2,))
        assert torch.isfinite(first.log_likelihood).all() and torch.isfinite(first.log_ratio).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_exact_posteriors_are_had_of_a_gated_model(threshold: float) -> None:
    torch.manual_seed(0)
    _, guide = gated()
    guide.eval()
    guide.harden_below(threshold)
    windows = torch.randint(13, (2, 10)), torch.randint(13, (2, 10))
    handful = Handful(guide, windows[0][0], windows[1][0], 1, 0.5)
    exact = handful.enumerate()
    chain = nuts.sample(handful, handful.means, warmup=2, samples=4, depth=1)
    assert chain.moments.mean.shape == (3, 1, 3)
    if exact is None:
        assert threshold == 0
    else:
        assert exact.patterns == 27 and np.isfinite(exact.log_evidence)


def test_the_likelihood_of_a_handful_is_that_of_the_gated_network() -> None:
    torch.manual_seed(0)
    model, guide = gated()
    guide.eval()
    guide.harden_below(1.0)
    tokens, targets = torch.randint(13, (10,)), torch.randint(13, (10,))
    handful = Handful(guide, tokens, targets, 2, 0.5)
    with torch.no_grad():
        found = handful.log_likelihood(handful.means[None])
        deployed = model.network(tokens[None], mean_route(guide))[0, -2:].double().log_softmax(-1)
    expected = deployed.gather(-1, targets[-2:, None]).sum()
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("depth", [BetaDepthGuide, Prefix])
def test_choices_of_single_tokens_are_those_of_the_gated_network(depth: Any) -> None:
    torch.manual_seed(0)
    model, guide = gated(depth)
    guide.harden_below(1.0)
    tokens, targets = torch.randint(13, (2, 10)), torch.randint(13, (2, 10))
    with evaluating(model, guide):
        found = try_all(guide, (tokens, targets), Effort(2, 2, 1, 10))
        assert found is not None
        follow, row, site, k = mean_route(guide), 1, 2, 1
        t = int(found.position[row])

        def route(layer: int, features: Features) -> Decision:
            chosen = follow(layer, features)
            walked_route = deployed[layer].clone()
            if layer == site:
                walked_route[0, t] = k
            return Decision(walked_route, chosen.gate)

        deployed = [one.route for one in walk(model, guide, tokens[:1], along_means()).decisions]
        log_p = model.network(tokens[:1], route)[0].log_softmax(-1)
    wanted = log_p[t:].gather(-1, targets[0, t:, None]).sum()
    assert found.log_likelihood[row, site, k] == pytest.approx(float(wanted), abs=1e-4)


def test_who_passes_by_uses_no_full_attention() -> None:
    model, guide = gated()
    for head in guide.heads:  # type: ignore[union-attr]
        head[-1].bias.data[0] = 9.0  # full
    windows = torch.randint(13, (4, 24)), torch.randint(13, (4, 24))
    is_answer = np.zeros((4, 24), dtype=bool)
    is_answer[:, ::5] = True
    truth = Truth(is_answer, np.zeros_like(is_answer), 13)
    figures = score_against_truth(model, guide, windows, truth, batch=3)
    guide.gate_execution.price.fill_(1e6)  # type: ignore[union-attr]
    shut = score_against_truth(model, guide, windows, truth, batch=3)
    assert figures["full_used_by_layer"][0] == shut["full_used_by_layer"][0] > 0
    assert max(figures["full_used_by_layer"][1:]) > 0
    assert shut["full_used_by_layer"][1:] == [0.0, 0.0]


def test_the_contract_catches_gates_that_see_the_future() -> None:
    found = broken(Leaky)
    assert {"later_tokens_move_nothing_earlier", "gradients_reach_no_later_token"} <= found.keys()
