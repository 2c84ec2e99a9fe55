"""Texts read through a cache get the logits that they get when they are read at once."""

import itertools
import random
from typing import Any

import pytest
import torch
from conftest import build
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import masked_attention, seen_by_window
from torch import Tensor

from pyro_meta import (
    Decision,
    DirichletGuide,
    Features,
    FixedGuide,
    Guide,
    LanguageModel,
    Mechanism,
    PaperGuide,
    PointGuide,
    PriorGuide,
    RandomGuide,
    Shape,
    TokenTableGuide,
    Transformer,
    UsageError,
)
from pyro_meta.attention import (
    Cache,
    Full,
    LayerCache,
    Linear,
    Queries,
    Window,
    decodes,
    mechanisms,
    read_in_pieces,
    recurs,
    serves,
)
from pyro_meta.contracts.admission import require_sound, require_sound_network
from pyro_meta.generation.reader import Reader, first_read
from pyro_meta.generation.sampling import Sampling, continue_batch, continue_tokens
from pyro_meta.guides import of_own_token
from pyro_meta.network.route import Route, as_weights

VOCABULARY = 11
GREEDY = Sampling(greedy=True)
PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8], list(range(13)) * 2]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not define serve")


class Own(Mechanism):
    """A user's own mechanism that declares nothing: values so far, weighed by their keys."""

    nominal_cost = 0.01

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weight = k.sigmoid()
        return q.tanh() + (weight * v).cumsum(2) / weight.cumsum(2)

    def macs(self, position: Tensor) -> Tensor:
        return torch.zeros_like(position)


class Plain(Own):
    """The same, of what is not rotated."""

    rotary = False


