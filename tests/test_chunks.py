"""Chunk mechanisms are exact, causal, sub-quadratic, and read every earlier token once."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import chunk_attention as slow_chunks
from reference import softmax_attention as slow_softmax
from slow import long
from test_attention import _Elements
from torch import Tensor

from pyro_meta.attention import (
    Chunk,
    ChunkLearned,
    ChunkSentence,
    ChunkSliding,
    Inputs,
    Queries,
    Sizes,
    backend,
    build_mechanisms,
    find_mechanism,
    full_attention,
    read_in_pieces,
    routed_attention,
)
from pyro_meta.attention.chunks.starts import bounded_starts, ratio_loss
from pyro_meta.contracts import contract
from pyro_meta.errors import UsageError

D = 8


class Marked(ChunkSentence):
    """Reads separators off the keys of the first head, so that it needs nothing beside them."""

    reads_separators = False

    def starts(self, k: Tensor, is_separator: Tensor | None = None) -> Tensor:
        return super().starts(k, k[:, :1, :, -1:] > 0.7)


KINDS: list[type[Chunk]] = [Chunk, ChunkSliding, Marked, ChunkLearned]
test_contract_of_separators = contract(Marked, chunk=5)
test_contract_with_recent_tokens = contract(ChunkLearned, chunk=4, recent=9)
test_contract_of_small_chunks = contract(ChunkSliding, chunk=3)


def built(kind: type[Chunk], chunk: int, recent: int | None = None, seed: int = 0) -> Chunk:
    """With parameters that are not where they begin."""
    mechanism = kind(head_width=D, window=1, chunk=chunk, recent=recent).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return mechanism


def qkv(length: int, seed: int = 0, heads: int = 2, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    draw = torch.randn(3, batch, heads, length, D, generator=generator, dtype=torch.float64)
    return [x.requires_grad_() for x in draw.unbind()]


def slow_starts(mechanism: Chunk, k: Tensor) -> tuple[list[list[int]], Tensor | None]:
    """Token by token: where chunks begin, and what `chunk_learned` adds to logits."""
    B, _, T, _ = k.shape
    C = mechanism.chunk
    if type(mechanism) in (Chunk, ChunkSliding):
        stride = C if type(mechanism) is Chunk else math.ceil(C / 2)
        return [[t for t in range(T) if t % stride == 0]] * B, None
    least, most = math.ceil(C / 2), 2 * C - 1
    starts: list[list[int]] = [[0] for _ in range(B)]
    nudge = torch.zeros(B, T, dtype=k.dtype)
    for b, t in itertools.product(range(B), range(1, T)):
        wanted, p = bool(k[b, 0, t - 1, -1] > 0.7), None
        if isinstance(mechanism, ChunkLearned):
            before, now = k[b, :, t - 1, D // 2 :], k[b, :, t, D // 2 :]
            one, other = before @ mechanism.to_query.T, now @ mechanism.to_key.T
            cosine = (one * other).sum() / (one.norm() * other.norm())
            p = (1 - cosine) / 2
            wanted = bool(p > 0.5)
        age = t - starts[b][-1]
        if age >= most or (wanted and age >= least):
            starts[b].append(t)
        if p is not None and least <= age < most:
            nudge[b, t] = p - p.detach()
    return starts, nudge if isinstance(mechanism, ChunkLearned) else None


def slow(mechanism: Chunk, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    starts, nudge = slow_starts(mechanism, k)
    reach = mechanism.chunk if isinstance(mechanism, ChunkSliding) else None
    return slow_chunks(q, k, v, starts, mechanism.scorer, mechanism.recent, reach, nudge)


def results(run: Callable[..., Tensor], inputs: list[Tensor], *parameters: Tensor) -> list[Tensor]:
    """The output, and the gradients of a random projection of it."""
    out = run(*inputs)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=generator)
    wanted = [*inputs, *parameters]
    return [out, *torch.autograd.grad((out * weight).sum(), wanted, materialize_grads=True)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize(
    ("length", "chunk", "recent"),
    [
        (1, 4, None), (63, 1, None), (70, 4, None), (100, 16, 1), (100, 5, 12),
        *long((150, 7, None)),
    ],
)  # fmt: skip
def test_equals_the_slow_reference_in_value_and_gradient(
    kind: type[Chunk], length: int, chunk: int, recent: int | None
) -> None:
    mechanism = built(kind, chunk, recent)
    parameters = list(mechanism.parameters())
    inputs = qkv(length)
    expected = results(lambda *x: slow(mechanism, *x), inputs, *parameters)
    assert_same(results(mechanism, inputs, *parameters), expected)


@kinds
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_length_chunk_and_recent_tokens(kind: type[Chunk], data: Any) -> None:
    length, chunk = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 40))
    recent = data.draw(st.one_of(st.none(), st.integers(1, 50)))
    mechanism = built(kind, chunk, recent, data.draw(st.integers(0, 9)))
    with torch.no_grad():
        inputs = qkv(length, data.draw(st.integers(0, 9)), batch=2)
        assert_same([mechanism(*inputs)], [slow(mechanism, *inputs)])


@kinds
def test_chunks_of_one_token_are_full_attention(kind: type[Chunk]) -> None:
    inputs = qkv(150)
    ours = results(built(kind, 1), inputs)
    assert_same(ours, results(full_attention, inputs))
    assert_same(ours[:1], [slow_softmax(*inputs)])


@kinds
def test_a_chunk_longer_than_the_text_is_full_attention(kind: type[Chunk]) -> None:
    """One's own chunk is the text; where lengths vary, a chunk has at least half of C tokens."""
    inputs = qkv(150)
    assert_same(results(built(kind, 300), inputs), results(full_attention, inputs))
    if kind in (Chunk, ChunkSliding):
        assert_same(results(built(kind, 150), inputs), results(full_attention, inputs))


