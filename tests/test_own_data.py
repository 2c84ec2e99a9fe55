"""Data of one's own is checked before there is a run, and one line says what is wrong with it."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_meta.data import Corpus, Data, Recall, Text
from pyro_meta.data.corpus import TokenCorpus, Truth, Windows, as_windows
from pyro_meta.data.soundness import _require_sound, sound_corpus
from pyro_meta.data.vocabulary import ByteVocabulary, CharVocabulary, Vocabulary
from pyro_meta.errors import UsageError

CONTEXT, BATCH, TOKENS = 8, 3, 64


class Stream(Data):
    """Tokens of one's own, one after the other."""

    def __init__(self, tokens: Any = None, boundary: Any = 150, **others: Any) -> None:
        self.tokens = np.arange(200) % 3 if tokens is None else tokens
        self.boundary, self.others = boundary, others

    def corpus(self) -> Any:
        facts = {"vocabulary": CharVocabulary("abc"), "sha256": "0", "description": "mine"}
        return TokenCorpus(self.tokens, self.boundary, **(facts | self.others))


class Drawn(Corpus):
    """Sequences of one's own, any part of which can be another."""

    def __init__(self, **parts: Any) -> None:
        self.vocabulary: Vocabulary = CharVocabulary("abc")
        self.sha256, self.description = "0", "drawn"
        self.parts = parts
        self.calls = 0

    @property
    def train(self) -> NDArray[np.integer]:
        return self.parts.get("train", np.zeros(9, np.int64))

    def require(self, context: int) -> None:
        pass

    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        self.calls += 1
        return self._changed("batch", as_windows(np.full((size, context + 1), step)))

    def windows(self, context: int, most_tokens: int) -> Windows:
        self.calls += 1
        return self._changed("windows", as_windows(np.ones((2, context + 1), np.int64)))

    def truth(self, context: int, most_tokens: int) -> Any:
        return self.parts.get("truth")

    def _changed(self, name: str, windows: Windows) -> Any:
        change = self.parts.get(name)
        return windows if change is None else change(windows, self.calls)


