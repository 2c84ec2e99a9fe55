"""`linear_momentum`: the equations, what a step keeps, and that it serves in every block."""

import math

import pytest
import torch
from reference import mean_attention as slow_mean
from torch import Tensor
from torch.autograd.functional import jacobian

from pyro_meta import Decision, Features, Mechanism, Shape, Transformer, UsageError, pinned
from pyro_meta.attention import (
    Full,
    LinearMomentum,
    Sizes,
    build_mechanisms,
    carries,
    mean_attention,
)
from pyro_meta.attention.chunks.mechanisms import Chunk, ChunkSentence
from pyro_meta.attention.ops.momentum import damping, mean_attention_after, mean_state
from pyro_meta.contracts.admission import require_sound_network
from pyro_meta.network.blocks import BLOCKS
from pyro_meta.network.costs import costs_at
from pyro_meta.network.macs import attention_macs, counted
from pyro_meta.network.route import Route, as_weights

SHAPE = Shape(vocabulary=11, context=16, width=16, layers=3, heads=2, window=3)
ALL = ("full", "window", "linear", "linear_momentum")
N, D = 40, 3  # particles and their dimension
pytestmark = pytest.mark.usefixtures("double")


def test_momentum_is_damped_as_time_passes() -> None:
    """s = exp(eta(t) - eta(t + 1)) of eta = 3 log t + 1e-4 t, from t = 1 on."""
    for layer in range(6):
        t = 1 + layer
        assert damping(layer) == pytest.approx((t / (t + 1)) ** 3 * math.exp(-1e-4), rel=1e-12)
    kept = math.prod(damping(layer) for layer in range(9))
    assert kept == pytest.approx(10**-3 * math.exp(-9e-4), rel=1e-12)


def step(
    x: Tensor, p: Tensor, a: Tensor, potential: Tensor, layer: int = 1
) -> tuple[Tensor, Tensor]:
    """One step of particles x and p [N, D] that all see each other, by our causal functions.

    Every particle is put last in turn, where it sees everybody.
    """
    mechanism = LinearMomentum(D, 1)

    def of_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rolled = (
            torch.stack([one[0, 0].roll(-1 - i, 0) for i in range(len(x))])[:, None]
            for one in (q, k, v)
        )
        return mechanism(*rolled)[:, :, -1].transpose(0, 1)[None]

    q, k, v, p = (one[None, None] for one in (x @ a * D**0.5, x, x @ potential.T, p))
    p = mechanism.kick(q, v, p, layer, of_all)
    return x + of_all(q, k, p)[0, 0], p[0, 0]


