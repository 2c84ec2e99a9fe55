"""The backbone is an ordinary causal transformer wherever its routes are pinned."""

import pytest
import torch
import torch.nn.functional as F
from reference import softmax_attention
from torch import Tensor

from pyro_meta import Decision, Features, Shape, Transformer, UsageError, pinned
from pyro_meta.attention.rotary import rotate, rotation
from pyro_meta.network.blocks import Surroundings

SHAPE = Shape(vocabulary=11, context=16, width=16, layers=2, heads=4, window=3)


def ordinary_transformer(network: Transformer, tokens: Tensor) -> Tensor:
    """A pre-norm transformer with full attention, written out from the network's weights."""
    shape = network.shape
    B, T = tokens.shape
    H, G, d = shape.heads, shape.kv_heads or shape.heads, shape.head_width
    cos, sin = rotation(torch.arange(T), d)
    h = network.embedding.weight[tokens]
    for block in network.blocks:
        x = block.attention_norm(h)
        q, k, v = (x @ block.attention.project_qkv.weight.T).split([H * d, G * d, G * d], -1)
        q, k, v = (part.view(B, T, -1, d).transpose(1, 2) for part in (q, k, v))
        k, v = (part.repeat_interleave(H // G, 1) for part in (k, v))
        attended = softmax_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        attended = attended.transpose(1, 2).reshape(B, T, -1)
        full = network.mechanism_names.index("full")
        h = h + (block.attention.gain[full] * attended) @ block.attention.project_out.weight.T
        x = block.mlp_norm(h)
        h = h + F.gelu(x @ block.mlp.expand.weight.T) @ block.mlp.project_out.weight.T
    return network.final_norm(h) @ network.readout.weight.T


def tokens(batch: int = 2, length: int = 12) -> Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(3))


def random_route(layer: int, features: Features) -> Decision:
    """A route that depends on the prefix: the first features of each token decide."""
    return Decision(features.normed[..., :3].softmax(-1))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_pinned_to_full_it_equals_an_ordinary_transformer(kv_heads: int | None) -> None:
    shape = Shape(vocabulary=11, context=16, width=16, layers=2, heads=4, kv_heads=kv_heads)
    network = Transformer(shape, ["window", "full", "linear"])
    for block in network.blocks:  # after training gains are not 1
        torch.nn.init.normal_(block.attention.gain)
    ours = network(tokens(), pinned(network, "full"))
    theirs = ordinary_transformer(network, tokens())
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours_grad = torch.autograd.grad(ours.square().sum(), network.embedding.weight)[0]
    theirs_grad = torch.autograd.grad(theirs.square().sum(), network.embedding.weight)[0]
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("end", [1, 5, 11])
def test_prefixes_and_their_futures(end: int) -> None:
    network = Transformer(SHAPE)
    whole = network(tokens(), random_route)
    cut = network(tokens()[:, :end], random_route)
    torch.testing.assert_close(cut, whole[:, :end], rtol=1e-10, atol=1e-10)
    changed = tokens().clone()
    changed[:, end:] = (changed[:, end:] + 1) % 11
    other = network(changed, random_route)
    torch.testing.assert_close(other[:, :end], whole[:, :end], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_routes_mix_the_mechanisms() -> None:
    """In a single layer the attention output is linear in the weights."""
    network = Transformer(SHAPE)
    block = network.blocks[0]
    x = torch.randn(2, 9, 16)
    at = Surroundings(*rotation(torch.arange(9), SHAPE.head_width), None)
    alone = [block.attention(x, torch.eye(3)[k].expand(2, 9, 3), at).out for k in range(3)]
    weights = torch.rand(2, 9, 3)
    mixed = block.attention(x, weights, at).out
    by_hand = sum(weights[..., k, None] * alone[k] for k in range(3))
    torch.testing.assert_close(mixed, by_hand, rtol=1e-10, atol=1e-10)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_routes_stay_outside_autocast() -> None:
    network = Transformer(SHAPE)
    seen: list[tuple[torch.dtype, bool]] = []

    def route(layer: int, features: Features) -> Decision:
        seen.append((features.normed.dtype, torch.is_autocast_enabled("cpu")))
        return random_route(layer, features)

    with torch.autocast("cpu", torch.bfloat16):
        logits = network(tokens(), route)
    assert seen == [(torch.float32, False)] * 2
    assert logits.dtype == torch.bfloat16


def test_dropout_acts_in_training_alone() -> None:
    shape = Shape(vocabulary=11, context=16, width=16, layers=2, heads=4, dropout=0.5)
    network = Transformer(shape)
    route = pinned(network, "full")
    assert not torch.equal(network(tokens(), route), network(tokens(), route))
    network.eval()
    assert torch.equal(network(tokens(), route), network(tokens(), route))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
def test_compiled_blocks_equal_the_eager_ones() -> None:
    network = Transformer(SHAPE)
    expected = network(tokens(), random_route)
    expected_grad = torch.autograd.grad(expected.square().sum(), network.embedding.weight)[0]
    network.compile_blocks()
    compiled = network(tokens(), random_route)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    grad = torch.autograd.grad(compiled.square().sum(), network.embedding.weight)[0]
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 18, "heads": 4},
        {"width": 20, "heads": 4},
        {"heads": 4, "kv_heads": 3},
        {"window": 0},
        {"sinks": -1},
        {"layers": 0},
        {"dropout": 1.0},
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(sizes)) + "|kv_heads"):
        Shape(**{"vocabulary": 11, "context": 16, "width": 16, "layers": 2, **sizes})
