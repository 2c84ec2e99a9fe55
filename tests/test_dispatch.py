"""Hard routes on their own tokens equal all mechanisms on all tokens, weighed by one-hot weights.

The dense execution of `dense` is the slow and obvious truth; every way of dispatching is compared
with it, in value and in gradient.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import build, text
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import rms_ratio
from torch import Tensor

from pyro_meta import Decision, Features, Mechanism, Shape, Transformer, UsageError
from pyro_meta.attention import (
    NO_TOKEN,
    Full,
    Inputs,
    Linear,
    Queries,
    Sizes,
    Window,
    backend,
    build_mechanisms,
    dispatch,
    one_for_all,
    routed_attention,
)
from pyro_meta.attention.ops import flex, gathered
from pyro_meta.attention.ops.backend import uses_flex
from pyro_meta.attention.ops.dense import sums_before
from pyro_meta.attention.ops.gathered import softmax_attention_of
from pyro_meta.contracts.admission import require_sound_network
from pyro_meta.evaluation.causality import prefix_gap
from pyro_meta.network.route import as_weights

WAYS = ("auto", "gather", "mask", "flex")
EAGER_FLEX = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def dense(mechanisms: list[Mechanism], gain: Tensor, choice: Tensor, inputs: Inputs) -> Tensor:
    """sum_k [choice = k] g_k A_k(q, k, v): every mechanism on all tokens."""
    inputs = inputs.with_repeated_heads(inputs.q.shape[1] // inputs.k.shape[1])
    weights = as_weights(choice, len(mechanisms)).to(inputs.q.dtype)
    parts = [
        weights[..., index, None] * gain[index] * rows(mechanism(*inputs.read_by(mechanism)))
        for index, mechanism in enumerate(mechanisms)
    ]
    return torch.stack(parts).sum(0)


def each(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Inputs whose tensors have been changed."""
    return Inputs(*(None if x is None else change(x) for x in inputs))


def tensors(inputs: Inputs) -> list[Tensor]:
    return [x for x in inputs if x is not None]


def rows(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Case:
    """Random inputs of a layer: everything that dispatch is given."""

    def __init__(
        self,
        lengths: list[int],
        heads: tuple[int, int] = (2, 2),
        window: int = 5,
        shares: tuple[float, ...] = (1, 1, 1),
        width: int = 4,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        sinks: int = 0,
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        H, G = heads
        B, T = len(lengths), max(lengths)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

        q, q_rotated, momentum = (normal(B, H, T, width).requires_grad_() for _ in range(3))
        k, v, k_rotated = (normal(B, G, T, width).requires_grad_() for _ in range(3))
        self.inputs = Inputs(q, k, v, q_rotated, k_rotated, momentum=momentum)
        self.gain = normal(4, H * width).requires_grad_()
        self.mechanisms: list[Mechanism] = list(
            build_mechanisms(
                ["full", "window", "linear", "linear_momentum"],
                Sizes(width, window, sinks=sinks),
            )
        )
        weights = torch.tensor(shares).float()
        choice = torch.multinomial(weights, B * T, True, generator=draw).view(B, T)
        is_real = torch.arange(T) < torch.tensor(lengths)[:, None]
        self.choice = choice.where(is_real, NO_TOKEN)
        self.weight = normal(B, T, H * width)

    def run(self, way: str, inputs: Inputs | None = None, choice: Tensor | None = None) -> Tensor:
        inputs = self.inputs if inputs is None else inputs
        choice = self.choice if choice is None else choice
        if way == "dense":
            return dense(self.mechanisms, self.gain, choice, inputs)
        with backend(way):
            return routed_attention(self.mechanisms, self.gain, choice, inputs)

    def results(self, way: str) -> list[Tensor]:
        """The output, and the gradients of a random projection of it."""
        out = self.run(way)
        wanted = (*tensors(self.inputs), self.gain)
        if not out.requires_grad:  # no token at all
            return [out, *map(torch.zeros_like, wanted)]
        projection = (out * self.weight).sum()
        return [out, *torch.autograd.grad(projection, wanted, materialize_grads=True)]


@st.composite
def cases(draw: Any) -> Case:
    longest = draw(st.integers(1, 200))
    lengths = [longest, *draw(st.lists(st.integers(0, longest), max_size=2))]
    return Case(
        lengths,
        heads=draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)])),
        window=draw(st.sampled_from([1, 2, 5, 64, 65, 300])),
        shares=draw(
            st.sampled_from(
                [
                    (1, 1, 1),
                    (0.1, 1, 1),
                    (1, 0.02, 0),
                    (0, 1, 0.2),
                    (0, 0, 1),
                    (1, 1, 1, 1),
                    (1, 0, 0, 0.1),
                    (0, 0, 0, 1),
                ]
            )
        ),
        seed=draw(st.integers(0, 1000)),
        sinks=draw(st.sampled_from([0, 1, 4, 63, 70, 250])),
    )


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ["auto", "gather", "mask"])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_equals_dense_execution_in_value_and_gradient(way: str, case: Case) -> None:
    assert_same(case.results(way), case.results("dense"))


