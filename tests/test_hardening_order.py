"""Which tokens turn hard first: each order against a slow ranking, and none sees another token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT, train
from conftest import build, gate_execution, route_execution, text
from pyro import poutine
from slow import long
from test_refit import records
from torch import Tensor
from torch.distributions import Dirichlet

from pyro_meta import DirichletGuide, Guide, LanguageModel, UsageError
from pyro_meta.distributions.hardening import Execution, Place
from pyro_meta.distributions.simplex import uncertainty_of_draw
from pyro_meta.evaluation.figures import evaluate
from pyro_meta.generation.reader import Reader
from pyro_meta.guides import along_means, mean_route, walk
from pyro_meta.inference.schedules import HardeningSchedule
from pyro_meta.network.route import Decision, Features, as_weights
from pyro_meta.training.run import Run

ORDERS = ["uncertain_last", "reversed", "random"]
MASK = (1 << 64) - 1


def slow_lot(seed: int, layer: int, position: int) -> float:
    """SplitMix64 of Python's whole numbers."""

    def scrambled(key: int) -> int:
        key = (key + 0x9E3779B97F4A7C15) & MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & MASK
        return key ^ (key >> 31)

    key = scrambled((scrambled((seed + layer) & MASK) + position) & MASK)
    return (key % (1 << 40)) / (1 << 40)


def slow_rank(order: str, undecided: float, seed: int, layer: int, position: int) -> float:
    if order == "random":
        return slow_lot(seed, layer, position)
    return undecided if order == "uncertain_last" else 1 - undecided


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("make", [route_execution, gate_execution])
def test_each_order_is_its_slow_ranking(order: str, make: Callable[[float], Execution]) -> None:
    undecided = torch.rand(3, 40, dtype=torch.float64)
    place = Place(2, torch.arange(40) + 5)
    for threshold in (0.0, 0.3, 0.8, 1.0):
        execution = make(threshold)
        execution.order, execution.seed = order, 11
        found = execution.is_hard(undecided, place)
        assert found.shape == undecided.shape
        for row in range(3):
            for t in range(40):
                rank = slow_rank(order, float(undecided[row, t]), 11, 2, 5 + t)
                assert bool(found[row, t]) == (rank < threshold or threshold == 1.0)