class First(Own):
    """The first value, times one's query; it serves chosen queries, and nothing more."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q * v[:, :, :1]

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        first = v.repeat_interleave(q.shape[1] // v.shape[1], 1)[:, :, 0]
        return q * first[queries.sequence]


BUILT_IN = ("full", "window", "linear")
CHUNKS = ("chunk", "chunk_sliding", "chunk_sentence", "chunk_learned")
OWN = tuple(f"{__name__}.{name}" for name in ("Own", "Plain", "First"))
EVERY = (*BUILT_IN, "linear_momentum", *CHUNKS, *OWN)


def network_of(
    mechanisms: tuple[str, ...] = EVERY,
    kv_heads: int | None = None,
    window: int = 5,
    sinks: int = 0,
) -> Transformer:
    torch.manual_seed(1)
    shape = Shape(
        vocabulary=VOCABULARY, context=64, width=16, layers=2, heads=4, kv_heads=kv_heads,
        window=window, chunk=3, sinks=sinks,
    )  # fmt: skip
    network = Transformer(shape, mechanisms, separators=[2, 5, 7])
    for block in network.blocks:
        for parameter in block.attention.mechanisms.parameters():
            torch.nn.init.normal_(parameter)
        torch.nn.init.normal_(block.attention.gain)
    return network.requires_grad_(False)


def by_hash(network: Transformer, kind: str, seed: int = 0) -> Route:
    """Routes that look random and depend on layer, token and position."""
    K = len(network.mechanisms)
    table = torch.randn(97, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def route(layer: int, features: Features) -> Decision:
        index = (features.tokens * 5 + features.positions * 7 + 31 * layer) % len(table)
        scores = table[index].to(features.state)
        if kind == "hard":
            return Decision(scores.argmax(-1))
        soft = (3 * scores).softmax(-1)
        return Decision(
            soft if kind == "soft" else soft[:1, :1].mean((0, 1), keepdim=True) * 0 + 1 / K
        )

    return route


@pytest.mark.usefixtures("double")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_split_of_any_texts_gives_the_same_logits(data: Any) -> None:
    """Rows of several lengths, pieces of several sizes, padding of random tokens, all mechanisms.

    What is beside a row, before or behind it, is random: it leaves no trace.
    """
    rows = data.draw(st.integers(1, 3))
    kv_heads, window = data.draw(st.sampled_from([None, 2, 1])), data.draw(st.integers(1, 9))
    sinks = data.draw(st.sampled_from([0, 1, 3, 70]))
    mechanisms = data.draw(st.sampled_from([EVERY, BUILT_IN]))
    network = network_of(mechanisms, kv_heads, window, sinks)
    route = by_hash(network, data.draw(st.sampled_from(["hard", "hard", "soft", "even"])))
    cache = network.new_cache(rows, keeps_features=data.draw(st.booleans()))
    sizes = st.one_of(st.just(1), st.integers(1, 9), st.integers(60, 75))
    texts: list[list[int]] = [[] for _ in range(rows)]
    found: list[list[Tensor]] = [[] for _ in range(rows)]
    is_ragged = data.draw(st.booleans())
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 6))):
        size = data.draw(sizes)
        counts = [size] * rows
        if is_ragged:
            counts = [data.draw(st.integers(0, size)) for _ in range(rows)]
        tokens = torch.randint(VOCABULARY, (rows, size), generator=draw)
        logits = network(tokens, route, cache, counts if is_ragged else None)
        for row, count in enumerate(counts):
            texts[row] += tokens[row, :count].tolist()
            found[row].append(logits[row, :count])
    assert cache.lengths == [len(text) for text in texts]
    for text, pieces in zip(texts, found, strict=True):
        if text:
            torch.testing.assert_close(
                torch.cat(pieces), network(torch.tensor([text]), route)[0], rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("mechanism", EVERY)
def test_single_precision_and_each_mechanism_alone(mechanism: str) -> None:
    network = network_of((mechanism,), kv_heads=2)
    tokens = torch.randint(VOCABULARY, (2, 90))
    for kind in ("hard", "soft"):
        route = by_hash(network, kind)
        cache = network.new_cache(2, keeps_features=False)
        pieces = tokens.split([30, *[1] * 60], dim=1)
        found = torch.cat([network(piece, route, cache) for piece in pieces], 1)
        torch.testing.assert_close(found, network(tokens, route), rtol=1e-4, atol=1e-4)


def trained_like(
    guide: type[Guide], threshold: float, sinks: int = 0
) -> tuple[LanguageModel, Guide]:
    """A model whose routes differ from token to token; its context is full after 12."""
    model, built = build(guide=guide, context=12, sinks=sinks)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    built.harden_below(threshold)
    return model, built


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "guide",
    [DirichletGuide, PointGuide, PriorGuide, PaperGuide, TokenTableGuide, FixedGuide, RandomGuide],
)
def test_logits_with_and_without_a_cache(guide: type[Guide], threshold: float) -> None:
    """Token by token, for prompts of several lengths, across several fillings of the context."""
    model, built = trained_like(guide, threshold)
    with_cache, without = (Reader(model, built, PROMPTS, uses) for uses in (True, False))
    for step in range(22):
        ours, theirs = with_cache.logits(), without.logits()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        new = theirs.argmax(-1).tolist() if step % 3 else [step % 13, 5 * step % 13, 1]
        with_cache.append(new)
        without.append(new)


@pytest.mark.parametrize(("threshold", "sinks"), [(0.0, 0), (1.0, 0), (1.0, 2)])
def test_greedy_text_is_the_same_alone_in_a_batch_and_without_a_cache(
    threshold: float, sinks: int
) -> None:
    model, guide = trained_like(DirichletGuide, threshold, sinks)
    batch = list(continue_batch(model, guide, PROMPTS, 30, GREEDY, seed=0))
    slow = list(continue_batch(model, guide, PROMPTS, 30, GREEDY, seed=0, cache=False))
    assert batch == slow
    for row, prompt in enumerate(PROMPTS):
        alone = list(continue_tokens(model, guide, prompt, 30, GREEDY, seed=0))
        assert alone == [new[row] for new in batch]


def test_draws_do_not_depend_on_the_prompts_beside() -> None:
    model, guide = trained_like(PointGuide, 1.0)
    batch = list(continue_batch(model, guide, [[1], [2, 3], [2, 3]], 12, Sampling(), seed=4))
    alone = list(continue_tokens(model, guide, [2, 3], 12, Sampling(), seed=5))
    assert [new[1] for new in batch] == alone != [new[2] for new in batch]
    assert list(continue_batch(model, guide, [], 3, GREEDY, seed=0)) == []
    with pytest.raises(UsageError, match="at least one token"):
        list(continue_batch(model, guide, [[1], []], 3, GREEDY, seed=0))


@given(context=st.integers(1, 40), length=st.integers(1, 300))
def test_the_oldest_half_is_dropped_when_the_context_is_full(context: int, length: int) -> None:
    starts = [first_read(n, context) for n in range(1, length + 1)]
    assert all(start == 0 for start in starts[:context])
    for before, after in itertools.pairwise(starts):
        assert after - before in (0, (context + 1) // 2)
    assert context // 2 + 1 - (context == 1) <= length - starts[-1] or length <= context
    assert 1 <= length - starts[-1] <= context


def test_a_cache_is_rebuilt_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = trained_like(PointGuide, 1.0)
    sizes: list[int] = []
    states = Transformer.states

    def counted(self: Transformer, tokens: Tensor, *rest: Any) -> Tensor:
        sizes.append(tokens.numel())
        return states(self, tokens, *rest)

    monkeypatch.setattr(Transformer, "states", counted)
    list(continue_tokens(model, guide, [1, 2, 3], 30, GREEDY, seed=0))
    assert sizes == [3, *[1] * 9, 7, *[1] * 5, 7, *[1] * 5, 7, *[1] * 5, 7, 1]


@pytest.mark.usefixtures("double")
def test_a_reader_reads_what_is_new_once_whatever_the_order_of_calls() -> None:
    """Logits asked for twice, several tokens at once, and a text that outgrows the context."""
    model, guide = trained_like(PointGuide, 1.0)
    with_cache, without = (Reader(model, guide, PROMPTS, uses) for uses in (True, False))
    for step in range(8):
        for _ in range(step % 3):
            for reader in (with_cache, without):
                reader.append([step, step + 1, step + 2])
        for _ in range(2):
            torch.testing.assert_close(
                with_cache.logits(), without.logits(), rtol=1e-10, atol=1e-10
            )


@pytest.mark.usefixtures("double")
def test_a_reader_that_was_interrupted_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = trained_like(PointGuide, 1.0)
    with_cache, without = (Reader(model, guide, PROMPTS, uses) for uses in (True, False))
    for step in range(6):
        for reader in (with_cache, without):
            reader.append([step, 1, 2])
        with monkeypatch.context() as patch:
            name = ("extend", "replace")[step % 2]  # rows are replaced in some of the steps
            patch.setattr(LayerCache, name, interrupt)
            patch.setattr(Cache, "commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                with_cache.logits()
        torch.testing.assert_close(with_cache.logits(), without.logits(), rtol=1e-10, atol=1e-10)


def test_a_context_of_nothing_is_refused() -> None:
    model, guide = trained_like(PointGuide, 1.0)
    with pytest.raises(UsageError, match="context: 0 given; at least 1"):
        Reader(model, guide, [[1]], context=0)
    texts = [list(continue_tokens(model, guide, [1, 2], 9, GREEDY, 0))]
    texts += [[new[0] for new in continue_batch(model, guide, [[1, 2]], 9, GREEDY, 0, context=c)]
              for c in (None, model.network.shape.context)]  # fmt: skip
    assert texts[0] == texts[1] == texts[2]


def interrupt(*args: Any, **named: Any) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("counts", [None, [2, 0, 1]])
@pytest.mark.parametrize("begun", [False, True])
def test_what_raises_on_the_way_leaves_the_cache_as_it_was(
    kind: str, counts: list[int] | None, begun: bool
) -> None:
    network = network_of()
    route = by_hash(network, kind)
    tokens = torch.randint(VOCABULARY, (3, 90))

    def fails_late(layer: int, features: Features) -> Decision:
        return interrupt() if layer == 1 else route(layer, features)

    for keeps_features in (False, True):
        cache = network.new_cache(3, keeps_features)
        if begun:
            network(tokens[:, :20], route, cache, [20, 7, 12])
        before = list(cache.lengths)
        with pytest.raises(KeyboardInterrupt):
            network(tokens[:, -2:], fails_late, cache, counts)
        assert cache.lengths == before
        piece = tokens[:, 30:33]
        found = network(piece, route, cache)
        for row, length in enumerate(before):
            whole = network(torch.cat([tokens[row, :length], piece[row]])[None], route)
            torch.testing.assert_close(found[row], whole[0, -3:], rtol=1e-10, atol=1e-10)


def test_an_exchange_of_texts_that_was_interrupted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(BUILT_IN)
    route, tokens = by_hash(network, "hard"), torch.zeros(1, 3, dtype=torch.long)
    cache, fresh = network.new_cache(1), network.new_cache(1)
    for one in (cache, fresh):
        network(tokens, route, one)
    monkeypatch.setattr(LayerCache, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.replace([0], fresh)
    with pytest.raises(RuntimeError, match="interrupted while its texts were exchanged"):
        network(tokens, route, cache)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mechanisms", [EVERY, ("linear",)])
@pytest.mark.parametrize("keeps_features", [False, True])
def test_rows_of_a_cache_that_has_read_nothing_take_texts(
    mechanisms: tuple[str, ...], keeps_features: bool
) -> None:
    network = network_of(mechanisms)
    route = by_hash(network, "hard")
    text = torch.randint(VOCABULARY, (1, 70))
    empty, fresh = network.new_cache(1, keeps_features), network.new_cache(1, keeps_features)
    network(text, route, fresh)
    cache = network.new_cache(3, keeps_features)
    cache.replace([2], empty)  # nothing in place of nothing
    cache.replace([1], fresh)
    assert cache.lengths == [0, 70, 0]
    new = torch.randint(VOCABULARY, (3, 2))
    found = network(new, route, cache)
    cache.replace([1], empty)
    again = network(new[:, :1], route, cache)
    for row, before in enumerate((text[0, :0], text[0], text[0, :0])):
        whole = network(torch.cat([before, new[row]])[None], route)[0, -2:]
        torch.testing.assert_close(found[row], whole, rtol=1e-10, atol=1e-10)
    whole = network(new[1:2, :1], route)
    torch.testing.assert_close(again[1], whole[0], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("keeps_features", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 11), (3, 2, 11), (1, 1, 11), (11,)])
def test_weights_of_whole_rows_serve_rows_at_different_positions(
    keeps_features: bool, shape: tuple[int, ...]
) -> None:
    if keeps_features and shape[-2:-1] == (2,):
        pytest.skip("such a route is asked about whole texts, not about 2 tokens")
    network = network_of()
    weights = torch.rand(shape)
    tokens = torch.randint(VOCABULARY, (3, 9))
    cache = network.new_cache(3, keeps_features)
    starts = [7, 2, 4]
    mean = weights if len(shape) == 1 else weights[..., :1, :]
    network(tokens[:, :7], lambda layer, features: Decision(mean), cache, starts)
    found = network(tokens[:, 7:], lambda layer, features: Decision(weights), cache)
    for row, start in enumerate(starts):
        own = weights if len(shape) == 1 else weights[row % len(weights), :]
        first = own if own.dim() == 1 else own[:1].expand(start, -1)
        both = own if own.dim() == 1 else torch.cat([first, own.expand(2, -1)])[None]
        text = torch.cat([tokens[row, :start], tokens[row, 7:]])[None]
        whole = network(text, lambda layer, features, both=both: Decision(both))
        torch.testing.assert_close(found[row], whole[0, -2:], rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_window_with_sinks_is_continued(data: Any) -> None:
    """Token by token and in pieces, in rows of different lengths, against a mask of T x T."""
    rows, length = data.draw(st.integers(1, 3)), 90
    H, G = data.draw(st.sampled_from([(2, 2), (4, 2), (3, 1)]))
    window, sinks = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([1, 4, 30, 200]))
    q, k, v = (torch.randn(rows, heads, length, 4, dtype=torch.float64) for heads in (H, G, G))
    pieces, left = [], [length] * rows
    draw, is_ragged = random.Random(data.draw(st.integers(0, 99))), data.draw(st.booleans())
    while max(left):
        size = draw.choice([1, 1, 1, 7, 40])
        counts = [min(draw.randint(0, size) if is_ragged else size, most) for most in left]
        left = [most - count for most, count in zip(left, counts, strict=True)]
        if max(counts):
            pieces.append(counts)
    found = read_in_pieces(Window(4, window, sinks), q, k, v, pieces)
    repeated = (x.repeat_interleave(H // G, 1) for x in (k, v))
    expected = masked_attention(q, *repeated, seen_by_window(length, window, sinks))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 4, 7, 9, 10, 60])
def test_the_newest_token_reads_window_and_sinks_and_nothing_else(length: int) -> None:
    """What lies between is poisoned; a text that both hold is read where it is."""
    q, k, v = torch.randn(3, 2, 2, length, 4, dtype=torch.float64)
    last = slice(length - 1, length)
    expected = masked_attention(q, k, v, seen_by_window(length, 6, 3))[:, :, last]
    k[:, :, 3:-6], v[:, :, 3:-6] = torch.nan, torch.nan
    mechanism = Window(4, 6, 3)
    found = mechanism.decode(q[:, :, last], k, v)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    seen = mechanism._seen_by_newest(k)
    is_view = seen.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    assert is_view == (length <= 9) and seen.shape[2] == min(length, 9)


def refuse(*args: Any) -> Tensor:
    raise AssertionError("a mechanism was run that no token chose")


@pytest.mark.parametrize("mechanism", [Full, Window, Linear])
def test_a_token_pays_for_its_own_route_only(
    mechanism: type[Mechanism], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(BUILT_IN)
    index = BUILT_IN.index(mechanism.__name__.lower())
    tokens = torch.randint(VOCABULARY, (1, 80))
    cache = network.new_cache(1, keeps_features=False)
    network(tokens, by_hash(network, "hard"), cache)
    for other in (Full, Window, Linear):
        for method in ("forward", "serve", "decode", "resume"):
            if other is not mechanism and method in vars(other):
                monkeypatch.setattr(other, method, refuse)
    network(tokens[:, :1], lambda layer, features: Decision(0 * features.tokens + index), cache)


def test_keys_are_neither_copied_for_a_window_nor_with_every_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_of(BUILT_IN)
    cache = network.new_cache(1, keeps_features=False)
    rooms: set[int] = set()

    def seen(self: Window, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        room = cache.layers[0].kept["k_rotated"].room
        assert room is not None
        if k.untyped_storage().data_ptr() == room.untyped_storage().data_ptr():
            rooms.add(room.shape[2])
        return decode(self, q, k, v)

    decode = Window.decode
    monkeypatch.setattr(Window, "decode", seen)
    tokens = torch.randint(VOCABULARY, (1, 300))
    for position in range(300):
        network(
            tokens[:, position, None],
            lambda layer, features: Decision(0 * features.tokens + 1),
            cache,
        )
    assert rooms == {64, 128, 256, 512}


@pytest.mark.usefixtures("double")
def test_a_row_takes_another_text() -> None:
    network = network_of()
    route = by_hash(network, "hard")
    for keeps_features in (False, True):
        cache = network.new_cache(3, keeps_features)
        network(torch.randint(VOCABULARY, (3, 20)), route, cache, [20, 7, 12])
        fresh = network.new_cache(2, keeps_features)
        texts = torch.randint(VOCABULARY, (2, 70))
        network(texts, route, fresh, [70, 4])
        cache.replace([2, 0], fresh)
        assert cache.lengths == [4, 7, 70]
        new = torch.randint(VOCABULARY, (3, 1))
        found = network(new, route, cache)
        for row, text in ((2, texts[0]), (0, texts[1, :4])):
            whole = network(torch.cat([text, new[row]])[None], route)
            torch.testing.assert_close(found[row, -1], whole[0, -1], rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_is_refused() -> None:
    network = network_of(BUILT_IN)
    route, tokens = by_hash(network, "hard"), torch.zeros(2, 3, dtype=torch.long)
    for lengths in ([3], [3, 4], [-1, 2]):
        with pytest.raises(ValueError, match="2 of 0 to 3 are needed"):
            network(tokens, route, network.new_cache(2), lengths)
    with pytest.raises(ValueError, match="2 rows, and the cache 1"):
        network(tokens, route, network.new_cache(1))
    cache = network.new_cache(2)
    network(tokens, route, cache)
    with pytest.raises(ValueError, match="choice: 3 given; 0 to 2"):
        network(tokens, lambda layer, features: Decision(0 * features.tokens + 3), cache)
    with pytest.raises(ValueError, match="no cache"):
        network(tokens, route, None, [3, 2])


class OwnForward(Full):
    """It attends otherwise than `Full`, whose other ways of attending it inherits."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * super().forward(q, k, v)