@EAGER_FLEX
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_flex_equals_dense_execution(case: Case) -> None:
    """In value: a CPU has no gradient of it."""
    with torch.no_grad():
        assert_same([case.run("flex")], [case.run("dense")])


@EAGER_FLEX
@pytest.mark.parametrize("sinks", [0, 4, 300])
@pytest.mark.parametrize("way", WAYS)
def test_many_chunks_and_blocks(way: str, sinks: int) -> None:
    """Chunks end within and between sequences, and blocks of keys are seen whole."""
    case = Case([900, 1300, 3], heads=(2, 1), window=70, shares=(0.3, 0.3, 0.2, 0.2), sinks=sinks)
    with torch.no_grad():
        assert_same([case.run(way)], [case.run("dense")])


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("sinks", [4, 300])
def test_gradients_reach_sinks_that_lie_before_a_chunk(sinks: int, heads: tuple[int, int]) -> None:
    """Many chunks of one sequence meet the same ones."""
    case = Case([700, 400], heads=heads, window=9, shares=(0, 1, 1), sinks=sinks)
    assert_same(case.results("gather"), case.results("dense"))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_blocks_of_keys_are_those_that_queries_see(data: Any) -> None:
    """Each is listed once: in part if a query sees of it what another does not, else in full."""
    block, blocks = flex.BUCKET, data.draw(st.integers(1, 7))
    rows, tables = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    T = blocks * block
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    last = torch.randint(data.draw(st.integers(1, T)), (rows, tables * block), generator=draw)
    last = last.sort().values
    window = data.draw(st.one_of(st.integers(1, 9), st.integers(100, 300), st.just(T)))
    edges = st.sampled_from([0, 1, 4, block - 1, block, block + 1, 3 * block, T, 2 * T])
    sinks = torch.tensor([data.draw(edges) for _ in range(rows)])
    lowest = (last - window + 1).clamp(min=0)
    mask = flex.block_mask(last, lowest, sinks, T)
    key = torch.arange(T)
    is_seen = (key <= last[..., None]) & (
        (key > last[..., None] - window) | (key < sinks[:, None, None])
    )  # [rows, m, T]
    index = (torch.arange(rows)[:, None, None], None, torch.arange(tables * block)[:, None], key)
    assert torch.equal(mask.mask_mod(*index), is_seen)
    by_block = is_seen.view(rows, tables, block, blocks, block)
    met, whole = by_block.any(4).any(2), by_block.all(4).all(2)  # [rows, tables, blocks]
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    for row in range(rows):
        for table in range(tables):
            part, full = (
                indices[row, 0, table, : int(counts[row, 0, table])].tolist()
                for counts, indices in (
                    (mask.kv_num_blocks, mask.kv_indices),
                    (mask.full_kv_num_blocks, mask.full_kv_indices),
                )
            )
            listed = part + full
            assert len(set(listed)) == len(listed)
            assert set(met[row, table].nonzero()[:, 0].tolist()) <= set(listed)
            assert all(whole[row, table, one] for one in full)
            own = slice(table * block, (table + 1) * block)
            begin, end = int(lowest[row, own][0]) // block, int(last[row, own][-1]) // block
            of_sinks = -(-int(sinks[row]) // block)
            assert all(one < of_sinks or begin <= one <= end for one in listed)


@pytest.mark.parametrize("heads", [(8, 4), (3, 3), (6, 2)])
def test_linear_attention_a_few_heads_at_a_time(
    monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int]
) -> None:
    """As it runs on long texts, where the heads do not fit a processor's cache together."""
    case = Case([150, 90], heads=heads, shares=(0.3, 0.3, 0.4))
    expected = case.results("dense")
    calls = 0

    def counted(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return some(*args)

    some = gathered._linear_heads
    monkeypatch.setattr(gathered, "_linear_heads", counted)
    for together, times in ((1, heads[1]), (3, -(-heads[1] // 3))):
        monkeypatch.setattr(gathered, "LINEAR_CACHE", together * 2 * 150 * 4)
        calls = 0
        assert_same(case.results("gather"), expected)
        assert calls == times


@settings(max_examples=20, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 900), min_size=1, max_size=80),
    window=st.integers(1, 700),
    sinks=st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 700)),
)
def test_a_window_serves_scattered_and_crowded_queries(
    gaps: list[int], window: int, sinks: int
) -> None:
    position = torch.tensor(gaps).cumsum(0)
    position = position[position < 2000]
    choice = torch.zeros(1, 2000, dtype=torch.long)
    choice[0, position] = 1
    case = Case([2000], heads=(1, 1), window=window, width=2, sinks=sinks)
    with torch.no_grad():
        chosen = [case.run("gather", choice=choice)[0, position]]
        window_alone = case.mechanisms[1](*case.inputs.read_by(case.mechanisms[1]))
        assert_same(chosen, [(case.gain[1] * rows(window_alone))[0, position]])


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("way", ["auto", "gather", "mask"])
def test_float32_and_half_precision(way: str, sinks: int) -> None:
    exact = Case([150, 90], shares=(0.4, 0.3, 0.3), width=8, sinks=sinks)
    truth = exact.results("dense")
    single = Case([150, 90], shares=(0.4, 0.3, 0.3), width=8, dtype=torch.float32, sinks=sinks)
    for ours, theirs in zip(single.results(way), truth, strict=True):
        assert rms_ratio(ours.double(), theirs) < 1e-5
    half = Case([150, 90], shares=(0.4, 0.3, 0.3), width=8, dtype=torch.bfloat16, sinks=sinks)
    out = half.run(way)
    assert out.dtype == torch.bfloat16
    assert rms_ratio(out.double(), half.run("dense").double()) < 6e-3
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = single.results(way), single.results("dense")
    assert ours[0].dtype == theirs[0].dtype
    for one, other in zip(ours, theirs, strict=True):
        assert rms_ratio(one.double(), other.double()) < 2e-2  # two roundings of the inputs
    assert rms_ratio(ours[0].double(), truth[0]) < 6e-3


