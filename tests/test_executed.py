"""MACs by hand and by PyTorch's own counter, and the section `executed` of a summary."""

from collections.abc import Callable

import pytest
import torch
from conftest import build, text
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_meta import (
    CostDirichlet,
    Decision,
    DirichletGuide,
    FixedGuide,
    Guide,
    RandomGuide,
    Shape,
    TokenTableGuide,
    Transformer,
)
from pyro_meta.attention import Queries, Sizes, build_mechanisms
from pyro_meta.attention.mechanisms import Mechanism
from pyro_meta.attention.ops import gathered
from pyro_meta.evaluation.executed import (
    CLOCK_FIGURES,
    as_trained,
    executed_figures,
    recorded_attention,
)
from pyro_meta.evaluation.figures import evaluate
from pyro_meta.network.costs import costs_at
from pyro_meta.network.macs import attention_macs, counted, dense_macs, full_attention_macs
from pyro_meta.network.route import Features, Route
from pyro_meta.network.transformer import chosen_by_all


class Selfish(Mechanism):
    """Looks at itself alone, and cannot serve chosen queries: it runs on all tokens."""

    nominal_cost = 0.1

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v

    def macs(self, position: Tensor) -> Tensor:
        return torch.ones_like(position)


def mechanisms(*names: str) -> list[Mechanism]:
    return list(build_mechanisms(names, Sizes(head_width=4, window=2)))  # type: ignore[arg-type]


def given(choices: Tensor) -> Route:
    """Choices [L, B, T] as a route."""

    def route(layer: int, features: Features) -> Decision:
        return Decision(choices[layer])

    return route


def test_attention_is_counted_by_hand() -> None:
    """d = 4, W = 2, 3 heads: full 8 (t + 1), window 8 min(t + 1, 2), linear 32."""
    choice = torch.tensor([[0, 1, 2, 0], [1, 1, 1, -1]])
    first = 8 * 1 + 8 * 2 + 32 + 8 * 4
    second = 8 * 1 + 8 * 2 + 8 * 2  # no token at the end
    three = mechanisms("full", "window", "linear")
    assert attention_macs(three, 3, choice) == 3 * (first + second)


def test_a_mechanism_that_cannot_serve_is_counted_on_all_tokens() -> None:
    two = mechanisms("full", "test_executed.Selfish")
    assert attention_macs(two, 1, torch.tensor([[0, 0, 1]])) == 8 + 16 + 3
    assert attention_macs(two, 1, torch.tensor([[0, 0, 0]])) == 8 + 16 + 24


def test_a_mixture_pays_for_every_mechanism() -> None:
    weights = torch.full((2, 3, 2), 0.5)
    assert attention_macs(mechanisms("full", "linear"), 1, weights) == 2 * (8 + 16 + 24 + 3 * 32)
    weights[0, 1] = torch.tensor([0.0, 1.0])
    assert attention_macs(mechanisms("full", "linear"), 1, weights) == 2 * (48 + 96) - 16


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_the_whole_model_is_what_torch_counts(kv_heads: int | None) -> None:
    """On the math backend, which is counted; it forms all T^2 scores, we the T (T + 1) / 2 seen."""
    T = 24
    shape = Shape(13, context=T, width=32, layers=3, heads=4, kv_heads=kv_heads, window=5)
    network = Transformer(shape)
    tokens = torch.randint(13, (2, T))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _, macs = counted(lambda: network(tokens, chosen_by_all(network, "full")))
    attention = 2 * shape.layers * full_attention_macs(shape, T) * 2 * T / (T + 1)
    assert macs == 2 * T * dense_macs(shape) + attention


def test_all_full_is_full_attention_and_agrees_with_the_cost_in_macs() -> None:
    model, guide = build(guide=RandomGuide)
    network = model.network
    T = network.shape.context
    choice = torch.zeros(3, T, dtype=torch.long)
    macs = attention_macs(network.mechanisms, network.shape.heads, choice)
    assert macs == 3 * full_attention_macs(network.shape, T)
    windows = text(4, T)
    costs = costs_at(network, "macs", torch.arange(T))
    assert float(costs[:, 0].mean()) == pytest.approx(1)
    section = executed_figures(model, guide, windows, batch=4, repeats=1)
    expected = evaluate(model, guide, windows, batch=4)["cost_macs_hard"]
    assert section["macs_ratio_attention"] == pytest.approx(expected, rel=1e-6)


def linear_layers(guide: Guide) -> int:
    """Weights of the router, each used once per token."""
    return sum(m.weight.numel() for m in guide.modules() if isinstance(m, torch.nn.Linear))


@pytest.mark.parametrize("kind", [DirichletGuide, TokenTableGuide])
def test_the_section_adds_up(kind: type[Guide]) -> None:
    model, guide = build(guide=kind)
    section = executed_figures(model, guide, text(3, 24), batch=2, repeats=1)
    router = section["macs_per_token_router"]
    assert router == linear_layers(guide)
    whole = section["macs_per_token_attention"] + router + dense_macs(model.network.shape)
    assert section["macs_per_token_model"] == whole
    assert (section["length"], section["tokens"]) == (24, 72)
    assert 0 < section["macs_ratio_attention"] <= 32 / 25 and section["macs_ratio_model"] > 0
    assert all(section[name] > 0 for name in CLOCK_FIGURES if name != "clock_noise")
    assert section["clock_noise"] == 0.0, "one round says nothing of it"