@kinds
@pytest.mark.parametrize("recent", [None, 11])
def test_every_earlier_token_counts_once(kind: type[Chunk], recent: int | None) -> None:
    """Where all logits are equal, attention is the mean of all values so far."""
    mechanism = built(kind, 6, recent)
    q, k, v = (x.detach() for x in qkv(130))
    with torch.no_grad():
        mechanism.scorer.zero_()
        out = mechanism(torch.zeros_like(q), k, v)
        mean = v.cumsum(2) / torch.arange(1, 131)[:, None]
        if kind is not ChunkSliding:
            torch.testing.assert_close(out, mean, rtol=1e-10, atol=1e-10)
            return
        # Stretches overlap: a token far from both ends is in two of 6 tokens that stand for 3 each.
        impulse = torch.zeros_like(v)
        impulse[:, :, 40] = 1.0
        share = mechanism(torch.zeros_like(q), k, impulse)[0, 0, :, 0] * torch.arange(1, 131)
        settled = 40 + 3 * 6 if recent is None else 40 + 3 * 6 + recent
        torch.testing.assert_close(share[settled:], torch.ones(130 - settled).double())
        ones = mechanism(torch.zeros_like(q), k, torch.ones_like(v))
        torch.testing.assert_close(ones, torch.ones_like(v))


def test_no_token_sees_a_summary_of_its_own_chunk() -> None:
    """A summary blurs: in one's own chunk a token is found exactly, and so is its neighbour's."""
    mechanism = built(Chunk, 8)
    q, k, v = (x.detach() for x in qkv(64))
    with torch.no_grad():
        for t in range(64):
            first = t - t % 8
            changed = v.clone()
            changed[:, :, first : t + 1] = 0
            inside = mechanism(q, k, v - changed)[:, :, t]
            scores = torch.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, first : t + 1]) / D**0.5
            mixed = (scores.softmax(-1)[..., None] * v[:, :, first : t + 1]).sum(2)
            ratio = inside / mixed  # the share of one's own chunk, the same in all channels
            assert (ratio > 0).all() and (ratio <= 1 + 1e-9).all()
            torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))


@kinds
@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 120), chunk=st.integers(1, 12), data=st.data())
def test_the_past_does_not_depend_on_the_future(
    kind: type[Chunk], length: int, chunk: int, data: Any
) -> None:
    mechanism = built(kind, chunk)
    end = data.draw(st.integers(1, length - 1))
    inputs = qkv(length)
    parameters = list(mechanism.parameters())
    whole = results(lambda *x: mechanism(*x)[:, :, :end], inputs, *parameters)
    cut = [x[:, :, :end].detach().requires_grad_() for x in inputs]
    short = results(mechanism, cut, *parameters)
    assert_same(whole[:1] + whole[4:], short[:1] + short[4:])
    for grad, own in zip(whole[1:4], short[1:4], strict=True):
        torch.testing.assert_close(grad[:, :, :end], own, rtol=1e-10, atol=1e-10)
        assert (grad[:, :, end:] == 0).all()
    with torch.no_grad():
        later = [torch.cat([x[:, :, :end], 3 - 5 * x[:, :, end:]], 2) for x in inputs]
        assert_same([mechanism(*later)[:, :, :end]], whole[:1])


