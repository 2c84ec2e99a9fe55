"""The recall task keeps its promises, and scores against its truth are what they say."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import read, undecided_in
from scipy.stats import binom
from torch import Tensor

from pyro_meta import UsageError
from pyro_meta.data.corpus import Truth
from pyro_meta.data.recall import Recall, RecallCorpus
from pyro_meta.distributions.simplex import Point
from pyro_meta.evaluation.known_truth import auroc, score_against_truth
from pyro_meta.guides import FixedGuide, Guide, mean_route
from pyro_meta.network.route import Features

SMALL = {"pairs": 6, "queries": 4, "distance": 8}


def rows_of(corpus: RecallCorpus, rows: int = 3, length: int = 97) -> list[tuple[list[str], list]]:
    """Symbols and query flags of some sequences."""
    sequences = corpus.plant(np.random.default_rng(0), rows, length)
    symbols = corpus.vocabulary.symbols  # type: ignore[attr-defined]
    return [
        ([symbols[index] for index in row], list(flags))
        for row, flags in zip(sequences.rows, sequences.truth.is_answer, strict=True)
    ]


@given(
    pairs=st.integers(1, 6), queries=st.integers(0, 9), hops=st.sampled_from([1, 2]),
    marked=st.booleans(), strangers=st.integers(0, 3), distance=st.integers(0, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_query_asks_for_a_definition_far_behind(
    pairs: int, queries: int, hops: int, marked: bool, strangers: int, distance: int
) -> None:
    data = Recall(
        pairs=pairs, queries=queries, hops=hops, marked=marked, strangers=strangers,
        distance=distance, keys=pairs + 2,
    )  # fmt: skip
    for row, is_query in rows_of(data.corpus()):
        asked = [at for at, flag in enumerate(is_query) if flag]
        assert len(asked) == queries
        for at in asked:
            key, value = row[at].strip("⟨⟩"), row[at + 1].strip("⟨⟩")
            before = row[:at]
            if hops == 1:
                defined = [i for i, symbol in enumerate(before) if symbol == f"⟨{key}={value}⟩"]
            else:
                defined = [i + 1 for i in range(at - 1) if row[i : i + 2] == row[at : at + 2]]
            assert defined and at - defined[0] >= distance
            assert (row[at - 1] == "⟨?⟩") == marked
        assert sum(symbol == "⟨?⟩" for symbol in row) == queries * marked


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_slow_reading_finds_what_was_promised(data: st.DataObject) -> None:
    """At any options, in contexts that just fit and in short sequences."""
    draw = data.draw
    marked, pairs = draw(st.booleans()), draw(st.sampled_from([1, 2, 3, 5, 13]))
    extra = draw(st.sampled_from([0, 1, 2, 40] if marked else [1, 2, 40]))
    corpus = Recall(
        pairs=pairs, keys=pairs + extra, marked=marked, hops=draw(st.sampled_from([1, 2])),
        queries=draw(st.integers(0, 9)), strangers=draw(st.integers(0, 4)), values=3,
        distance=draw(st.sampled_from([0, 1, 2, 5, 24])), letters=26,
    ).corpus()  # fmt: skip
    tightest = next(length for length in range(1, 999) if corpus.plan.fits(length))
    length = max(2, draw(st.sampled_from([tightest, tightest + 30, tightest // 2, tightest // 8])))
    plan = corpus.plan.fitted(length)
    taken: list[int] = []

    def alphabet(rng: np.random.Generator, rows: int, length: int, is_validation: bool) -> Any:
        taken.append(length)
        return np.tile(np.arange(length) % 26, (rows, 1))

    corpus.filler = alphabet
    rows, truth = corpus.plant(np.random.default_rng(draw(st.integers(0, 99))), 4, length)
    assert taken[0] <= plan.most_filler(length)
    for row, is_answer, is_undecided in zip(rows, truth.is_answer, truth.is_undecided, strict=True):
        symbols = [corpus.vocabulary.symbols[token] for token in row]  # type: ignore[attr-defined]
        found = read(symbols, marked)
        assert len(found.signs) == (plan.pairs > 0) + (plan.queries + plan.strangers > 0)
        keys = list(found.defined)
        assert keys == sorted(set(keys)) and len(keys) == len(found.definitions)
        assert min(1, plan.pairs) <= len(keys) <= plan.most_pairs
        assert extra or len(keys) == plan.pairs or plan != corpus.plan
        if found.definitions:
            positions = [at for at, _, _ in found.definitions]
            first = found.signs[0] + 1
            assert positions == list(range(first, first + len(keys) * plan.hops, plan.hops))
        if len(found.signs) == 2:
            wait = found.signs[1] - (found.signs[0] + 1 + len(keys) * plan.hops)
            assert plan.distance <= wait <= plan.distance + plan.free(length) // 2
        assert len(found.queries) == plan.queries
        assert all(found.defined[key] == value for _, key, value in found.queries)
        are_left = marked or len(keys) < plan.keys
        assert len(found.strangers) == plan.strangers * are_left
        assert marked or not {key for _, key in found.strangers} & set(keys)
        assert "".join(symbols[at] for at in found.filler) == "".join(
            chr(97 + number % 26) for number in range(len(found.filler))
        )
        assert np.flatnonzero(is_answer).tolist() == [at for at, _, _ in found.queries]
        expected = undecided_in(found, marked, plan.distance)
        assert np.flatnonzero(is_undecided).tolist() == sorted(expected - {length - 1})


def test_definitions_stand_together_by_increasing_key() -> None:
    corpus = Recall(pairs=6, queries=0, keys=9, distance=8).corpus()
    defined = set()
    for row, _ in rows_of(corpus, rows=40):
        at = [index for index, symbol in enumerate(row) if "=" in symbol]
        assert at == list(range(at[0], at[0] + len(at))) and row[at[0] - 1] == "⟨!⟩"
        keys = [int(row[index][2:].split("=")[0]) for index in at]
        assert keys == sorted(set(keys))
        defined |= set(keys)
    assert defined == set(range(9))


def test_counting_definitions_tells_nothing_of_the_next() -> None:
    """Among more keys each is defined by a coin of its own: what came before does not matter."""
    corpus = Recall(pairs=6, queries=0, keys=8, distance=8).corpus()
    after: dict[int, list[tuple[int, bool]]] = {}  # of key 4: how many before it, is 5 defined?
    numbers = []
    for row, _ in rows_of(corpus, rows=8000):
        keys = [int(symbol[2:].split("=")[0]) for symbol in row if "=" in symbol]
        numbers.append(len(keys))
        for key in set(keys) & {4, 5, 6}:
            after.setdefault(key, []).append((keys.index(key), key + 1 in keys))
    assert np.mean(numbers) == pytest.approx(6, abs=0.1) and set(numbers) > {4, 5, 6, 7, 8}
    for found in after.values():
        for before in (2, 3, 4):
            follows = [is_next for count, is_next in found if count == before]
            assert len(follows) > 100
            sd = (0.75 * 0.25 / len(follows)) ** 0.5
            assert np.mean(follows) == pytest.approx(0.75, abs=4 * sd)


def test_a_long_block_is_not_cut_where_it_would_be_noticed() -> None:
    """With many keys, too, as many are defined as coins say, but for one block in some hundreds."""
    corpus = Recall(pairs=6, queries=0, keys=32, distance=8).corpus()
    rows = rows_of(corpus, rows=4000, length=120)
    numbers = np.array([sum("=" in symbol for symbol in row) for row, _ in rows])
    assert numbers.mean() == pytest.approx(6, abs=0.15)
    assert (numbers > 9).mean() == pytest.approx(binom.sf(9, 32, 6 / 32), abs=0.02)
    assert (numbers == corpus.plan.most_pairs).mean() < 3e-3


def test_as_many_pairs_as_keys_are_all_defined() -> None:
    for row, _ in rows_of(Recall(pairs=6, queries=0, distance=8).corpus(), rows=20):
        assert sum("=" in symbol for symbol in row) == 6


@pytest.mark.parametrize("keys", [4, 7])
def test_counting_does_not_tell_when_definitions_and_queries_begin(keys: int) -> None:
    """Either is opened by the same sign, after any filler with the same chance."""
    corpus = Recall(pairs=4, keys=keys, queries=20, distance=8).corpus()
    rows, free = rows_of(corpus, rows=2000, length=250), corpus.plan.free(250)
    signs = np.array([[i for i, symbol in enumerate(row) if symbol == "⟨!⟩"] for row, _ in rows])
    blocks = np.array([1 + sum("=" in symbol for symbol in row) for row, _ in rows])
    for wait in (signs[:, 0], signs[:, 1] - signs[:, 0] - blocks - 8):
        assert wait.min() == 0 and wait.max() == free // 2
        for passed in (0, 20, 40, 60):
            waiting = wait[wait >= passed]
            ended = (waiting < passed + 20).mean()
            expected = 1 - (1 - 1 / (1 + free / 4)) ** 20
            assert ended == pytest.approx(expected, abs=4 * (0.25 / len(waiting)) ** 0.5)
    for (row, _), (_, opening) in zip(rows, signs, strict=True):
        assert row[opening + 1] == "⟨?⟩"


def test_a_repetition_is_an_answer_that_stood_near() -> None:
    corpus = Recall(pairs=3, queries=9, distance=12).corpus()
    sequences = corpus.plant(np.random.default_rng(0), 30, 97)
    truth = sequences.truth
    assert (truth.is_answer & truth.is_undecided).any()
    assert (truth.is_answer & ~truth.is_undecided).sum() > 30
    for row, answers, undecided in zip(
        sequences.rows, truth.is_answer, truth.is_undecided, strict=True
    ):
        for at in np.flatnonzero(answers):
            near = [
                i for i in np.flatnonzero(answers)
                if i < at and row[i] == row[at] and at - (i + 1) < 12
            ]  # fmt: skip
            assert undecided[at] == bool(near)


@pytest.mark.parametrize("marked", [False, True])
def test_only_the_definitions_tell_an_unmarked_stranger_from_a_query(marked: bool) -> None:
    corpus = Recall(**SMALL, marked=marked, strangers=3).corpus()
    sequences = corpus.plant(np.random.default_rng(0), 9, 97)
    truth, symbols = sequences.truth, corpus.vocabulary.symbols  # type: ignore[attr-defined]
    strangers = expected = 0
    for row, answers, undecided in zip(
        sequences.rows, truth.is_answer, truth.is_undecided, strict=True
    ):
        defined = {symbols[token].split("=")[0] for token in row if "=" in symbols[token]}
        expected += 3 * (marked or len(defined) < corpus.plan.keys)
        for at in np.flatnonzero(~np.append(answers, False)):
            if re.fullmatch(r"⟨k\d+⟩", symbols[row[at]]):
                strangers += 1
                assert marked or at == len(answers) or undecided[at]  # the last has no target
    assert strangers == expected > 0


def test_filler_behind_a_long_block_is_undecided() -> None:
    """A window does not see with which letter the chain was interrupted."""
    corpus = Recall(pairs=20, queries=0, distance=8).corpus()
    sequences = corpus.plant(np.random.default_rng(0), 9, 97)
    for row, undecided in zip(sequences.rows, sequences.truth.is_undecided, strict=True):
        last = max(at for at in range(97) if "=" in corpus.vocabulary.symbols[row[at]])  # type: ignore[attr-defined]
        first = last - 19
        opening = first - 1
        expected = [opening, last] if opening > 0 else [opening]
        assert np.flatnonzero(undecided).tolist() == expected


def test_with_every_key_defined_marks_tell_nothing() -> None:
    """All keys are asked for alike, and there are as many as are defined."""
    corpus = Recall(pairs=4, queries=6, distance=8).corpus()
    assert corpus.plan.keys == 4
    shown = [row[at] for row, flags in rows_of(corpus, rows=400) for at in np.flatnonzero(flags)]
    _, counts = np.unique(shown, return_counts=True)
    assert len(counts) == 4 and counts.min() > 0.9 * counts.mean()


def test_unmarked_strangers_were_never_defined() -> None:
    corpus = Recall(**SMALL, marked=False, strangers=3).corpus()
    most = set()
    for row, is_query in rows_of(corpus, rows=30):
        is_key = [re.fullmatch(r"⟨k\d+⟩", symbol) is not None for symbol in row]
        strangers = [row[at] for at in range(len(row)) if is_key[at] and not [*is_query, 0][at]]
        defined = {symbol.split("=")[0] + "⟩" for symbol in row if "=" in symbol}
        assert not defined & set(strangers)
        assert len(strangers) == (3 if len(defined) < 7 else 0)
        most.add(len(defined))
    assert 7 in most  # a sequence that leaves no key undefined has no strangers


def test_answers_cannot_be_guessed() -> None:
    """Values are uniform, and independent of the key."""
    corpus = Recall(**SMALL, values=4).corpus()
    answers = [
        row[at + 1] for row, flags in rows_of(corpus, rows=500) for at in np.flatnonzero(flags)
    ]
    _, counts = np.unique(answers, return_counts=True)
    assert len(counts) == 4 and counts.min() > 0.8 * counts.mean()


def test_the_filler_is_predictable_from_its_own_past() -> None:
    """Across what is planted: the chain goes on where it was interrupted."""
    corpus = Recall(**SMALL, letters=4, order=1, chain_seed=3).corpus()
    counts = np.ones((4, 4))
    for row, _ in rows_of(corpus, rows=200):
        letters = ["abcd".index(symbol) for symbol in row if symbol in "abcd"]
        np.add.at(counts, (letters[:-1], letters[1:]), 1)
    chances = counts / counts.sum(1, keepdims=True)
    rng = np.random.default_rng(3)
    np.testing.assert_allclose(chances, rng.dirichlet(np.full(4, 0.2), 4), atol=0.05)


def test_real_text_is_split_before_it_is_planted(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("a" * 900 + "z" * 100)
    corpus = Recall(**SMALL, filler=str(text)).corpus()
    x, _ = corpus.batch(0, 0, 4, 80)
    assert "z" not in corpus.vocabulary.decode(x.flatten().tolist())
    x, y = corpus.windows(80, 160)
    assert x.shape == y.shape == (2, 80)
    shown = corpus.vocabulary.decode(x[0].tolist())
    assert "z" in shown and "a" not in shown
    assert corpus.vocabulary.encode(shown).tolist() == x[0].tolist()


def test_batches_are_functions_of_seed_and_step_and_validation_is_apart() -> None:
    corpus, again = Recall(**SMALL).corpus(), Recall(**SMALL).corpus()
    one, two = corpus.batch(1, 5, 4, 80), again.batch(1, 5, 4, 80)
    assert torch.equal(one[0], two[0]) and torch.equal(one[0][:, 1:], one[1][:, :-1])
    assert not torch.equal(one[0], corpus.batch(1, 6, 4, 80)[0])
    truth = corpus.truth(80, 320)
    assert truth is not None and truth.is_answer.shape == (4, 80)
    assert truth.is_answer.sum() == 16
    assert torch.equal(corpus.windows(80, 320)[0], again.windows(80, 320)[0])
    assert corpus.sha256 == again.sha256 != Recall(**SMALL, chain_seed=1).corpus().sha256


def test_short_sequences_get_a_share_of_everything() -> None:
    corpus = Recall(pairs=16, queries=16, distance=32).corpus()
    corpus.require(256)
    x, _ = corpus.batch(0, 0, 2, 64)
    shown = corpus.vocabulary.decode(x[0].tolist())
    assert shown.count("=") == shown.count("?") == 8


def test_without_pairs_there_is_nothing_but_filler() -> None:
    corpus = Recall(pairs=0, letters=5).corpus()
    assert corpus.vocabulary.size == 5 + 2 and corpus.truth(32, 64) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": -1}, "data.pairs: -1 given; at least 0"),
        ({"pairs": 0, "queries": 3}, "data.queries: 3 given; without pairs"),
        ({"pairs": 8, "keys": 7}, "data.keys: 7 given; at least pairs = 8"),
        ({"pairs": 8, "keys": 8, "marked": False}, "data.keys: 8 given; more than pairs = 8"),
        ({"letters": 40}, "data.letters: 40 given; 2 to 26"),
        ({"letters": 20, "order": 5}, "data.order: 5 given"),
        ({"filler": "/no/such/file"}, "data.filler: /no/such/file: No such file"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Recall(**options).corpus()


def test_without_pairs_distance_means_nothing() -> None:
    Recall(pairs=0).corpus().require(32)


def test_a_filler_with_the_signs_of_what_is_planted_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("f⟨x⟩ " * 100)
    with pytest.raises(UsageError, match="holds '⟨', which marks what is planted"):
        Recall(filler=str(text)).corpus()


@pytest.mark.parametrize(
    ("options", "context"),
    [
        ({"pairs": 6, "keys": 12, "queries": 2, "distance": 8}, 96),
        ({"pairs": 6, "keys": 7, "queries": 2, "distance": 8, "marked": False, "strangers": 9}, 96),
        ({"pairs": 1, "keys": 6, "queries": 100, "distance": 0, "values": 2}, 312),
    ],
)
def test_a_text_that_is_accepted_is_long_enough(
    options: dict, context: int, tmp_path: Path
) -> None:
    """For every sequence of training, short ones too, and of validation."""

    def corpus_of(length: int) -> RecallCorpus:
        (tmp_path / "text.txt").write_text(("abcdef" * length)[:length])
        return Recall(**options, filler=str(tmp_path / "text.txt")).corpus()

    def is_accepted(length: int) -> bool:
        try:
            corpus_of(length).require(context)
        except UsageError:
            return False
        return True

    length = next(length for length in range(10, 2000, 10) if is_accepted(length))
    corpus = corpus_of(length)
    for divisor in (1, 2, 4, 8):
        corpus.batch(0, divisor, 300, context // divisor)
    corpus.windows(context, 300 * context)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not fit into a context of 64"):
        Recall(pairs=32).corpus().require(64)
    short = tmp_path / "short.txt"
    short.write_text("word " * 30)
    with pytest.raises(UsageError, match=r"15 characters for validation are too few for .* 77"):
        Recall(**SMALL, filler=str(short)).corpus().require(96)


# -- scores ----------------------------------------------------------------------------------


def test_auroc_by_pairs() -> None:
    rng = np.random.default_rng(0)
    score, truth = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[truth] for b in score[~truth]]
    assert auroc(score, truth) == pytest.approx(np.mean(pairs))


def alone(is_answer: np.ndarray) -> Truth:
    """Answers of which none is repeated."""
    return Truth(is_answer, np.zeros_like(is_answer), text_symbols=5)


class Oracle(Guide):
    """`full` in layer 1 at every token whose id is 3, else `window`."""

    def posterior(self, layer: int, features: Features) -> Point:
        needs = (features.tokens == 3) & (layer == 1)
        full = torch.where(needs, 0.9, 0.05).to(features.state)
        return Point(torch.stack([full, 0.97 - full, torch.full_like(full, 0.03)], -1))


def test_an_oracle_gets_full_marks() -> None:
    model, guide = build(guide=Oracle)
    tokens = torch.randint(13, (5, 24), generator=torch.Generator().manual_seed(1))
    truth = (tokens == 3).numpy()
    figures = score_against_truth(model, guide, (tokens, tokens), alone(truth), batch=2)
    assert figures["auroc"] == 1.0 and figures["auroc_by_layer"] == [0.5, 1.0]
    assert figures["full_used"] == 1.0 and figures["full_used_by_layer"][0] == 0.0
    assert figures["needed"] == pytest.approx(truth.mean())


def test_repeated_answers_are_neither_right_nor_wrong() -> None:
    """`full` is used at ids 3 alone; that id 4 is an answer too costs nothing if it is repeated."""
    model, guide = build(guide=Oracle)
    tokens = torch.randint(13, (5, 24), generator=torch.Generator().manual_seed(1))
    three, four = (tokens == 3).numpy(), (tokens == 4).numpy()
    windows = tokens, tokens
    figures = score_against_truth(model, guide, windows, Truth(three | four, four, 2), batch=2)
    assert figures["auroc"] == 1.0 and figures["full_used"] == 1.0
    assert figures["needed"] == pytest.approx(three.sum() / (~four).sum())
    figures = score_against_truth(model, guide, windows, Truth(three, three, 2), batch=2)
    assert figures["auroc"] is None and figures["full_used"] is None and figures["needed"] == 0


def test_a_mixture_runs_full_attention_everywhere() -> None:
    model, _ = build()
    guide = FixedGuide(model, [[0.1, 0.9, 0.0], [0.0, 0.9, 0.1]])
    tokens = torch.randint(13, (5, 24), generator=torch.Generator().manual_seed(1))
    needs = (tokens == 3).numpy()
    figures = score_against_truth(model, guide, (tokens, tokens), alone(needs), batch=2)
    assert figures["full_used_by_layer"] == [1.0, 0.0]
    assert figures["full_used"] == pytest.approx(needs.size / needs.sum())


def test_losses_are_split_by_need() -> None:
    model, guide = build()
    tokens = torch.randint(13, (4, 24), generator=torch.Generator().manual_seed(1))
    targets: Tensor = tokens.roll(-1, 1)
    truth = np.random.default_rng(0).random((4, 24)) < 0.2
    figures = score_against_truth(model, guide, (tokens, targets), alone(truth), batch=3)
    with torch.no_grad():
        logits = model.network(tokens, mean_route(guide, hard=True)).log_softmax(-1)
    nll = -logits.gather(-1, targets[..., None])[..., 0].numpy()
    assert figures["answer_nll_hard"] == pytest.approx(nll[truth].mean(), rel=1e-5)
    assert figures["filler_nll_hard"] == pytest.approx(nll[~truth].mean(), rel=1e-5)
    among_text = logits[..., :5].log_softmax(-1)
    text = [float(-among_text[i, t, targets[i, t]]) for i, t in (targets < 5).nonzero().tolist()]
    assert figures["text_nll_hard"] == pytest.approx(np.mean(text), rel=1e-5)
    right = (logits.argmax(-1) == targets).numpy()
    assert figures["answer_accuracy_hard"] == pytest.approx(right[truth].mean())


def test_without_full_there_is_no_auroc() -> None:
    model, guide = build(mechanisms=("window", "linear"))
    tokens = torch.randint(13, (2, 24))
    truth = np.zeros((2, 24), bool)
    truth[:, 5] = True
    figures = score_against_truth(model, guide, (tokens, tokens), alone(truth), batch=2)
    assert figures["auroc"] is None and figures["full_used"] == 0.0