def figures_without_clock(call: Callable[[], dict]) -> dict:
    return {key: value for key, value in call().items() if key not in CLOCK_FIGURES}


def test_all_but_the_clock_is_the_same_again_and_nothing_is_left_changed() -> None:
    model, guide = build()
    model.train()
    before = [block.attention.dispatch for block in model.network.blocks]  # type: ignore[union-attr]
    random = torch.get_rng_state()
    again = [
        figures_without_clock(lambda: executed_figures(model, guide, text(), 2, 1))
        for _ in range(2)
    ]
    assert again[0] == again[1]
    assert torch.equal(random, torch.get_rng_state()) and model.training
    assert before == [block.attention.dispatch for block in model.network.blocks]  # type: ignore[union-attr]


def test_without_full_there_is_no_opponent() -> None:
    model, guide = build(mechanisms=("window", "linear"))
    section = executed_figures(model, guide, text(), 2, 1)
    assert section["tokens_per_second_full"] is None and section["speed_up_attention"] is None
    assert section["tokens_per_second_routed"] > 0 and section["macs_ratio_attention"] > 0


def test_a_mixture_is_timed_as_a_whole() -> None:
    model, guide = build(prior=CostDirichlet, guide=FixedGuide)
    section = executed_figures(model, guide, text(), 2, 1)
    assert section["speed_up_model"] > 0 and section["speed_up_attention"] is None
    assert section["macs_ratio_attention"] > 1


def test_what_is_recorded_are_the_calls_of_each_layer() -> None:
    model, _ = build()
    choices = torch.randint(3, (2, 3, 20))
    with recorded_attention() as calls, torch.no_grad():
        model.network(text()[0], given(choices))
    assert torch.equal(torch.stack([choice for _, _, choice, _ in calls]), choices)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)],
)
def test_a_run_is_measured_as_it_was_trained(precision: str, dtype: torch.dtype) -> None:
    """On a CPU, where `auto` is float32."""
    model, guide = build()
    with (
        as_trained(precision, torch.device("cpu")),
        recorded_attention() as calls,
    ):
        section = executed_figures(model, guide, text(), 2, 1)
    assert {inputs.q.dtype for _, _, _, inputs in calls} == {dtype}
    assert section["precision"] == str(dtype).removeprefix("torch.")
    assert section["macs_per_token_router"] == linear_layers(guide)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("T", [40, 200])
@pytest.mark.parametrize(
    ("name", "sinks"), [("full", 0), ("window", 0), ("window", 4), ("window", 30)]
)
def test_executed_softmax_is_what_torch_counts_and_no_less_than_declared(
    name: str, sinks: int, T: int, kv_heads: int
) -> None:
    """A chunk of queries meets the keys from the first to the last that any of them sees, and the
    sinks.

    Declared are those that each sees alone; what is counted beyond them stays within a chunk.
    """
    d, W = 8, 5
    mechanism = build_mechanisms([name], Sizes(head_width=d, window=W, sinks=sinks))[0]
    assert isinstance(mechanism, Mechanism)
    k, v = torch.randn(2, 2, kv_heads, T, d)
    queries = Queries(*(torch.rand(2, T) < 0.4).nonzero().unbind(1))
    q = torch.randn(len(queries.position), 4, d)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _, macs = counted(lambda: mechanism.serve(q, k, v, queries))
    chunks = gathered._chunks(queries, 2, T, W if name == "window" else None, sinks)
    assert macs == 4 * 2 * d * sum(chunk.size * (chunk.sinks + chunk.keys) for chunk in chunks)
    declared = 4 * float(mechanism.macs(queries.position.float()).sum())
    places = torch.arange(len(queries.position)).split([chunk.size for chunk in chunks])
    spans = [int(queries.position[own[-1]] - queries.position[own[0]]) for own in places]
    beyond = 4 * 2 * d * sum(c.size * span for c, span in zip(chunks, spans, strict=True))
    assert declared <= macs <= declared + beyond


def test_executed_linear_attention_is_what_torch_counts() -> None:
    """Declared is a query's look at the state, 2 d^2; counted are the columns d (d + 1) of it, the
    keys of the query's own block, and what does not follow the queries: the states of all keys.
    """
    d, H, T, P, n = 8, 4, 200, 64, 4
    mechanism = build_mechanisms(["linear"], Sizes(head_width=d, window=1))[0]
    k, v = torch.randn(2, 1, H, T, d)
    position = torch.arange(1, T, 2)
    queries = Queries(torch.zeros_like(position), position)
    _, macs = counted(lambda: mechanism.serve(torch.randn(len(position), H, d), k, v, queries))
    m = P // 2  # queries in a block; the last block is padded to as many
    states = H * (n * P * d * (d + 1) + n * n * d * (d + 1))
    looks = H * n * m * (d * (d + 1) + P * d + P * (d + 1))
    assert macs == states + looks
    assert 4 * float(mechanism.macs(position.float()).sum()) / 2 <= looks