class Given(Data):
    """A corpus as it is."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def corpus(self) -> Any:
        return self.given


class OwnVocabulary(CharVocabulary):
    def to_json(self) -> dict[str, Any]:
        return {"kind": "mine"}


def check(data: Data) -> Corpus:
    return sound_corpus(data, CONTEXT, BATCH, TOKENS, seed=0)


def test_sound_data_are_given_back() -> None:
    assert isinstance(check(Stream()), TokenCorpus)
    assert isinstance(check(Stream(np.arange(200, dtype=np.uint8) % 3)), TokenCorpus)
    answers = Truth(np.zeros((2, CONTEXT), bool), np.ones((2, CONTEXT), bool), 3)
    assert isinstance(check(Given(Drawn(truth=answers))), Drawn)


LONG = np.zeros(200)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.arange(200) % 4, r"tokens has token 3; .* from 0 to 2"),
        (np.arange(200) % 3 - 1, r"tokens has token -1; .* from 0 to 2"),
        (LONG, r"tokens is ndarray \[200\] float64; a NumPy array"),
        (np.full(200, np.nan), "float64"),
        (LONG.astype(bool), "bool"),
        (LONG.astype(str), "<U32"),
        (LONG.astype(object), "object"),
        (np.zeros((20, 10), int), r"ndarray \[20, 10\] int64"),
        (np.array(1), r"ndarray \[\] int64"),
        (np.zeros(0, int), r"ndarray \[0\] int64"),
        (torch.zeros(200, dtype=torch.int64), r"tokens is Tensor \[200\] int64"),
        ([0, 1, 2] * 60, "list of 180"),
        (None, "ndarray"),
        ("abc" * 60, "tokens is 'abcabc"),
        (np.full(200, 1 << 63, np.uint64), "tokens has token 9223372036854775808"),
    ],
)
def test_tokens_that_are_none_of_the_vocabulary_are_refused(tokens: Any, message: str) -> None:
    if tokens is None:
        tokens = LONG.astype(np.float16)
    with pytest.raises(UsageError, match=rf"^Stream: .*{message}") as refusal:
        check(Stream(tokens))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boundary": 201}, "its boundary is 201; a whole number from 0 to 200"),
        ({"boundary": -1}, "its boundary is -1"),
        ({"boundary": 0.9}, "its boundary is 0.9"),
        ({"vocabulary": "abc"}, "its vocabulary is 'abc'; a Vocabulary is needed"),
        ({"vocabulary": CharVocabulary("")}, "the size of its vocabulary is 0"),
        ({"vocabulary": OwnVocabulary("abc")}, r"OwnVocabulary, cannot be read again .*'mine'"),
        ({"sha256": None}, "its sha256 is None; a text is needed"),
        ({"description": ""}, "its description is ''"),
    ],
)
def test_facts_of_a_corpus_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^Stream: .*{message}"):
        check(Stream(**given))


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="needs at least 9"):
        check(Stream(boundary=195))


@pytest.mark.parametrize("given", [None, {"tokens": []}, Stream(), np.zeros(9), Drawn])
def test_what_is_no_corpus_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match=r"^Given: corpus\(\) gives .*; a Corpus is needed"):
        check(Given(given))


@pytest.mark.parametrize("call", ["batch", "windows"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pair, _: (pair[0].float(), pair[1]), r"tokens Tensor \[\d, 8\] float32"),
        (lambda pair, _: (pair[0], pair[1].int()), r"targets Tensor \[\d, 8\] int32"),
        (lambda pair, _: (pair[0] + 3, pair[1]), r"tokens with token \d; 0 to 2"),
        (lambda pair, _: (pair[0], pair[1] * 0 - 100), "targets with token -100"),
        (lambda pair, _: (pair[0][:, :-1], pair[1]), r"tokens Tensor \[\d, 7\]"),
        (lambda pair, _: (pair[0], pair[1][:-1]), r"targets Tensor \[\d, 8\]"),
        (lambda pair, _: (pair[0][:0], pair[1][:0]), r"tokens Tensor \[0, 8\]"),
        (lambda pair, _: (pair[0][0], pair[1][0]), r"tokens Tensor \[8\]"),
        (lambda pair, _: (pair[0].numpy(), pair[1].numpy()), r"tokens ndarray \[\d, 8\]"),
        (lambda pair, _: pair[0], r"gives Tensor \[\d, 8\] int64"),
        (lambda pair, _: None, "gives None"),
        (lambda pair, _: (*pair, pair[0]), "gives tuple of 3"),
        (lambda pair, calls: (pair[0] * 0 + calls % 3, pair[1]), "gives other tokens when"),
    ],
)
def test_sequences_that_cannot_be_trained_on_are_refused(
    call: str, change: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=rf"^Given: {call}\(.*{message}") as refusal:
        check(Given(Drawn(**{call: change})))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("train", [None, np.zeros(9), np.full(9, 3), np.zeros((3, 3), int)])
def test_a_sample_of_training_tokens_is_checked_too(train: Any) -> None:
    with pytest.raises(UsageError, match=r"^Given: train "):
        check(Given(Drawn(train=train)))


@pytest.mark.parametrize(
    "truth",
    [
        (1, 2, 3),
        Truth(np.zeros((2, 8)), np.zeros((2, 8), bool), 3),  # type: ignore[arg-type]
        Truth(np.zeros((2, 8), bool), np.zeros((2, 9), bool), 3),
    ],
)
def test_a_truth_of_other_shape_is_refused(truth: Any) -> None:
    with pytest.raises(UsageError, match=r"^Given: truth\(\) gives .* two bool arrays \[2, 8\]"):
        check(Given(Drawn(truth=truth)))


def test_what_a_class_raises_names_the_class_and_the_call() -> None:
    class Failing(Data):
        def corpus(self) -> Corpus:
            raise KeyError("nothing")

    def fail(pair: Windows, calls: int) -> Windows:
        raise ZeroDivisionError("by zero")

    with pytest.raises(UsageError, match=r"Failing\.corpus\(\) failed .*KeyError: 'nothing'"):
        check(Failing())
    with pytest.raises(UsageError, match=r"Drawn\..*ZeroDivisionError: by zero"):
        check(Given(Drawn(batch=fail)))


def test_ours_are_sound(text_file: Any) -> None:
    """They are taken as sound where a run begins; here they are not."""
    for data in (Text(str(text_file)), Recall(pairs=2, distance=2), Text(str(text_file), "char")):
        context = 64
        corpus = sound_corpus(data, context, BATCH, TOKENS)
        _require_sound(corpus, type(data).__name__, context, BATCH, 4 * context, seed=1)
    with pytest.raises(UsageError, match="needs at least"):
        sound_corpus(Text(str(text_file)), 100_000, BATCH, TOKENS)


def test_fractions_never_become_tokens() -> None:
    with pytest.raises(UsageError, match="tokens are float64; whole numbers are needed"):
        as_windows(np.zeros((2, 5)))
    corpus = Stream(LONG, vocabulary=ByteVocabulary()).corpus()
    with pytest.raises(UsageError, match="whole numbers"):
        corpus.batch(0, 0, 2, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": 10**9}, "data.order: 1000000000 given"),
        ({"pairs": 10**12}, r"data\.keys: 1,?0+ keys with 8 values are .*at most 1,048,576"),
        ({"pairs": 10**400}, "at most 1,048,576"),
        ({"values": 1 << 30}, "at most 1,048,576"),
        ({"keys": 1 << 30, "hops": 2}, "at most 1,048,576"),
        ({"pairs": 2.5}, "data.pairs: 2.5 given; a whole number is allowed"),
        ({"queries": float("nan")}, "data.queries: nan given"),
        ({"values": True}, "data.values: True given"),
        ({"distance": "8"}, "data.distance: '8' given"),
        ({"hops": 3}, "data.hops: 3 given; 1 or 2 is allowed"),
        ({"letters": 27}, "data.letters: 27 given; 2 to 26 is allowed"),
        ({"chain_seed": -1}, "data.chain_seed: -1 given"),
        ({"filler": ""}, "data.filler: it is empty"),
    ],
)
def test_options_of_recall_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recall(**given).corpus()


@pytest.mark.parametrize("huge", ["distance", "queries", "strangers"])
def test_more_than_a_context_holds_is_refused(huge: str) -> None:
    with pytest.raises(UsageError, match="do not fit into a context of 64"):
        sound_corpus(Recall(pairs=2, **{huge: 10**15}), 64, BATCH, TOKENS)
