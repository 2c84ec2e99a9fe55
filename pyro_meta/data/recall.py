"""`--data Recall`: look-ups planted in filler, with the truth of which tokens need them.

    filler ... <!> <k3=1><k5=0><k17=3> ... filler ... <!> <?> <k17> <3> ... <?> <k3> <1> ...

Definitions stand together, by increasing key; queries stand at least `distance` tokens after them,
and each asks for any of the keys. The answer to a query can only be found by an exact look-up, and
next to nothing else is told by the distant past. Definitions in any order would tell which keys are
left; so would a fixed number of them among more keys, which is why every key has a coin of its own
there; keys that are never defined would tell at every mark which key cannot follow; and wherever
definitions or queries begin at a place of their own, counting or remembering foresees them. So
both are opened by the same sign, which may come after any filler with the same chance. So it is
known which tokens need long-range attention, and a router can be scored
(`pyro_meta.evaluation.known_truth`). Undecided, and left out of the score, are the opening signs,
queries whose answer stood less than `distance` tokens before, unmarked strangers, which only the
definitions tell from queries, and filler that goes on after a gap of `distance` tokens or more.
Short sequences (`Plan.fitted`) define some of the keys only, and at most half as many again as on
average, so that their marks and long blocks do tell something. Associative recall as a test of
attention: Arora et al. 2023, Zoology (arXiv 2312.04927). Shapes: B sequences, T tokens of context.
"""

import hashlib
import json
import math
import string
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pyro_meta.data.corpus import Corpus, Data, Truth, Windows, as_windows, step_rng
from pyro_meta.data.files import read_text
from pyro_meta.data.text import Text
from pyro_meta.data.vocabulary import SymbolVocabulary
from pyro_meta.errors import UsageError

Ints = NDArray[np.int64]


class Filler(Protocol):
    """What is planted in."""

    def __call__(
        self, rng: np.random.Generator, rows: int, length: int, is_validation: bool
    ) -> Ints:
        """Tokens [rows, length]; raises `ValueError` where there are too few."""


MOST_SPREADS = 3.5  # standard deviations by which definitions may be more than on average
MOST_SYMBOLS = 1 << 20  # of keys, values and definitions
VALIDATION_SEED = 1 << 63  # seeds of training are below
REVISION = 3  # of the generator: the same options give other sequences than before