def test_random_order_is_even_and_differs_by_seed_and_layer() -> None:
    execution = route_execution(0.25)
    execution.order = "random"
    many, positions = torch.rand(4000), torch.arange(4000)

    def hard(seed: int, layer: int) -> Tensor:
        execution.seed = seed
        return execution.is_hard(many, Place(layer, positions))

    first = hard(0, 0)
    assert torch.equal(first, hard(0, 0)) and not torch.equal(first, hard(0, 1))
    assert not torch.equal(first, hard(1, 0))
    assert abs(float(first.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    with pytest.raises(ValueError, match="their place is needed"):
        execution.is_hard(many)


def test_rounding_below_zero_hardens_nothing_too_early() -> None:
    execution = route_execution(0.0)
    execution.order = "reversed"
    assert not execution.is_hard(torch.tensor([1.0 + 1e-6, 1.0, 0.3])).any()


def partly_hard(order: str, groups: int = 1) -> tuple[LanguageModel, Guide]:
    """A model of which some tokens are hard, and others not, in every order."""
    model, guide = build(guide=DirichletGuide, context=12, groups=groups)
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter)
    model.harden_in(order, seed=3)
    guide.harden_below(0.5)
    return model.eval(), guide.eval()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("groups", [1, 2])
def test_what_runs_is_what_the_ranking_says(order: str, groups: int) -> None:
    """Along means, and for draws in the model's own pass."""
    model, guide = partly_hard(order, groups)
    tokens, _ = text(length=12)
    with torch.no_grad():
        walked = walk(model, guide, tokens, along_means())
        trace = poutine.trace(model).get_trace(tokens)
    seen = set()
    for layer, decision in enumerate(walked.decisions):
        q = walked.posteriors[layer].route
        assert isinstance(q, Dirichlet)
        own = q.concentration  # E[H(alpha)] by the definition of the digamma form
        total = own.sum(-1, keepdim=True)
        inner = (own / total * torch.digamma(own + 1)).sum(-1)
        undecided = (torch.digamma(total[..., 0] + 1) - inner) / torch.tensor(3.0).log()
        runs = as_weights(decision.route, 3).amax(-1) == 1
        drawn = trace.nodes[f"route_{layer}"]["value"]
        executed = trace.nodes[f"executed_{layer}"]["value"].amax(-1) == 1
        of_draws = uncertainty_of_draw(drawn, 1)
        for index in torch.cartesian_prod(*map(torch.arange, runs.shape)).tolist():
            at, t = tuple(index), index[1]
            expected = slow_rank(order, float(undecided[at]), 3, layer, t) < 0.5
            assert bool(runs[at]) == expected
            assert bool(executed[at]) == (slow_rank(order, float(of_draws[at]), 3, layer, t) < 0.5)
            seen.add(expected)
    assert seen == {True, False}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("order", ORDERS)
def test_no_order_sees_what_follows(order: str) -> None:
    """Prefixes, and a cache across several fillings of the context, give the same logits."""
    model, guide = partly_hard(order)
    tokens, _ = text(length=12)
    with torch.no_grad():
        whole = model.network(tokens, mean_route(guide))
        for end in (1, 5, 11):
            cut = model.network(tokens[:, :end], mean_route(guide))
            torch.testing.assert_close(cut, whole[:, :end], rtol=1e-10, atol=1e-10)
    prompts = [[1], [2, 3, 4, 5, 6, 7, 8], list(range(13)) * 2]
    with_cache, without = (Reader(model, guide, prompts, uses) for uses in (True, False))
    for step in range(16):
        ours, theirs = with_cache.logits(), without.logits()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        new = [step % 13, 5 * step % 13, 1]
        with_cache.append(new)
        without.append(new)


def test_random_routes_are_the_same_at_each_evaluation() -> None:
    model, guide = partly_hard("random")
    windows = text(length=12)
    found, again = (evaluate(model, guide, windows, 2) for _ in range(2))
    assert found == again
    lots = [slow_lot(3, layer, t) for layer in range(2) for t in range(12)]
    assert found["hard_fraction"] == pytest.approx(sum(lot < 0.5 for lot in lots) / len(lots))


def test_a_user_route_can_be_made_of_it() -> None:
    """`Execution` says of a place what a route then runs."""
    model, guide = partly_hard("random")
    tokens, _ = text(length=12)

    def route(layer: int, features: Features) -> Decision:
        place = Place(layer, features.positions)
        return Decision(guide.execution.of_mean(guide.routes(layer, features), place=place))

    with torch.no_grad():
        assert torch.equal(model.network(tokens, route), model.network(tokens, mean_route(guide)))


def test_all_at_once_is_a_jump_half_way() -> None:
    schedule = HardeningSchedule(begin=0.4, end=0.6, order="all_at_once")
    assert [schedule(p) for p in (0.0, 0.45, 0.499, 0.501, 0.6, 1.0, 1.5)] == [0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(UsageError, match=r"harden.final: 0.5 given; 1 is allowed where"):
        HardeningSchedule(order="all_at_once", final=0.5)


@pytest.mark.parametrize(
    "order",
    [
        *long("random", "reversed", "all_at_once"),
    ],
)
def test_a_killed_run_resumes_in_its_order(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Killed while tokens turn hard."""

    class Killed(BaseException):
        pass

    append = Run.append_metrics

    def kill(self: Run, record: dict[str, Any]) -> None:
        append(self, record)
        if record["step"] == 7:
            raise Killed

    words = [*MOMENT, f"--harden.order={order}", "--harden.begin=0.3", "--harden.end=0.9"]
    words += [f"--data.path={text_file}", "--guide=DirichletGuide"]
    assert train(*words, f"--out={tmp_path / 'whole'}") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", kill)
        with pytest.raises(Killed):
            train(*words, f"--out={tmp_path / 'killed'}")
    assert train("--resume", tmp_path / "killed") == 0
    found = records(tmp_path / "whole")
    assert records(tmp_path / "killed") == found
    shares = [record["hard_share"] for record in found]
    assert shares[0] == 0 and shares[-1] == 1
    if order == "random":
        assert any(0.2 < share < 0.8 for share in shares)
    _, guide, _, config = Run.open(tmp_path / "killed").load()
    assert guide.execution.order == order == config.harden.order