@kinds
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_hard_routes_run_on_their_own_queries(kind: type[Chunk], data: Any) -> None:
    """In value and gradient as dense execution, for shared key-value heads and empty rows too."""
    length = data.draw(st.integers(1, 140))
    H, G = data.draw(st.sampled_from([(2, 2), (4, 2), (3, 1)]))
    mechanisms = [
        built(kind, data.draw(st.integers(1, 20))),
        *build_mechanisms(["window"], Sizes(D, data.draw(st.integers(1, 9)))),
    ]
    share = data.draw(st.sampled_from([0.02, 0.3, 0.9]))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    choice = (torch.rand(3, length, generator=draw) > share).long()
    choice[1] = 1
    wide, narrow = qkv(length, 1, H, 3), qkv(length, 2, G, 3)
    q, k, v = wide[0], narrow[1], narrow[2]
    gain = torch.randn(2, H * D, generator=draw, dtype=torch.float64)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with backend("gather"):
            return routed_attention(mechanisms, gain, choice, Inputs(q, k, v, q, k))

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(H // G, 1) for x in (k, v))
        both = [one(q, k, v).transpose(1, 2).flatten(2) * g
                for one, g in zip(mechanisms, gain, strict=True)]  # fmt: skip
        return torch.where(choice[..., None] == 0, *both)

    parameters = list(mechanisms[0].parameters())
    assert_same(results(run, [q, k, v], *parameters), results(dense, [q, k, v], *parameters))


def test_scattered_queries_over_many_chunks() -> None:
    mechanism = built(Marked, 10)
    with torch.no_grad():
        q, k, v = qkv(1500, batch=3)
        chosen = torch.rand(3, 1500) < 0.07
        chosen[1] = False
        queries = Queries(*chosen.nonzero().unbind(1))
        found = mechanism.serve(queries.of(q), k, v, queries)
        assert_same([found], [queries.of(mechanism(q, k, v))])


@kinds
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_texts_read_in_pieces_get_their_rows(kind: type[Chunk], data: Any) -> None:
    """Rows of several lengths, pieces of several sizes: summaries grow as chunks finish."""
    mechanism = built(kind, data.draw(st.integers(1, 9)), data.draw(st.sampled_from([None, 1, 7])))
    size = st.one_of(st.integers(0, 1), st.integers(0, 20))
    pieces = data.draw(st.lists(st.tuples(size, size, size), min_size=1, max_size=12))
    pieces = [piece for piece in pieces if any(piece)] or [(1, 0, 2)]
    lengths = [sum(own) for own in zip(*pieces, strict=True)]
    with torch.no_grad():
        q, k, v = qkv(max(lengths), 3, 2, 3)
        k, v = k[:, :1], v[:, :1]
        found = read_in_pieces(mechanism, q, k, v, pieces)
        whole = mechanism(q, k.expand_as(q), v.expand_as(q))
        for row, length in enumerate(lengths):
            assert_same([found[row, :, :length]], [whole[row, :, :length]])


class _Largest(_Elements):
    """Also the greatest tensor of all that are produced."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.produced
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.largest = max(self.largest, self.produced - before)
        return out


@kinds
def test_work_and_memory_grow_with_the_chunks_alone(kind: type[Chunk]) -> None:
    """All tensors of a forward and backward pass together, and the greatest of them."""
    mechanism = kind(head_width=D, window=1, chunk=32)

    def produced(length: int) -> tuple[int, int]:
        inputs = [x.detach().float().requires_grad_() for x in qkv(length, batch=1)]
        with _Largest() as elements:
            mechanism(*inputs).sum().backward()
        return elements.produced, elements.largest

    (small, _), (large, largest) = produced(1024), produced(4096)
    assert large < 8 * small  # linear: 4, quadratic: 16
    assert largest < 4096**2 / 16


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bounded_starts_are_those_of_a_walk(data: Any) -> None:
    length, rows = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 3))
    least = data.draw(st.integers(1, 9))
    most = least + data.draw(st.integers(0, 9))
    flags = st.lists(st.booleans(), min_size=length, max_size=length)
    wanted = torch.tensor([data.draw(flags) for _ in range(rows)])
    found = bounded_starts(wanted, least, most)
    for row, own in zip(found.tolist(), wanted.tolist(), strict=True):
        walk = [0]
        for t in range(1, length):
            age = t - walk[-1]
            if age >= most or (age >= least and own[t]):
                walk.append(t)
        assert row == walk + [length] * (len(row) - len(walk))
    assert int((found < length).sum(1).max()) == found.shape[1]


def test_separators_end_sentences() -> None:
    """Chunks of 5 to 19 tokens: one that is too short takes in the next, one too long is cut."""
    text = "One two. Three four! A. B. Is it? no\nand so on without an end"
    ends = torch.tensor([[character in ".!?\n" for character in text]])
    mechanism = ChunkSentence(head_width=D, window=1, chunk=10)
    k = torch.zeros(1, 1, len(text), D)
    starts = mechanism.starts(k, ends[:, None, :, None])[0].tolist()
    assert [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])] == [
        "One two.", " Three four!", " A. B.", " Is it?", " no\nand so on witho", "ut an end",
    ]  # fmt: skip


def test_a_learned_chunk_begins_where_keys_change() -> None:
    """Keys that turn about every 5 tokens, untrained: the identity tells unlike from like."""
    k = torch.ones(1, 1, 40, D)
    k[0, 0, torch.arange(40) // 5 % 2 == 1] *= -1
    starts = ChunkLearned(head_width=D, window=1, chunk=5).starts(k)
    assert starts[0].tolist() == list(range(0, 40, 5))


def test_the_ratio_loss_is_least_at_the_chosen_length() -> None:
    is_start = torch.arange(60) % 5 == 0
    share = torch.full((60,), 0.2, dtype=torch.float64)
    assert float(ratio_loss(share, is_start[None], 5)) == pytest.approx(1)
    for size, sign in ((3, -1), (9, 1)):  # too few chunks: probabilities rise
        probability = share.clone().requires_grad_()
        (grad,) = torch.autograd.grad(ratio_loss(probability, is_start, size), probability)
        assert (grad * sign > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk": 0}, "chunk: 0 given; at least 1"),
        ({"recent": 0}, "recent: 0 given; at least 1"),
        ({"head_width": 2}, "chunk: heads 2 wide given.*at least 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Chunk(**({"head_width": D, "window": 1} | arguments))


def test_mechanisms_are_found_by_name_and_get_their_chunk_length() -> None:
    names = ["full", "chunk", "chunk_sliding", "chunk_sentence", "chunk_learned"]
    mechanisms: Any = build_mechanisms(names, Sizes(head_width=D, window=3, chunk=5))
    assert [mechanism.name for mechanism in mechanisms] == names
    assert [mechanism.chunk for mechanism in mechanisms[1:]] == [5] * 4
    assert find_mechanism("chunk") is Chunk


def executed_keys(mechanism: Chunk, k: Tensor) -> Tensor:
    """How many tokens and summaries each query reads, [T], by hand."""
    starts = slow_starts(mechanism, k)[0][0]
    counts = []
    for t in range(k.shape[2]):
        lowest = max(s for s in starts if s <= max(0, t - mechanism.recent + 1))
        counts.append(t - lowest + 1 + starts.index(lowest))
    return torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize("recent", [None, 9])
@pytest.mark.parametrize(("kind", "entering"), [(Chunk, 2.5), (ChunkSliding, 4.5)])
def test_macs_are_those_of_the_keys_that_are_read(
    kind: type[Chunk], entering: float, recent: int | None
) -> None:
    """And of entering summaries: scores of half the channels, keys and values once or twice."""
    mechanism = built(kind, 6, recent)
    expected = 2 * D * executed_keys(mechanism, qkv(70)[1]) + entering * D
    found = mechanism.macs(torch.arange(70, dtype=torch.float64))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("recent", [None, 9])
@pytest.mark.parametrize("kind", [Marked, ChunkLearned])
def test_macs_of_a_text_are_counted(kind: type[Chunk], recent: int | None) -> None:
    """Where lengths vary, a price of the position can only be what it costs on average.

    W_q and W_k of `chunk_learned` are products of matrices too, of half the channels.
    """
    mechanism = built(kind, 6, recent)
    entering = 2.5 * D + (2 * (D / 2) ** 2 if kind is ChunkLearned else 0)
    k = qkv(200)[1]
    position = torch.arange(200, dtype=torch.float64)
    found = mechanism.macs_of(position, k)
    for row in range(2):
        expected = 2 * D * executed_keys(mechanism, k[row : row + 1]) + entering
        torch.testing.assert_close(found[row], expected)
    declared, counted = float(mechanism.macs(position).mean()), float(found.mean())
    assert 0.6 < declared / counted < 1.6


@pytest.mark.parametrize("name", ["chunk", "chunk_sliding", "chunk_sentence", "chunk_learned"])
def test_macs_at_1024_tokens_are_a_third_of_full_attentions_at_most(name: str) -> None:
    full, chunk = build_mechanisms(["full", name], Sizes(head_width=32, window=1))
    position = torch.arange(1024.0)
    assert float(chunk.macs(position).sum()) < 0.35 * float(full.macs(position).sum())