@dataclass(frozen=True)
class Plan:
    """What is planted in each sequence."""

    pairs: int
    queries: int
    keys: int
    values: int
    distance: int
    hops: int
    marked: bool
    strangers: int
    most_pairs: int
    """Most definitions in a sequence."""

    @property
    def query_length(self) -> int:
        return 3 if self.marked else 2

    @property
    def fewest_pairs(self) -> int:
        """Fewest definitions in a sequence."""
        return self.pairs if self.keys == self.pairs else min(1, self.pairs)

    @property
    def definitions_length(self) -> int:
        """Most tokens of the definitions and of what opens them."""
        return self.most_pairs * self.hops + (self.pairs > 0)

    @property
    def questions_length(self) -> int:
        """Tokens of queries and strangers and of what opens them."""
        count = self.queries * self.query_length + self.strangers
        return count + (count > 0)

    def free(self, length: int) -> int:
        """Least tokens of filler in a sequence of `length`, beyond the least distance."""
        return length - self.definitions_length - self.distance - self.questions_length

    def most_filler(self, length: int) -> int:
        """Most tokens of filler in a sequence of `length`."""
        not_defined = (self.most_pairs - self.fewest_pairs) * self.hops
        left_out = 0 if self.marked else self.strangers
        return self.free(length) + self.distance + not_defined + left_out

    def fits(self, length: int) -> bool:
        return self.free(length) > 0

    def fitted(self, length: int) -> "Plan":
        """This plan, or half of everything, or a quarter, ...: what fits into `length`.

        That may be no pair at all.
        """
        plan, share = self, 1
        while not plan.fits(length):
            share *= 2
            counts = ("pairs", "queries", "strangers", "distance")
            plan = replace(self, **{name: getattr(self, name) // share for name in counts})
            plan = replace(plan, most_pairs=min(plan.keys, plan.pairs + (plan.pairs + 1) // 2))
            if not plan.pairs:
                plan = replace(plan, queries=0, strangers=0)
        return plan


class Sequences(NamedTuple):
    """Planted sequences."""

    rows: Ints
    """Tokens, [B, T + 1]."""
    truth: Truth
    """Which targets are answers, and which are undecided."""


class Recall(Data):
    """Look-ups planted in text of its own, `filler`: definitions, and queries far behind them.

    Only an exact look-up can answer a query.

    Parameters
    ----------
    pairs
        Definitions in a sequence; where there are more keys, every key is defined by a coin of its
        own, and this is their mean (but at least 1, and at most 3.5 standard deviations more). At 0
        there is nothing but filler.
    queries
        Queries in a sequence (default: half the pairs).
    keys
        Keys there are: `pairs`, or more (default: `pairs`, and an eighth more where queries are not
        marked: there a key must be able to be none).
    values
        Values there are.
    distance
        Least distance between the last definition and the first query, and between an answer and
        its repetition if that is to count as one that must be looked up.
    hops
        1: one token defines key and value. 2: the key, then the value: to be found by induction.
    marked
        Whether a query token stands before each query. Without it a query is recognisable only
        because its key has been defined before.
    strangers
        Keys that stand among the queries and are none: not defined or, where queries are marked,
        without the mark (default: an eighth of the queries where they are not marked; none in a
        sequence that defines every key).
    filler
        A text file to plant in (UTF-8, read as characters; its last tenth is kept for validation),
        or `python` for the text that `Text` reads by default; without it, a Markov chain.
    letters
        Symbols of the Markov chain.
    order
        Symbols that the next one depends on.
    chain_seed
        Seed of the chain's transitions.
    """

    def __init__(
        self,
        pairs: int = 32,
        queries: int | None = None,
        keys: int | None = None,
        values: int = 8,
        distance: int = 64,
        hops: Literal[1, 2] = 1,
        marked: bool = True,
        strangers: int | None = None,
        filler: str | None = None,
        letters: int = 16,
        order: int = 2,
        chain_seed: int = 0,
    ) -> None:
        whole = {"pairs": pairs, "queries": queries, "keys": keys, "values": values}
        whole |= {"distance": distance, "hops": hops, "strangers": strangers, "letters": letters}
        whole |= {"order": order, "chain_seed": chain_seed}
        for name, given in whole.items():
            if given is not None and (not isinstance(given, int) or isinstance(given, bool)):
                raise UsageError(f"data.{name}: {given!r} given; a whole number is allowed")
        if hops not in (1, 2):
            raise UsageError(f"data.hops: {hops} given; 1 or 2 is allowed")
        queries = pairs // 2 if queries is None else queries
        distance = distance if pairs or distance < 0 else 0
        if keys is None:
            keys = pairs if marked else pairs + (pairs + 7) // 8
        if strangers is None:
            strangers = 0 if marked else queries // 8
        least = {"pairs": (pairs, 0), "queries": (queries, 0), "values": (values, 2)}
        least |= {"distance": (distance, 0), "strangers": (strangers, 0), "order": (order, 1)}
        least |= {"chain_seed": (chain_seed, 0)}
        for name, (given, floor) in least.items():
            if given < floor:
                raise UsageError(f"data.{name}: {given} given; at least {floor} is allowed")
        for name, given in (("queries", queries), ("strangers", strangers)):
            if given and not pairs:
                raise UsageError(f"data.{name}: {given} given; without pairs, only 0 is allowed")
        if keys < pairs + (not marked and pairs > 0):
            allowed = f"at least pairs = {pairs}" if marked else f"more than pairs = {pairs}"
            raise UsageError(f"data.keys: {keys} given; {allowed} is allowed")
        if not 2 <= letters <= len(string.ascii_lowercase):
            raise UsageError(f"data.letters: {letters} given; 2 to 26 is allowed")
        if order > 16 or letters**order > 1 << 16:
            raise UsageError(
                f"data.order: {order} given; letters ** order, with {letters} letters, must not be "
                "above 65,536"
            )
        symbols = keys * values if hops == 1 else keys + values
        if symbols > MOST_SYMBOLS:
            raise UsageError(
                f"data.keys: {keys} keys with {values} values are {symbols:,} symbols; at most "
                f"{MOST_SYMBOLS:,} are allowed"
            )
        if filler == "":
            raise UsageError("data.filler: it is empty; a file of text, or python, is needed")
        spread = math.sqrt(pairs * (1 - pairs / keys)) if keys else 0.0
        most_pairs = min(keys, pairs + math.ceil(MOST_SPREADS * spread))
        self.plan = Plan(
            pairs, queries, keys, values, distance, hops, marked, strangers, most_pairs
        )
        self.filler_path, self.letters, self.order = filler, letters, order
        self.chain_seed = chain_seed

    def corpus(self) -> "RecallCorpus":
        if self.filler_path is None:
            symbols = list(string.ascii_lowercase[: self.letters])
            filler = _markov_chain(self.letters, self.order, self.chain_seed)
            source = f"a Markov chain of {self.letters} letters"
            identity: list[object] = [self.letters, self.order, self.chain_seed]
        else:
            text = _read(self.filler_path)
            if taken := {"⟨", "⟩"} & set(text):
                raise UsageError(
                    f"data.filler: {self.filler_path} holds {min(taken)!r}, which marks what is "
                    "planted; a text without it is needed"
                )
            symbols = sorted(set(text))
            filler = _text(text, symbols)
            source = self.filler_path
            identity = [hashlib.sha256(text.encode()).hexdigest()]
        described = json.dumps([REVISION, identity, asdict(self.plan)])
        digest = hashlib.sha256(described.encode()).hexdigest()
        return RecallCorpus(self.plan, symbols, filler, source, digest)


class RecallCorpus(Corpus):
    """Endless planted sequences; see `Recall`."""

    def __init__(
        self, plan: Plan, symbols: list[str], filler: Filler, source: str, sha256: str
    ) -> None:
        self.plan, self.filler, self.sha256 = plan, filler, sha256
        keys = [f"⟨k{key}⟩" for key in range(plan.keys)] if plan.pairs else []
        values = [f"⟨{value}⟩" for value in range(plan.values)] if plan.pairs else []
        definitions = (
            [f"⟨k{key}={value}⟩" for key in range(plan.keys) for value in range(plan.values)]
            if plan.pairs and plan.hops == 1
            else []
        )
        self._opening = len(symbols)
        self._mark = self._opening + 1
        self._key = self._mark + 1
        self._value = self._key + len(keys)
        self._definition = self._value + len(values)
        self.vocabulary = SymbolVocabulary([*symbols, "⟨!⟩", "⟨?⟩", *keys, *values, *definitions])
        self._context = 512  # of the sample in `train`, until `require` names one
        kind = "marked" if plan.marked else "unmarked"
        self.description = (
            f"recall: {plan.pairs} pairs and {plan.queries} {kind} queries a sequence, "
            f"{plan.hops} hop{'s' * (plan.hops > 1)}, in {source} (sha256 {sha256[:12]})"
        )

    @property
    def train(self) -> NDArray[np.integer]:
        """A sample of about 100,000 tokens."""
        rows = max(1, 100_000 // self._context)
        return self.plant(step_rng(0, 0), rows, self._context + 1).rows.ravel()

    def require(self, context: int) -> None:
        if not self.plan.fits(context + 1):
            plan = self.plan
            raise UsageError(
                f"data: up to {plan.definitions_length} tokens of definitions, {plan.distance} of "
                f"distance and {plan.questions_length} of queries do not fit into a context of "
                f"{context}"
            )
        length = self.plan.most_filler(context + 1)
        short = context // 2 + 1  # training begins with such, and less may be planted in them
        try:
            self.filler(step_rng(0, 0), 1, length, is_validation=True)
            self.filler(step_rng(0, 0), 1, max(length, short), is_validation=False)
        except ValueError as error:
            raise UsageError(f"data.filler: {error}") from error
        self._context = context

    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        return as_windows(self.plant(step_rng(seed, step), size, context + 1).rows)

    def windows(self, context: int, most_tokens: int) -> Windows:
        return as_windows(self._validation(context, most_tokens).rows)

    def truth(self, context: int, most_tokens: int) -> Truth | None:
        return self._validation(context, most_tokens).truth if self.plan.queries else None

    def _validation(self, context: int, most_tokens: int) -> Sequences:
        rows = max(1, most_tokens // context)
        return self.plant(step_rng(VALIDATION_SEED, 0), rows, context + 1, is_validation=True)

    def plant(
        self, rng: np.random.Generator, rows: int, length: int, is_validation: bool = False
    ) -> Sequences:
        """`rows` sequences of `length` tokens."""
        plan = self.plan.fitted(length)
        out = np.zeros((rows, length), np.int64)
        is_planted = np.zeros((rows, length), bool)
        is_answer, is_undecided = np.zeros((2, rows, length - 1), bool)
        every = np.arange(rows)[:, None]

        def put(columns: Ints, tokens: Ints | int, where: NDArray[np.bool_] | bool = True) -> None:
            out[every, columns] = np.where(where, tokens, out[every, columns])
            is_planted[every, columns] |= where

        # Definitions: as many of the keys as the coins say, by increasing key, so that their order
        # tells nothing. A row with fewer is filled with `plan.keys`, sorted last and never put.
        shuffled = rng.permuted(np.tile(np.arange(plan.keys), (rows, 1)), axis=1)
        pairs = _how_many(rng, rows, plan)
        is_defined = np.arange(plan.most_pairs) < pairs
        defined = np.sort(np.where(is_defined, shuffled[:, : plan.most_pairs], plan.keys), 1)
        values = rng.integers(0, plan.values, (rows, plan.most_pairs))

        # The wait for the sign has no memory: no place tells that it must come.
        free = plan.free(length)
        opens = _wait(rng, rows, free)
        if plan.pairs:
            put(opens, self._opening)
        at = opens + 1 + np.arange(plan.most_pairs) * plan.hops
        if plan.hops == 1:
            put(at, self._definition + defined * plan.values + values, is_defined)
        else:
            put(at, self._key + defined, is_defined)
            put(at + 1, self._value + values, is_defined)

        # Queries and strangers, in random order and places after a second sign of the same kind. It
        # comes `distance` tokens after the last definition, and after a wait of its own.
        count = plan.queries + plan.strangers
        is_stranger = rng.permuted(np.tile(np.arange(count) < plan.strangers, (rows, 1)), axis=1)
        opens = opens + (plan.pairs > 0) + pairs * plan.hops + plan.distance
        opens = opens + _wait(rng, rows, free)
        if count:
            put(opens, self._opening)
        is_undecided |= out[:, :-1] == self._opening
        lengths = np.where(is_stranger, 1, plan.query_length)
        at = opens + 1 + _place(rng, lengths, length - opens - 1)
        asked = rng.integers(0, np.maximum(1, pairs), (rows, plan.queries))
        query_at = at[~is_stranger].reshape(rows, plan.queries)
        if plan.marked:
            put(query_at, self._mark)
        key_at = query_at + plan.query_length - 2  # the token before the answer, which must find it
        put(key_at, self._key + np.take_along_axis(defined, asked, 1))
        put(key_at + 1, self._value + np.take_along_axis(values, asked, 1))
        is_answer[every, key_at] = True
        is_undecided[every, key_at] = _repeats(asked, key_at, plan.distance)
        # Strangers: keys that no answer follows. Unmarked they are keys without a definition, those
        # after the first `pairs` of `shuffled`; where every key is defined, there is none.
        if plan.strangers:
            first = 0 if plan.marked else pairs  # a mark is missed even at a defined key
            are_left = first < plan.keys
            lowest = np.minimum(first, plan.keys - 1)
            chosen = rng.integers(lowest, plan.keys, (rows, plan.strangers))
            stranger_at = at[is_stranger].reshape(rows, plan.strangers)
            put(stranger_at, self._key + np.take_along_axis(shuffled, chosen, 1), are_left)
            if not plan.marked:
                at_stranger = np.zeros((rows, length), bool)
                at_stranger[every, stranger_at] = are_left
                is_undecided |= at_stranger[:, :-1]
        is_undecided |= _resumes(~is_planted, plan.distance)[:, 1:]

        # What is left is one filler, laid into the gaps from left to right.
        nth = (~is_planted).cumsum(1) - 1  # of the filler in its sequence
        filler = self.filler(rng, rows, int(nth.max()) + 1, is_validation)
        out[~is_planted] = np.take_along_axis(filler, np.maximum(nth, 0), 1)[~is_planted]
        return Sequences(out, Truth(is_answer, is_undecided, self._opening))


def _repeats(asked: Ints, at: Ints, distance: int) -> NDArray[np.bool_]:
    """Queries [B, Q] for pairs `asked` at positions `at` whose answer stood near, [B, Q]."""
    since = at[:, :, None] - (at + 1)[:, None, :]  # from each query back to each answer
    is_same = asked[:, :, None] == asked[:, None, :]
    return (is_same & (since >= 0) & (since < distance)).any(2)


def _resumes(is_filler: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Filler [B, T] whose last filler token is `distance` tokens back or more."""
    position = np.arange(is_filler.shape[1])
    last = np.maximum.accumulate(np.where(is_filler, position, -1), axis=1)
    before = np.pad(last, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return is_filler & (before >= 0) & (position - before > max(distance, 1))


def _how_many(rng: np.random.Generator, rows: int, plan: Plan) -> Ints:
    """Definitions in each sequence, [B, 1]: heads of one coin a key, or all keys."""
    if plan.keys == plan.pairs:
        return np.full((rows, 1), plan.pairs)
    heads = rng.binomial(plan.keys, plan.pairs / plan.keys, (rows, 1))
    return heads.clip(plan.fewest_pairs, plan.most_pairs)


def _wait(rng: np.random.Generator, rows: int, free: int) -> Ints:
    """Tokens of filler until something opens, [B, 1]: at any of them with the same chance.

    A quarter of `free` on average, and at most half.
    """
    return np.minimum(rng.geometric(1 / (1 + free / 4), (rows, 1)) - 1, free // 2)


def _place(rng: np.random.Generator, lengths: Ints, room: Ints) -> Ints:
    """Starts [B, n] of items of `lengths` [B, n] in `room` [B, 1], without overlap.

    The first starts at 0, the others at random.
    """
    free = room - lengths.sum(1, keepdims=True)
    gaps = np.sort(rng.integers(0, free + 1, lengths.shape), axis=1)
    gaps[:, :1] = 0
    return gaps + np.cumsum(lengths, 1) - lengths


def _markov_chain(letters: int, order: int, seed: int) -> Filler:
    """A chain in which a few letters are likely after each context of `order` letters."""
    rng = np.random.default_rng(seed)
    cumulative = rng.dirichlet(np.full(letters, 0.2), letters**order).cumsum(1)
    cumulative[:, -1] = 1.0

    def filler(rng: np.random.Generator, rows: int, length: int, is_validation: bool) -> Ints:
        state = rng.integers(0, letters**order, rows)
        out = np.empty((rows, length), np.int64)
        for position, chance in enumerate(rng.random((length, rows, 1))):
            out[:, position] = (cumulative[state] < chance).sum(1)
            state = (state * letters + out[:, position]) % letters**order
        return out

    return filler


def _text(text: str, symbols: list[str]) -> Filler:
    """Passages of `text`, the last tenth of which is for validation."""
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    tokens = np.array([ids[character] for character in text], np.int64)
    boundary = int(len(tokens) * 0.9)
    parts = tokens[:boundary], tokens[boundary:]

    def filler(rng: np.random.Generator, rows: int, length: int, is_validation: bool) -> Ints:
        part = parts[is_validation]
        if len(part) < length:
            raise ValueError(
                f"{len(part)} characters for {'validation' if is_validation else 'training'} are "
                f"too few for a sequence, which takes {length}"
            )
        starts = rng.integers(0, len(part) - length + 1, rows)
        return part[starts[:, None] + np.arange(length)]

    return filler


def _read(path: str) -> str:
    if path == "python":
        corpus = Text().corpus()
        return corpus.vocabulary.decode(corpus.tokens.tolist())
    text = read_text(Path(path), "data.filler")
    if not text:
        raise UsageError(f"data.filler: {path} is empty")
    return text