@pytest.mark.parametrize("way", ["auto", "gather", "mask"])
@settings(max_examples=20, deadline=None)
@given(case=cases(), data=st.data())
def test_the_past_does_not_depend_on_the_future(way: str, case: Case, data: Any) -> None:
    length = case.choice.shape[1]
    end = data.draw(st.integers(1, length))
    with torch.no_grad():
        whole = case.run(way)[:, :end]
        cut = each(case.inputs, lambda x: x[:, :, :end])
        assert_same([case.run(way, cut, case.choice[:, :end])], [whole])
        later = each(case.inputs, lambda x: torch.cat([x[:, :, :end], 3 - 5 * x[:, :, end:]], 2))
        other = case.choice.clone()
        other[:, end:] = (other[:, end:] + 1).clamp(max=3)
        assert_same([case.run(way, later, other)[:, :end]], [whole])
    past = case.run(way)[:, :end]
    if past.requires_grad:
        read = tensors(case.inputs)
        for grad in torch.autograd.grad(past.sum(), read, materialize_grads=True):
            assert (grad[:, :, end:] == 0).all()


def test_padding_gets_zeros_and_no_mechanism_without_tokens_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case([60, 0, 7], shares=(1, 1, 0))
    monkeypatch.setattr(Linear, "forward", refuse)
    monkeypatch.setattr(Linear, "serve", refuse)
    out = case.run("auto")
    assert (out[1] == 0).all() and (out[2, 7:] == 0).all()
    monkeypatch.setattr(Full, "serve", refuse)
    monkeypatch.setattr(Window, "serve", refuse)
    monkeypatch.setattr(Full, "forward", refuse)
    monkeypatch.setattr(Window, "forward", refuse)
    assert (case.run("gather", choice=torch.full_like(case.choice, NO_TOKEN)) == 0).all()