def cloud(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An elliptically contoured cloud of states and momenta with heavy tails; A and V."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(N, 2 * D, generator=draw)
    directions = directions / directions.norm(dim=1, keepdim=True)
    radii = torch.rand(N, 1, generator=draw).pow(-0.3)
    z = radii * directions @ torch.randn(2 * D, 2 * D, generator=draw)
    a, potential = torch.randn(2, D, D, generator=draw)
    return z[:, :D], z[:, D:], (a + a.T) / 2, (potential + potential.T) / 2


def test_a_step_is_the_equations_of_the_paper() -> None:
    x, p, a, potential = cloud()
    s = damping(1)
    pushed = s * (p + x @ potential.T - p @ p.T @ x @ a / N)
    moved = x + x @ a @ x.T @ pushed / N
    ours_x, ours_p = step(x, p, a, potential)
    torch.testing.assert_close(ours_p, pushed, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours_x, moved, rtol=1e-10, atol=1e-10)


def test_the_forces_are_the_gradients_of_the_energy() -> None:
    x, p, a, potential = cloud()
    x, p = x.requires_grad_(), p.requires_grad_()
    kinetic = (p.T @ x @ a @ x.T @ p).trace() / (2 * N)
    energy = kinetic - (x @ potential @ x.T).trace() / 2
    by_x, by_p = torch.autograd.grad(energy, (x, p))
    moved, pushed = step(x, p, a, potential)
    torch.testing.assert_close(pushed / damping(1) - p, -by_x, rtol=1e-9, atol=1e-9)
    by_pushed = torch.autograd.grad((pushed.T @ x @ a @ x.T @ pushed).trace() / (2 * N), pushed)
    torch.testing.assert_close(moved - x, by_pushed[0], rtol=1e-9, atol=1e-9)
    assert by_p.shape == p.shape


def test_an_elliptically_contoured_cloud_stays_so() -> None:
    """All particles go through one matrix, so that distances in the cloud's own metric stay.

    Among them the fourth moment (kurtosis), and with those every contour.
    """
    x, p, a, potential = cloud()
    x, p = 0.3 * x, 0.3 * p
    z = torch.cat([x, p], 1)
    radii = mahalanobis(z)
    kurtosis = radii.square().mean()
    for layer in range(4):
        moved, pushed = step(x, p, a, potential, layer + 1)
        new = torch.cat([moved, pushed], 1)
        matrix = torch.linalg.lstsq(z, new).solution
        assert float((z @ matrix - new).abs().max()) < 1e-8 * float(new.abs().max())
        torch.testing.assert_close(mahalanobis(new), radii, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(mahalanobis(new).square().mean(), kurtosis, rtol=1e-6, atol=0)
        x, p, z = moved, pushed, new
    masked = torch.cat([causal_step(x, p, a, potential), p], 1)
    assert float((mahalanobis(masked) - radii).abs().max()) > 0.1


def causal_step(x: Tensor, p: Tensor, a: Tensor, potential: Tensor) -> Tensor:
    mechanism = LinearMomentum(D, 1)
    q, k, v, p = (one[None, None] for one in (x @ a * D**0.5, x, x @ potential.T, p))
    return x + mechanism(q, k, mechanism.kick(q, v, p, 1, mechanism))[0, 0]


def mahalanobis(z: Tensor) -> Tensor:
    """z_i' S^-1 z_i with S the second moments of the cloud z [N, 2 D] itself, [N]."""
    return (z @ torch.linalg.inv(z.T @ z / len(z)) * z).sum(1)


def test_a_step_is_conformally_symplectic_up_to_second_order() -> None:
    """J' Omega J = s Omega, but for what the explicit kick leaves, which falls as the square.

    A shorter step is weaker forces, later, where less is damped.
    """
    x, p, a, potential = (0.5 * one[:4] if len(one) == N else one for one in cloud())
    half = x.numel()
    omega = torch.zeros(2 * half, 2 * half)
    omega[:half, half:], omega[half:, :half] = torch.eye(half), -torch.eye(half)

    def defect(length: float) -> float:
        layer = round(3 / length)

        def flat(z: Tensor) -> Tensor:
            x, p = z.view(2, 4, D)
            return torch.cat([one.flatten() for one in step(x, p, length * a, force, layer)])

        force = length * potential
        j = jacobian(flat, torch.cat([x.flatten(), p.flatten()]))
        return float((j.T @ omega @ j - damping(layer) * omega).abs().max())

    defects = [defect(length) for length in (0.02, 0.01, 0.005)]
    assert [defects[1] / defects[0], defects[2] / defects[1]] == pytest.approx([0.25] * 2, abs=0.02)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [(1, 1, 1), (3, 70, 1), (64, 65, 130)])
def test_states_continue_a_text(kv_heads: int, lengths: tuple[int, ...]) -> None:
    total = sum(lengths)
    q, k, v = torch.randn(2, 4, total, 8), *torch.randn(2, 2, kv_heads, total, 8)
    whole = mean_attention(q, *(x.repeat_interleave(4 // kv_heads, 1) for x in (k, v)))
    past = torch.zeros_like(mean_state(k[:, :, :1], v[:, :, :1]))
    found, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        found.append(mean_attention_after(q[:, :, part], k[:, :, part], v[:, :, part], past))
        past = past + mean_state(k[:, :, part], v[:, :, part])
        start += length
    torch.testing.assert_close(torch.cat(found, 2), whole, rtol=1e-10, atol=1e-10)
    assert (past[..., -1, :] == total).all()


def soft(layer: int, features: Features) -> Decision:
    return Decision(features.normed[..., :4].softmax(-1))


def hard(layer: int, features: Features) -> Decision:
    return Decision((features.tokens * 5 + features.positions * 7 + layer) % 4)


def tokens(batch: int = 2, length: int = 12) -> Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_momenta_flow_through_the_layers_of_a_network(kv_heads: int | None) -> None:
    """A network of nothing but `linear_momentum`, written out in value and gradient."""
    shape = Shape(vocabulary=11, context=16, width=16, layers=3, heads=2, kv_heads=kv_heads)
    network = Transformer(shape, ["linear_momentum"])
    for block in network.layers:
        torch.nn.init.normal_(block.attention.gain)
    H, G, d = 2, kv_heads or 2, 8
    h = network.embedding.weight[tokens()]
    p: Tensor | float = 0.0
    for layer, block in enumerate(network.layers):
        z = block.attention_norm(h)
        q, k, v = (z @ block.attention.project_qkv.weight.T).split([H * d, G * d, G * d], -1)
        q, k, v = (part.view(2, 12, -1, d).transpose(1, 2) for part in (q, k, v))
        k, v = (part.repeat_interleave(H // G, 1) for part in (k, v))
        kinetic = slow_mean(p, p, q / d**0.5) if isinstance(p, Tensor) else 0.0
        p = ((1 + layer) / (2 + layer)) ** 3 * math.exp(-1e-4) * (p + v - kinetic)
        drift = slow_mean(q / d**0.5, k, p).transpose(1, 2).reshape(2, 12, -1)
        h = h + (block.attention.gain[0] * drift) @ block.attention.project_out.weight.T
        h = h + block.mlp(block.mlp_norm(h))
    theirs = network.readout(network.final_norm(h))
    ours = network(tokens(), pinned(network, "linear_momentum"))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(ours)
    grads = [
        torch.autograd.grad((out * weight).sum(), list(network.parameters()))
        for out in (ours, theirs)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_it_serves_in_every_block(block: str, kv_heads: int | None) -> None:
    """Hard routes as one-hot weights, prefixes as whole texts, a cache as none."""
    shape = Shape(11, context=16, width=16, layers=3, heads=2, kv_heads=kv_heads, window=3)
    network = Transformer(shape, ALL, block)
    dense = network(tokens(), lambda *asked: Decision(as_weights(hard(*asked).route, 4)))
    torch.testing.assert_close(network(tokens(), hard), dense, rtol=1e-10, atol=1e-10)
    for route in (soft, hard):
        whole = network(tokens(), route)
        for end in (1, 5, 11):
            cut = network(tokens()[:, :end], route)
            torch.testing.assert_close(cut, whole[:, :end], rtol=1e-10, atol=1e-10)
        cache = network.new_cache(2, keeps_features=False)
        found = [network(tokens()[:, t, None], route, cache) for t in range(12)]
        torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-10, atol=1e-10)


def test_a_token_that_attends_otherwise_is_kicked_too() -> None:
    """All choose `full` in the second layer, whose kick is in place for the third."""
    network = Transformer(SHAPE, ALL)
    momenta: list[Tensor] = []
    for block in network.layers:
        block.attention.register_forward_hook(lambda _, __, out: momenta.append(out.momentum))
    seen: list[Features] = []

    def route(layer: int, features: Features) -> Decision:
        seen.append(features)
        return Decision(0 * features.tokens + (0 if layer == 1 else 3))

    network(tokens(), route)
    first, second, _ = (one.view(2, 12, 2, 8).transpose(1, 2) for one in momenta)
    qkv = seen[1].normed @ network.layers[1].attention.project_qkv.weight.T
    q, _, v = (one.view(2, 12, 2, 8).transpose(1, 2) for one in qkv.split(16, -1))
    expected = damping(1) * (first + v - slow_mean(first, first, q / 8**0.5))
    torch.testing.assert_close(second, expected, rtol=1e-10, atol=1e-10)


def test_it_costs_two_linear_attentions_one_of_which_everybody_pays() -> None:
    """d = 4: the drift 2 d^2 = 32 of those that chose it, the kick 32 of every token."""
    two = list(build_mechanisms(["full", "linear_momentum"], Sizes(head_width=4, window=2)))
    choice = torch.tensor([[0, 1, 1, 0], [0, 0, 0, -1]])
    full = 8 * 1 + 8 * 4 + 8 * 1 + 8 * 2 + 8 * 3
    assert attention_macs(two, 3, choice) == 3 * (full + 2 * 32 + 7 * 32)  # type: ignore[arg-type]
    weights = torch.full((1, 4, 2), 0.5)
    dense = 8 * (1 + 2 + 3 + 4) + 4 * 64
    assert attention_macs(two, 1, weights) == dense  # type: ignore[arg-type]
    network = Transformer(SHAPE, ALL)
    costs = costs_at(network, "macs", torch.tensor([0, 3, 500]))
    assert torch.equal(costs[:, 3], 2 * costs[:, 2])


def test_work_and_memory_grow_linearly() -> None:
    mechanism = LinearMomentum(8, 1)

    def macs(length: int) -> int:
        q, k, v, p = torch.randn(4, 1, 1, length, 8)
        return counted(lambda: mechanism(q, k, mechanism.kick(q, v, p, 1, mechanism)))[1]

    assert macs(8192) / macs(4096) == pytest.approx(2, rel=0.02)


def test_one_mechanism_of_a_layer_may_carry_a_momentum() -> None:
    assert [carries(one) for one in Transformer(SHAPE, ALL).mechanisms] == [False] * 3 + [True]
    with pytest.raises(UsageError, match="linear_momentum, own each carry a momentum"):
        Transformer(SHAPE, ["linear_momentum", f"{__name__}.Own"])


class Own(LinearMomentum):
    @property
    def name(self) -> str:
        return "own"


class Backwards(Own):
    """Its momenta are pushed by later tokens."""

    def kick(self, q, v, momentum, layer, attend):  # type: ignore[no-untyped-def]
        return super().kick(q, v, momentum, layer, attend) + v.flip(2)

    forward = LinearMomentum.forward


def test_training_refuses_a_kick_from_the_future() -> None:
    require_sound_network(Transformer(SHAPE, ALL))
    with pytest.raises(UsageError, match=r"Backwards: kick\(\) sees the future"):
        require_sound_network(Transformer(SHAPE, [f"{__name__}.Backwards"]))


class _Kicked(Mechanism):
    """Whatever is mixed in, carrying momenta that are kicked by its own attention."""

    def kick(self, q, v, momentum, layer, attend):  # type: ignore[no-untyped-def]
        if momentum is None:
            return 0.5 * v
        return 0.5 * (momentum + v - attend(momentum, momentum, q))


class KickedFull(_Kicked, Full):
    """Decodes."""


class KickedChunk(_Kicked, Chunk):
    """Keeps a memory."""


class KickedSentence(_Kicked, ChunkSentence):
    """Keeps a memory, and reads separators."""


class KickedAsked(KickedFull):
    """Is asked again, and reads separators."""

    reads_separators = True

    def forward(self, q, k, v, is_separator):  # type: ignore[no-untyped-def,override]
        return super().forward(q, k, v) * is_separator.to(v).cumsum(2)

    kick = _Kicked.kick


@pytest.mark.filterwarnings("ignore:.*does not define serve")
@pytest.mark.parametrize("kind", [KickedFull, KickedChunk, KickedSentence, KickedAsked])
@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("route", [soft, hard])
def test_momenta_are_cached_where_later_tokens_look_back_at_them(
    kind: type[Mechanism], kv_heads: int | None, route: Route
) -> None:
    """Also in their kicks, which read separators as the mechanism does; also after `replace`."""
    shape = Shape(11, context=16, width=16, layers=3, heads=2, kv_heads=kv_heads, chunk=2)
    names = ["full", "window", "linear", f"{__name__}.{kind.__name__}"]
    network = Transformer(shape, names, "momentum", separators=[2, 5])
    assert carries(network.mechanisms[3])
    whole = network(tokens(), route)
    cache, other = (network.new_cache(2, keeps_features=False) for _ in range(2))
    pieces = [tokens()[:, begin:end] for begin, end in [(0, 4), (4, 5), (5, 9), (9, 10), (10, 12)]]
    found = torch.cat([network(piece, route, cache) for piece in pieces], 1)
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)
    network(tokens()[:, :7], route, other)
    cache.replace([1, 0], other)
    found = network(tokens().flip(0)[:, 7:], route, cache)
    torch.testing.assert_close(found, whole.flip(0)[:, 7:], rtol=1e-10, atol=1e-10)
