"""Depth gates in the network: what a gated layer computes, what it leaves out, what it costs."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta import Decision, DepthGuide, DepthPrior, Features, PointGate, Shape, Transformer
from pyro_meta.attention import backend
from pyro_meta.attention.rotary import rotation
from pyro_meta.evaluation.executed import executed_figures
from pyro_meta.guides import DirichletGuide
from pyro_meta.models import CostDirichlet, LanguageModel
from pyro_meta.network.blocks import (
    BLOCKS,
    Block,
    MomentumBlock,
    ResidualBlock,
    Stream,
    Surroundings,
)
from pyro_meta.network.macs import counted, dense_macs
from pyro_meta.network.route import Route

SHAPE = Shape(vocabulary=11, context=32, width=16, layers=3, heads=4, kv_heads=2, window=3)
SETS = [("full", "window", "linear"), ("chunk", "window", "linear_momentum")]


def tokens(batch: int = 2, length: int = 19) -> Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(3))


def shaken(block: str, mechanisms: Sequence[str] = SETS[0], shape: Shape = SHAPE) -> Transformer:
    """A network whose parameters are as after training, in evaluation mode."""
    torch.manual_seed(4)
    network = Transformer(shape, mechanisms, block)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def soft(layer: int, features: Features) -> Decision:
    """Weights and gates of what the layer shows of each token."""
    gate = (3 * features.normed[..., 3]).sigmoid()
    return Decision(features.normed[..., :3].softmax(-1), gate)


def hard(layer: int, features: Features) -> Decision:
    """Choices and gates that look random, of token and position."""
    key = features.tokens * 5 + features.positions * 7 + layer
    return Decision(key % 3, (key // 3 + layer) % 3 > 0)


def as_numbers(route: Route) -> Route:
    """The same in one-hot weights and gates of 0 and 1: everything is run on all tokens."""

    def dense(layer: int, features: Features) -> Decision:
        decision = route(layer, features)
        assert isinstance(decision, Decision) and decision.gate is not None
        weights = F.one_hot(decision.route, 3).to(features.state)
        return Decision(weights, decision.gate.to(features.state))

    return dense


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * norm.weight + norm.bias


def residual_by_hand(block: ResidualBlock, x: Tensor, at: Surroundings) -> Tensor:
    """Token-Selective Attention's two lines, 1 - p = g."""
    z = layer_norm(x, block.attention_norm)
    g = (3 * z[..., 3, None]).sigmoid()
    x = x + g * block.attention(z, z[..., :3].softmax(-1), at).out
    return x + g * block.mlp(layer_norm(x, block.mlp_norm))


def momentum_by_hand(
    block: MomentumBlock, x: Tensor, v: Tensor, at: Surroundings
) -> tuple[Tensor, Tensor]:
    """g of the way that an open block goes, for state and velocity."""
    z = block.look(Stream(x, v))
    g = (3 * z[..., 3, None]).sigmoid()
    attended = block.attention(z, z[..., :3].softmax(-1), at).out
    left = block.advance(Stream(x, v), attended)
    assert left.velocity is not None
    return x + g * (left.state - x), v + g * (left.velocity - v)


def written_out(network: Transformer, block: str, tokens: Tensor) -> Tensor:
    at = Surroundings(*rotation(torch.arange(tokens.shape[1]), SHAPE.head_width), None)
    x = network.embedding.weight[tokens]
    v = torch.zeros_like(x)
    for one in network.layers:
        if isinstance(one, MomentumBlock):
            x, v = momentum_by_hand(one, x, v, at)
        else:
            assert isinstance(one, ResidualBlock)
            x = residual_by_hand(one, x, at)
    return layer_norm(x, network.final_norm) @ network.readout.weight.T


def gradients(network: Transformer, call: Callable[[], Tensor]) -> list[Tensor]:
    weight = torch.randn(call().shape, generator=torch.Generator().manual_seed(5))
    parameters = list(network.parameters())
    loss = (call() * weight).sum()
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True))