class OwnState(Linear):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * super().forward(q, k, v)


class OwnWindow(Window):
    """What is inherited with `forward` holds."""


def test_what_is_inherited_beside_another_forward_is_not_used() -> None:
    ways = (serves, decodes, recurs)
    assert [way(OwnForward(4, 5)) for way in ways] == [False, False, False]
    assert [way(OwnState(4, 5)) for way in ways] == [False, False, False]
    assert [way(OwnWindow(4, 5)) for way in ways] == [True, True, False]
    assert [way(Linear(4, 5)) for way in ways] == [True, False, True]
    network = network_of(tuple(f"{__name__}.{name}" for name in ("OwnForward", "OwnState")))
    route, weigh = by_hash(network, "hard"), by_hash(network, "soft")
    tokens = torch.randint(VOCABULARY, (2, 90))
    for own in (route, weigh):
        cache = network.new_cache(2, keeps_features=False)
        pieces = [network(piece, own, cache) for piece in tokens.split([60, 1, 29], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), network(tokens, own), rtol=1e-4, atol=1e-4)
    hard = network(tokens, route)
    dense = network(tokens, lambda *asked: Decision(as_weights(route(*asked).route, 2)))
    torch.testing.assert_close(hard, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_what_a_mechanism_can_do_is_decided_when_it_is_built(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked for in the class hierarchy while texts are read and continued."""
    network = network_of()
    monkeypatch.setattr(mechanisms, "_is_of_forward", refuse)
    with pytest.raises(AssertionError):
        Full(4, 5)
    cache = network.new_cache(1, keeps_features=False)
    for piece in torch.randint(VOCABULARY, (1, 30)).split([20, *[1] * 10], dim=1):
        network(piece, by_hash(network, kind), cache)


class OnlyResumes(Own):
    def resume(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
        return q


class OnlyHasAState(Own):
    def state_of(self, k: Tensor, v: Tensor, past: Any, is_token: Any) -> Tensor:
        return k


@pytest.mark.parametrize("kind", [OnlyResumes, OnlyHasAState])
def test_half_a_state_is_refused(kind: type[Mechanism]) -> None:
    with pytest.raises(UsageError, match=f"{kind.__name__} defines one of state_of and resume"):
        kind(head_width=4, window=5)


class DecodesTheFirst(Own):
    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        everywhere = q.new_zeros(k.shape).transpose(1, 2)
        everywhere[queries.sequence, queries.position] = q
        return queries.of(self(everywhere.transpose(1, 2), k, v))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v[:, :, :1]


class LooksBackAndSaysNothing(DirichletGuide):
    def posterior(self, layer: int, features: Features) -> Any:
        features = features._replace(normed=9 * features.normed.cumsum(1))
        return super().posterior(layer, features)


class LooksBack(LooksBackAndSaysNothing):
    @of_own_token
    def posterior(self, layer: int, features: Features) -> Any:
        return super().posterior(layer, features)


@pytest.mark.usefixtures("double")
def test_training_refuses_what_decodes_otherwise_than_it_reads() -> None:
    require_sound_network(network_of())
    with pytest.raises(UsageError, match=r"DecodesTheFirst: .* decode\(\) gives other rows"):
        require_sound_network(network_of(("full", f"{__name__}.DecodesTheFirst")))
    for guide in (DirichletGuide, RandomGuide, LooksBackAndSaysNothing):
        require_sound(*trained_like(guide, 1.0))
    model, guide = trained_like(DirichletGuide, 1.0)
    wrong = LooksBack(model)
    for parameter in wrong.parameters():
        torch.nn.init.normal_(parameter)
    assert guide.is_of_own_token and not LooksBackAndSaysNothing(model).is_of_own_token
    with pytest.raises(UsageError, match="LooksBack: it is declared of_own_token"):
        require_sound(model, wrong)


@pytest.mark.usefixtures("double")
def test_a_guide_that_looks_back_is_asked_about_the_whole_text() -> None:
    model, guide = trained_like(LooksBackAndSaysNothing, 1.0)
    with_cache, without = (Reader(model, guide, PROMPTS, uses) for uses in (True, False))
    for step in range(9):
        ours, theirs = with_cache.logits(), without.logits()
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        with_cache.append([step, 1, 2])
        without.append([step, 1, 2])