def refuse(*args: Any) -> Tensor:
    raise AssertionError("a mechanism was run that has no token here")


def test_one_mechanism_for_all_runs_as_it_always_does(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([40, 40])
    monkeypatch.setattr(Full, "serve", refuse)
    for way in ("auto", "gather"):
        out = case.run(way, choice=torch.zeros(2, 40, dtype=torch.long))
        q, k, v = case.inputs.read_by(case.mechanisms[0])
        assert torch.equal(out, case.gain[0] * rows(case.mechanisms[0](q, k, v)))


@pytest.mark.parametrize("share", [0.02, 0.98])
def test_below_break_even_full_attention_runs_on_all(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathered queries cost more each: at a large share that outweighs those that are spared."""
    case = Case([4096], shares=(share, (1 - share) / 2, (1 - share) / 2), width=32)
    monkeypatch.setattr(Full, "forward" if share < 0.5 else "serve", refuse)
    with torch.no_grad():
        case.run("auto")


def test_choices_known_to_be_of_one_mechanism_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case([40, 30], shares=(0.5, 0.5))
    everyone = torch.zeros_like(case.choice)
    choice = one_for_all(everyone, 1)
    assert torch.equal(choice, everyone + 1)
    expected = case.run("dense", choice=choice)
    assert_same([case.run("auto", choice=choice.masked_fill(everyone == 1, NO_TOKEN))], [expected])
    monkeypatch.setattr(dispatch, "_owned", refuse)
    assert_same([case.run("auto", choice=choice)], [expected])
    with pytest.raises(AssertionError):  # what comes of it by any operation is looked at again
        case.run("auto", choice=choice.masked_fill(everyone == 0, NO_TOKEN))


def test_choices_of_one_mechanism_that_were_changed_are_looked_at() -> None:
    case = Case([40], shares=(0.5, 0.5))
    choice = one_for_all(case.choice, 1)
    choice[0, 30:] = NO_TOKEN
    assert_same([case.run("auto", choice=choice)], [case.run("dense", choice=choice)])
    with pytest.raises(ValueError, match="choice: 7 to 7 given"):
        case.run("auto", choice=one_for_all(case.choice, 7))


@pytest.mark.parametrize("wrong", [4, -2])
def test_a_choice_of_nothing_is_refused(wrong: int) -> None:
    case = Case([5])
    with pytest.raises(ValueError, match=f"{wrong}.* 0 to 3, or -1"):
        case.run("auto", choice=torch.tensor([[0, 1, wrong, 2, 0]]))
    with pytest.raises(ValueError, match="auto, gather, mask, flex"), backend("fast"):
        pass


class Own(Mechanism):
    """A user's own mechanism, which knows nothing of hard routes: the mean of all values so far."""

    nominal_cost = 0.01

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1, device=v.device)[:, None]

    def macs(self, position: Tensor) -> Tensor:
        return torch.zeros_like(position)


def test_a_users_own_mechanism_runs_on_all_tokens_and_says_so_once() -> None:
    case = Case([50, 30], heads=(4, 2))
    case.mechanisms[1] = Own(head_width=4, window=1)
    with pytest.warns(UserWarning, match=r"Own does not define serve"):
        out = case.run("auto")
    assert_same([out], [case.run("dense")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.run("gather")


class ServesOthers(Own):
    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Any) -> Tensor:
        return q


def test_a_mechanism_that_serves_other_rows_is_refused() -> None:
    shape = Shape(vocabulary=5, width=8, heads=1, layers=1)
    require_sound_network(Transformer(shape))
    with pytest.raises(UsageError, match=r"ServesOthers: serve\(\) gives other rows"):
        require_sound_network(Transformer(shape, ["full", f"{__name__}.ServesOthers"]))


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100, 1100])
def test_sums_before_each_row(n: int) -> None:
    x = torch.randn(2, n, 3, dtype=torch.float64)
    torch.testing.assert_close(sums_before(x), x.cumsum(1) - x, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("way", ["auto", "gather", "mask"])
def test_a_transformer_takes_choices_for_weights(way: str, kv_heads: int | None) -> None:
    shape = Shape(vocabulary=11, width=16, layers=2, heads=4, window=3, kv_heads=kv_heads)
    network = Transformer(shape)
    for block in network.blocks:
        torch.nn.init.normal_(block.attention.gain)
    tokens = torch.randint(11, (2, 40))

    def choose(layer: int, features: Features) -> Decision:
        return Decision((features.tokens + layer) % 3)

    def weigh(layer: int, features: Features) -> Decision:
        return Decision(as_weights(choose(layer, features).route, 3))

    with backend(way):
        ours = network(tokens, choose)
    theirs = network(tokens, weigh)
    wanted = list(network.parameters())
    assert_same(
        [ours, *torch.autograd.grad(ours.square().sum(), wanted)],
        [theirs, *torch.autograd.grad(theirs.square().sum(), wanted)],
    )
    with pytest.raises(ValueError, match="one for every token"):
        network(tokens, lambda layer, features: Decision(features.tokens[:1]))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
def test_compiled_blocks_take_choices() -> None:
    network = Transformer(Shape(vocabulary=11, width=16, layers=2, heads=4, window=3))
    tokens = torch.randint(11, (2, 200))

    def choose(layer: int, features: Features) -> Decision:
        return Decision((features.tokens + layer) % 3)

    expected = network(tokens, choose)
    network.compile_blocks()
    torch.testing.assert_close(network(tokens, choose), expected, rtol=1e-4, atol=1e-5)


def test_evaluation_dispatches_and_its_prefixes_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = build()
    for parameter in guide.parameters():  # untrained, it sends all tokens one way
        torch.nn.init.normal_(parameter)
    monkeypatch.setattr(gathered, "softmax_attention_of", counted := Counted())
    assert prefix_gap(model, guide, text(1, 20)[0], [1, 7, 13]) < 1e-4
    assert counted.calls > 0


class Counted:
    def __init__(self) -> None:
        self.calls = 0
        self.function = gathered.softmax_attention_of

    def __call__(self, *args: Any) -> Tensor:
        self.calls += 1
        return self.function(*args)


def test_far_positions_are_exact() -> None:
    """Behind 2^24, where float32 no longer counts one by one."""
    far, window = 1 << 24, 4
    k = torch.zeros(1, 1, far + 64, 1)
    v = k.clone()
    v[0, 0, far + 1] = 1.0  # in the future of the first query, in the window of the second
    position = torch.tensor([far, far + 2])
    queries = Queries(torch.zeros_like(position), position)
    out = softmax_attention_of(torch.zeros(2, 1, 1), k, v, queries, window)
    assert out.flatten().tolist() == [0.0, 0.25]
    v[0, 0, 1] = 1.0  # a sink of both
    out = softmax_attention_of(torch.zeros(2, 1, 1), k, v, queries, window, sinks=4)
    assert out.flatten().tolist() == [0.125, 0.25]


def test_flex_is_chosen_where_its_kernel_can_run() -> None:
    assert uses_flex("cuda", 16) and not uses_flex("cuda", 8) and not uses_flex("cpu", 64)
    with backend("flex"):
        assert uses_flex("cpu", 8)
    with backend("gather"):
        assert not uses_flex("cuda", 64)