def require_same(
    network: Transformer, one: Callable[[], Tensor], two: Callable[[], Tensor]
) -> None:
    torch.testing.assert_close(one(), two(), rtol=1e-9, atol=1e-9)
    pairs = zip(gradients(network, one), gradients(network, two), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("block", BLOCKS)
def test_soft_gates_are_their_equations(block: str) -> None:
    network = shaken(block)
    require_same(
        network, lambda: network(tokens(), soft), lambda: written_out(network, block, tokens())
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mechanisms", SETS, ids=lambda names: names[-1])
@pytest.mark.parametrize("block", BLOCKS)
def test_hard_gates_are_gates_of_0_and_1(block: str, mechanisms: Sequence[str]) -> None:
    """Whether the dispatch gathers or not."""
    network = shaken(block, mechanisms)
    for way in ("auto", "gather"):
        with backend(way):
            require_same(
                network,
                lambda: network(tokens(), hard),
                lambda: network(tokens(), as_numbers(hard)),
            )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mechanisms", SETS, ids=lambda names: names[-1])
@pytest.mark.parametrize("block", BLOCKS)
def test_beside_a_mixture_hard_gates_are_gates_of_0_and_1(
    block: str, mechanisms: Sequence[str]
) -> None:
    network = shaken(block, mechanisms)

    def mixed(layer: int, features: Features) -> Decision:
        return Decision(soft(layer, features).route, hard(layer, features).gate)

    def dense(layer: int, features: Features) -> Decision:
        route, runs = mixed(layer, features)
        assert runs is not None
        return Decision(route, runs.to(features.state))

    require_same(network, lambda: network(tokens(), mixed), lambda: network(tokens(), dense))


class StartsAtRest(MomentumBlock):
    """Its velocities are made where the first token moves."""

    def begin(self, state: Tensor) -> Stream:
        return Stream(state)

    def look(self, stream: Stream) -> Tensor:
        return super().look(self._moving(stream))

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        return super().advance(self._moving(stream), attended)

    def _moving(self, stream: Stream) -> Stream:
        at_rest = torch.zeros_like(stream.state)
        return Stream(stream.state, at_rest if stream.velocity is None else stream.velocity)


@pytest.mark.usefixtures("double")
def test_a_velocity_that_begins_where_some_pass_by_is_kept() -> None:
    network = shaken(f"{__name__}.StartsAtRest")
    require_same(
        network, lambda: network(tokens(), hard), lambda: network(tokens(), as_numbers(hard))
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("block", BLOCKS)
def test_pinned_open_it_is_the_ungated_model_and_pinned_shut_the_identity(block: str) -> None:
    network, x = shaken(block), tokens()
    ungated = network(x, lambda *asked: hard(*asked).with_open_gate())
    identity = network.readout(network.final_norm(network.embedding(x)))

    def pinned(gate: Tensor) -> Tensor:
        return network(x, lambda *asked: Decision(hard(*asked).route, gate))

    for gate, expected in ((torch.ones(2, 19), ungated), (torch.zeros(2, 19), identity)):
        for kind in (torch.bool, torch.float64):
            torch.testing.assert_close(pinned(gate.to(kind)), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(pinned(torch.ones(2, 19, dtype=torch.bool)), ungated)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("route", [soft, hard])
@pytest.mark.parametrize("mechanisms", SETS, ids=lambda names: names[-1])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_future_moves_nothing(block: str, mechanisms: Sequence[str], route: Route) -> None:
    network, x = shaken(block, mechanisms), tokens()
    whole = network(x, route)
    for end in (1, 4, 12):
        other = torch.cat([x[:, :end], (x[:, end:] + 3) % 11], 1)
        for again in (x[:, :end], other):
            found = network(again, route)[:, :end]
            torch.testing.assert_close(found, whole[:, :end], rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("route", [soft, hard])
@pytest.mark.parametrize("mechanisms", SETS, ids=lambda names: names[-1])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("keeps_features", [False, True])
def test_read_in_pieces_it_gives_the_same_logits(
    block: str, mechanisms: Sequence[str], route: Route, keeps_features: bool
) -> None:
    """Rows of different lengths; some pieces in which a whole row skips or has no token."""
    network, x = shaken(block, mechanisms), tokens()
    whole = network(x, route)
    cache = network.new_cache(2, keeps_features)
    starts = [0, 0]
    for counts in ([1, 3], [5, 0], [1, 1], [1, 1], [4, 9], [1, 0], [0, 1]):
        new = torch.zeros(2, max(counts), dtype=torch.long)
        for row, count in enumerate(counts):
            new[row, :count] = x[row, starts[row] : starts[row] + count]
        found = network(new, route, cache, counts)
        for row, count in enumerate(counts):
            expected = whole[row, starts[row] : starts[row] + count]
            torch.testing.assert_close(found[row, :count], expected, rtol=1e-9, atol=1e-9)
            starts[row] += count


@pytest.mark.usefixtures("double")
def test_keys_and_values_of_a_token_that_passes_by_are_there_for_the_others() -> None:
    """The first token skips all layers: another in its place moves what follows."""
    network, x = shaken("residual"), tokens(1)

    def route(layer: int, features: Features) -> Decision:
        runs = (features.positions > 0).expand(features.tokens.shape)
        return Decision(torch.zeros_like(features.tokens), runs)

    other = torch.cat([(x[:, :1] + 1) % 11, x[:, 1:]], 1)
    gap = (network(x, route) - network(other, route)).detach().abs()
    assert float(gap[:, 1:].amax(-1).min()) > 1e-6


@pytest.mark.parametrize("is_mixture", [False, True])
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("block", BLOCKS)
def test_who_passes_by_costs_what_torch_counts(
    block: str, kv_heads: int | None, is_mixture: bool
) -> None:
    """Beside attention, which is looked at elsewhere: its place takes what multiplies nothing."""
    T = 24
    shape = Shape(13, context=T, width=32, layers=3, heads=4, kv_heads=kv_heads, window=5)
    network = Transformer(shape, ["full"], block)
    text = torch.randint(13, (2, T))

    def passed(share: float) -> Route:
        def route(layer: int, features: Features) -> Decision:
            last = features.positions >= round(T * (1 - share))
            runs = ~last.expand(features.tokens.shape) if layer else torch.ones(2, T) > 0
            choices = torch.zeros_like(features.tokens)
            return Decision(F.one_hot(choices, 1).float() if is_mixture else choices, runs)

        return route

    def without_attention(route: Route) -> float:
        for one in network.layers:
            one.attention._attend = lambda route, inputs: inputs.q.transpose(1, 2).flatten(2)
        with torch.no_grad():
            return counted(lambda: network(text, route))[1]

    assert without_attention(passed(0)) == 2 * T * dense_macs(shape)
    assert without_attention(passed(0.5)) == 2 * T * dense_macs(shape, skipped=1.0)
    assert without_attention(passed(1)) == 2 * T * dense_macs(shape, skipped=2.0)


def test_gates_of_another_shape_are_refused() -> None:
    network = Transformer(SHAPE)
    for gate in (torch.ones(19), torch.ones(2, 19, 1), torch.ones(2, 18, dtype=torch.bool)):
        with pytest.raises(ValueError, match="gate of layer 0"):
            network(tokens(), lambda *asked, g=gate: Decision(hard(*asked).route, g))


def test_under_autocast_gates_keep_what_a_token_carries() -> None:
    """A token that skips is in float32 what it was, also where others are half precision."""
    network, x = shaken("momentum"), tokens()
    with torch.no_grad():
        exact = network(x, hard)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x, hard)
    assert float((half.float() - exact).square().mean().sqrt()) < 0.05 * float(exact.std())


class Thirds(DepthGuide):
    """A third of the tokens skip each layer but the first."""

    def posterior(self, layer: int, features: Features) -> PointGate:
        return PointGate(((features.tokens + layer) % 3 > 0).float())


def test_executed_figures_count_who_skips_a_layer() -> None:
    torch.manual_seed(0)
    network = Transformer(SHAPE)
    windows = (tokens(4, 32), tokens(4, 32))

    def figures(depth: DepthPrior | None) -> dict[str, Any]:
        model = LanguageModel(network, CostDirichlet(network), depth)
        torch.manual_seed(1)
        guide = DirichletGuide(model)
        guide.depth = Thirds(model) if depth else None
        return executed_figures(model, guide, windows, batch=2, repeats=1)

    gated, whole = figures(DepthPrior(network)), figures(None)
    assert "passed_by" not in whole and "speed_up_depth" not in whole
    shut = sum(((tokens(4, 32) + layer) % 3 == 0).sum().item() for layer in (1, 2))
    assert gated["passed_by"] == pytest.approx(shut / (4 * 32 * 3))
    assert gated["speed_up_depth"] > 0
    assert gated["macs_per_token_attention"] < whole["macs_per_token_attention"]
    parts = gated["macs_per_token_attention"] + gated["macs_per_token_router"]
    dense = dense_macs(SHAPE, gated["passed_by"] * 3)
    assert gated["macs_per_token_model"] == pytest.approx(parts + dense)


def test_a_subclass_that_advances_otherwise_is_gated_as_it_advances() -> None:
    class Twice(ResidualBlock):
        def advance(self, stream: Stream, attended: Tensor) -> Stream:
            return super().advance(super().advance(stream, attended), attended)

    block: Block = Twice(SHAPE, ["full"], 0).eval()
    x, attended = torch.randn(2, 1, 5, 16)
    gate = torch.rand(1, 5, 1)
    moved = block.advance_partly(Stream(x), attended, gate).state
    expected = x + gate * (block.advance(Stream(x), attended).state - x)
    torch.testing.assert_close(moved, expected)
