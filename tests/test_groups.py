"""Groups of heads, each with a route of its own: dispatch, cache, guides, runs and reports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT, TEXT, run_here, train
from conftest import PAIRS, build, text
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cache import BUILT_IN, CHUNKS, EVERY, OWN, VOCABULARY
from torch import Tensor
from torch.distributions import Dirichlet, Distribution, Independent, LogNormal, Normal

from pyro_meta import (
    CategoricalGuide,
    Concrete,
    CostDirichlet,
    Decision,
    DirichletGuide,
    Features,
    Guide,
    LanguageModel,
    LoadDirichlet,
    LogisticNormal,
    Prior,
    Shape,
    Transformer,
    UsageError,
)
from pyro_meta.attention import is_choice
from pyro_meta.distributions import Choice, Point, PointGate
from pyro_meta.distributions.by_group import for_each_group
from pyro_meta.evaluation.executed import executed_figures
from pyro_meta.evaluation.figures import evaluate
from pyro_meta.guides import along_means, of_own_token, walk
from pyro_meta.inference.elbo import Objective
from pyro_meta.network.route import Route, as_weights
from pyro_meta.training.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:.*does not define serve")
INDEPENDENT = (*BUILT_IN, "linear_momentum", "chunk", "chunk_sliding", "chunk_sentence", *OWN)
"""Mechanisms whose heads know nothing of each other; those of `chunk_learned` share boundaries."""


def network_of(
    mechanisms: tuple[str, ...],
    kv_heads: int | None,
    groups: int,
    block: str = "residual",
    sinks: int = 0,
) -> Transformer:
    torch.manual_seed(1)
    shape = Shape(
        vocabulary=VOCABULARY, context=64, width=16, layers=2, heads=4, kv_heads=kv_heads,
        window=5, chunk=3, groups=groups, sinks=sinks,
    )  # fmt: skip
    network = Transformer(shape, mechanisms, block, separators=[2, 5, 7])
    for layer in network.blocks:
        for parameter in layer.attention.mechanisms.parameters():
            torch.nn.init.normal_(parameter)
        torch.nn.init.normal_(layer.attention.gain)
    return network.requires_grad_(False)


def by_hash(network: Transformer, is_hard: bool, seed: int = 0) -> Route:
    """Routes that look random, and depend on layer, group, token and position."""
    K, G = len(network.mechanisms), network.shape.groups
    draw = torch.Generator().manual_seed(seed)
    table = torch.randn(97, K, generator=draw, dtype=torch.float64)

    def route(layer: int, features: Features) -> Decision:
        index = features.tokens * 5 + features.positions * 7 + 31 * layer
        if G > 1:
            index = index[..., None] + 17 * torch.arange(G)
        scores = table[index % len(table)].to(features.state)
        return Decision(scores.argmax(-1) if is_hard else (3 * scores).softmax(-1))

    return route


def one_hot(route: Route, network: Transformer) -> Route:
    def weighed(layer: int, features: Features) -> Decision:
        choice, gate = route(layer, features)
        return Decision(as_weights(choice, len(network.mechanisms)).to(features.state), gate)

    return weighed


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("mechanisms", [BUILT_IN, ("linear_momentum", "window"), CHUNKS, EVERY])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_hard_routes_of_groups_equal_one_hot_weights(
    mechanisms: tuple[str, ...], kv_heads: int | None, data: Any
) -> None:
    sinks = data.draw(st.sampled_from([0, 3, 50]))
    network = network_of(mechanisms, kv_heads, kv_heads or 4, sinks=sinks)
    route = by_hash(network, True, data.draw(st.integers(0, 99)))
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    tokens = torch.randint(VOCABULARY, (rows, length))
    torch.testing.assert_close(
        network(tokens, route), network(tokens, one_hot(route, network)), rtol=1e-10, atol=1e-10
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("is_hard", [True, False])
def test_each_group_attends_as_if_all_heads_went_its_way(
    kv_heads: int | None, is_hard: bool
) -> None:
    """Its channels are those of the same layer with one group that takes this group's route."""
    G = kv_heads or 4
    grouped, single = (network_of(INDEPENDENT, kv_heads, n) for n in (G, 1))
    single.load_state_dict(grouped.state_dict())
    route = by_hash(grouped, is_hard)
    tokens = torch.randint(VOCABULARY, (2, 30))
    features: list[Features] = []

    def noting(layer: int, seen: Features) -> Decision:
        features.append(seen)
        return route(layer, seen)

    inputs: list[dict[str, Any]] = []
    attention = grouped.blocks[0].attention
    hook = attention.register_forward_hook(
        lambda module, args, kwargs, out: inputs.append(
            {"args": args, "kwargs": kwargs, "out": out.out}
        ),
        with_kwargs=True,
    )
    grouped(tokens, noting)
    hook.remove()
    (normed, _), kwargs, found = inputs[0]["args"], inputs[0]["kwargs"], inputs[0]["out"]
    chosen = route(0, features[0]).route
    parts = []
    other = single.blocks[0].attention
    other.project_out = torch.nn.Identity()
    for group in range(G):
        own = chosen[:, :, group]
        wide = other(normed, own, **kwargs).out
        parts.append(wide.chunk(G, -1)[group])
    expected = attention.project_out(torch.cat(parts, -1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_cache_gives_the_same_logits(data: Any) -> None:
    """Rows of several lengths, pieces of several sizes, all mechanisms, every block."""
    rows, kv_heads = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([None, 2]))
    block = data.draw(st.sampled_from(["residual", "momentum"]))
    sinks = data.draw(st.sampled_from([0, 3, 50]))
    network = network_of(data.draw(st.sampled_from([EVERY, BUILT_IN])), kv_heads, kv_heads or 4,
                         block, sinks)  # fmt: skip
    route = by_hash(network, data.draw(st.booleans()))
    cache = network.new_cache(rows, keeps_features=data.draw(st.booleans()))
    texts: list[list[int]] = [[] for _ in range(rows)]
    found: list[list[Tensor]] = [[] for _ in range(rows)]
    is_ragged = data.draw(st.booleans())
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 5))):
        size = data.draw(st.one_of(st.just(1), st.integers(1, 9)))
        counts = [data.draw(st.integers(0, size)) if is_ragged else size for _ in range(rows)]
        tokens = torch.randint(VOCABULARY, (rows, size), generator=draw)
        logits = network(tokens, route, cache, counts if is_ragged else None)
        for row, count in enumerate(counts):
            texts[row] += tokens[row, :count].tolist()
            found[row].append(logits[row, :count])
    for read, pieces in zip(texts, found, strict=True):
        if read:
            expected = network(torch.tensor([read]), route)[0]
            torch.testing.assert_close(torch.cat(pieces), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_a_row_of_a_cache_takes_another_text() -> None:
    network = network_of(EVERY, 2, 2)
    route = by_hash(network, True)
    texts = [torch.randint(VOCABULARY, (1, n)) for n in (9, 6, 4)]
    cache, other = network.new_cache(2), network.new_cache(1)
    for row, read in enumerate(texts[:2]):
        one = network.new_cache(1)
        network(read, route, one)
        cache.replace([row], one)
    network(texts[2], route, other)
    cache.replace([0], other)
    more = torch.randint(VOCABULARY, (2, 3))
    logits = network(more, route, cache)
    for row, read in enumerate((texts[2], texts[1])):
        whole = torch.cat([read, more[row : row + 1]], 1)
        torch.testing.assert_close(logits[row], network(whole, route)[0, -3:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_hard", [True, False])
def test_later_tokens_move_nothing_earlier(is_hard: bool) -> None:
    network = network_of(EVERY, 2, 2)
    route = by_hash(network, is_hard)
    whole = torch.randint(VOCABULARY, (2, 33))
    other = torch.cat([whole[:, :20], (whole[:, 20:] + 3) % VOCABULARY], 1)
    logits = network(whole, route)
    torch.testing.assert_close(logits[:, :20], network(other, route)[:, :20], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, :20], network(whole[:, :20], route), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("prior", "guide"), PAIRS)
def test_every_pair_routes_groups(prior: type[Prior], guide: type[Guide]) -> None:
    """Finite at every threshold, a prefix at a time, with a gradient wherever there was one."""
    model, built = build(prior=prior, guide=guide, groups=2)
    for threshold in (0.0, 0.5, 1.0):
        built.harden_below(threshold)
        terms = Objective(model, built)(*text())
        assert terms.routes.shape == terms.means.shape == (2, 3, 20, 2, 3)
        assert bool(torch.isfinite(terms.loss))
        if any(one.requires_grad for one in built.parameters()):
            terms.loss.backward()
            assert all(one.grad is not None for one in built.parameters())
    for hard in (True, False):
        walked = walk(model, built, text()[0], along_means(hard))
        assert all(q.route.batch_shape == (3, 20, 2) for q in walked.posteriors)
        assert all(p.route.batch_shape == (3, 20, 2) for p in walked.priors)
        short = walk(model, built, text()[0][:, :9], along_means(hard))
        torch.testing.assert_close(short.logits, walked.logits[:, :9], rtol=1e-4, atol=1e-4)


class Alike(DirichletGuide):
    """It speaks for all groups alike, and was written before there were any."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.own = torch.nn.Linear(model.network.shape.width, 3)

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(0.5 + torch.nn.functional.softplus(self.own(features.normed)))


class OneForAll(CostDirichlet):
    def forward(self, layer: int, positions: Tensor) -> Any:
        return Dirichlet(torch.ones(len(positions), 3))


def test_what_speaks_for_all_groups_alike_speaks_for_each() -> None:
    model, guide = build(prior=OneForAll, guide=Alike, groups=2)
    terms = Objective(model, guide)(*text())
    assert terms.means.shape == (2, 3, 20, 2, 3)
    assert torch.equal(terms.means[..., 0, :], terms.means[..., 1, :])
    assert not torch.equal(terms.routes[..., 0, :], terms.routes[..., 1, :]), "drawn one by one"


@pytest.mark.parametrize(
    "dist",
    [
        Dirichlet(torch.rand(2, 5, 3) + 0.1),
        LogisticNormal(torch.randn(2, 5, 3), torch.rand(2, 5, 3) + 0.1),
        Concrete(0.5, torch.randn(2, 5, 3)),
        Choice(logits=torch.randn(2, 5, 3)),
        Point(torch.softmax(torch.randn(2, 5, 3), -1)),
        PointGate(torch.rand(2, 5)),
        torch.distributions.Beta(torch.rand(2, 5) + 1, torch.rand(2, 5) + 1),
        torch.distributions.OneHotCategorical(torch.rand(2, 5, 3)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_distribution_for_each_group(dist: Distribution) -> None:
    found = for_each_group(dist)
    assert found.batch_shape == (2, 5, 1) and found.event_shape == dist.event_shape
    value = dist.sample()
    wide = value.unsqueeze(2)
    torch.testing.assert_close(found.log_prob(wide)[..., 0], dist.log_prob(value))
    torch.testing.assert_close(found.mean.squeeze(2), dist.mean)
    assert (
        found.expand(torch.Size([2, 5, 4])).sample().shape[:3] == (2, 5, 4) or not dist.has_rsample
    )


def test_what_is_not_made_of_its_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="Independent speaks for all groups of heads alike"):
        for_each_group(Independent(Normal(torch.zeros(2, 5, 3), 1.0), 1))
    assert for_each_group(LogNormal(torch.zeros(2), torch.ones(2))).batch_shape == (2, 1)


def test_groups_that_are_no_heads_are_refused() -> None:
    with pytest.raises(UsageError, match="groups: 3 given; 1 or the number of key-value heads, 4"):
        Shape(vocabulary=5, heads=4, width=16, groups=3)
    network = network_of(BUILT_IN, 2, 2)
    tokens = torch.randint(VOCABULARY, (2, 5))
    for wrong in (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"choices must be \[2, 5, 2\]"):
            network(tokens, lambda layer, features, x=wrong: Decision(x))
    with pytest.raises(ValueError, match="weights must be"):
        network(tokens, lambda layer, features: Decision(torch.rand(2, 5, 4, 3)))


def test_figures_are_averages_over_groups() -> None:
    model, guide = build(groups=2, layers=2)
    with torch.no_grad():
        guide.heads[0][-1].bias.zero_()  # type: ignore[index, operator]
        guide.heads[0][-1].bias[0] = 9.0  # type: ignore[index]  # group 0 of the first layer: full
        guide.heads[0][-1].bias[5] = 9.0  # type: ignore[index]  # group 1: window
    windows = text(batch=6, length=24)
    figures = evaluate(model, guide, windows, 4)
    first = figures["load_by_group"][0]
    assert first[0]["full"] > 0.99 and first[1]["window"] > 0.99
    assert figures["load_by_layer"][0]["full"] == pytest.approx(
        (first[0]["full"] + first[1]["full"]) / 2
    )
    executed = executed_figures(model, guide, windows, 4, repeats=1)
    assert executed["macs_ratio_attention"] == pytest.approx(figures["cost_macs_hard"], rel=0.05)
    hard = walk(model, guide, windows[0], along_means(True))
    assert all(is_choice(one.route) and one.route.shape == (6, 24, 2) for one in hard.decisions)


@pytest.mark.parametrize(
    "words",
    [
        ["--groups=kv", "--prior=LoadCategorical", "--guide=CategoricalGuide", "--budget=0.6"],
        pytest.param(["--groups=kv"], marks=pytest.mark.long),
        pytest.param(["--groups=kv", "--kv_heads=1"], marks=pytest.mark.long),
        pytest.param(
            ["--groups=kv", "--prior=LoadDirichlet", "--depth=beta"], marks=pytest.mark.long
        ),
    ],
)
@pytest.mark.long
def test_a_run_with_groups_is_whole(words: list[str], tmp_path: Path) -> None:
    """Trained, read, generated from, and reported."""
    (tmp_path / "text.txt").write_text(TEXT)
    run = tmp_path / "run"
    assert train(*MOMENT, f"--data.path={tmp_path / 'text.txt'}", f"--out={run}", *words) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert ("load_by_group" in summary) == ("--kv_heads=1" not in words)
    model, guide, _, _ = Run.open(run).load()
    again, _ = build_again(run)
    for ours, theirs in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert isinstance(guide, (DirichletGuide, CategoricalGuide))
    done = run_here("report", run)
    assert done.returncode == 0, done.stderr
    assert run_here("generate", run, "--max_tokens=5").returncode == 0


def build_again(run: Path) -> tuple[LanguageModel, Guide]:
    model, guide, _, _ = Run.open(run).load()
    return model, guide


def test_loads_of_groups_are_learned_one_by_one() -> None:
    model, guide = build(prior=LoadDirichlet, groups=2)
    assert guide.load_posterior is not None
    assert guide.load_posterior.logits.shape == (2, 2, 3)
    Objective(model, guide)(*text()).loss.backward()
    assert bool(guide.load_posterior.logits.grad.abs().sum(-1).gt(0).all())  # type: ignore[union-attr]
