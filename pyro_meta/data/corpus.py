"""Text as memory-mapped tokens, cut into a training and a validation part by position.

Order is a pure function of the seed and the step, so that a resumed or distributed run draws the
same sequences. Shapes: B sequences, T tokens of context.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_meta.data.documentation import describe_python, read_python
from pyro_meta.data.files import Found, find_files, read_files, stamp
from pyro_meta.data.prepared import UnfitTokens, prepared
from pyro_meta.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    FileVocabulary,
    Vocabulary,
    is_vocabulary,
)
from pyro_meta.errors import UsageError

Windows = tuple[Tensor, Tensor]
"""Tokens and targets, [N, T] each."""


class Truth(NamedTuple):
    """Which targets of some windows [N, T] have to be looked up."""

    is_answer: NDArray[np.bool_]
    """Only an exact look-up in the past can tell them, [N, T]."""
    is_undecided: NDArray[np.bool_]
    """A look-up may or may not be needed: to be left out where routes are judged, [N, T]."""
    text_symbols: int
    """Token ids below it are text; the others are planted."""


class Corpus(ABC):
    """What is trained and validated on: sequences of tokens and the vocabulary that reads them.

    Attributes
    ----------
    vocabulary
        Tokens to text and back.
    sha256
        Identity of the text, or of what generates it.
    description
        What it is in one line.
    train
        Training tokens, or a sample of them, [N].
    """

    vocabulary: Vocabulary
    sha256: str
    description: str

    @property
    @abstractmethod
    def train(self) -> NDArray[np.integer]: ...

    @abstractmethod
    def require(self, context: int) -> None:
        """Raise `UsageError` unless sequences of `context` and their targets can be had."""

    @abstractmethod
    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        """Tokens and targets [B, T] of one training step: a function of seed and step alone."""

    @abstractmethod
    def windows(self, context: int, most_tokens: int) -> Windows:
        """Tokens and targets [N, T] for validation, at most `most_tokens`: always the same."""

    def truth(self, context: int, most_tokens: int) -> Truth | None:
        """Which targets of `windows` only an exact long-range look-up can tell.

        None where nobody knows, as with ordinary text.
        """
        return None


@dataclass(frozen=True)
class TokenCorpus(Corpus):
    """A stream of tokens, cut into a training and a validation part by position.

    Attributes
    ----------
    tokens
        All tokens, memory-mapped, [N].
    boundary
        Tokens before it are for training, the rest for validation.
    """

    tokens: NDArray[np.integer]
    boundary: int
    vocabulary: Vocabulary
    sha256: str
    description: str

    @property
    def train(self) -> NDArray[np.integer]:
        return self.tokens[: self.boundary]

    @property
    def validation(self) -> NDArray[np.integer]:
        return self.tokens[self.boundary :]

    def require(self, context: int) -> None:
        for part, tokens in (("training", self.train), ("validation", self.validation)):
            if len(tokens) <= context:
                raise UsageError(
                    f"data: {self.description} leaves {len(tokens)} tokens for {part}; "
                    f"a context of {context} needs at least {context + 1}"
                )

    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        """Tokens and targets [B, T] of one training step, at random starts."""
        starts = step_rng(seed, step).integers(0, len(self.train) - context, size)
        return _cut(self.train, starts, context)

    def windows(self, context: int, most_tokens: int) -> Windows:
        """Tokens and targets [N, T] that cover the validation part evenly, without overlap.

        All of it if it has at most `most_tokens`, else that many spread over its whole length.
        """
        available = (len(self.validation) - 1) // context
        wanted = max(1, min(available, most_tokens // context))
        starts = (np.arange(wanted) * available // wanted) * context
        return _cut(self.validation, starts, context)


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one training step, whatever came before it."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))


def _cut(tokens: NDArray[np.integer], starts: NDArray[np.integer], context: int) -> Windows:
    return as_windows(np.stack([tokens[start : start + context + 1] for start in starts]))


def identity(windows: Windows) -> str:
    """Hash of tokens and targets [N, T]: losses on windows of one identity can be paired."""
    digest = hashlib.sha256(repr(list(windows[0].shape)).encode())
    for part in windows:
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def as_windows(rows: NDArray[np.integer]) -> Windows:
    """Tokens and their targets from rows [N, T + 1]; raises `UsageError` for fractions."""
    if not np.issubdtype(rows.dtype, np.integer):
        raise UsageError(f"data: tokens are {rows.dtype}; whole numbers are needed")
    both = torch.from_numpy(rows.astype(np.int64))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


class Data(ABC):
    """Where text comes from; subclass it and name it by import path (`--data my_file.MyData`)."""

    @abstractmethod
    def corpus(self) -> Corpus:
        """Prepare the tokens, or find them prepared."""


class Text(Data):
    """Text files, or the documentation that every Python carries.

    Parameters
    ----------
    path
        A file, a folder (all files in it that are not hidden) or a glob of UTF-8 text; by default
        the documentation topics and docstrings of the running Python's standard library.
    tokens
        `byte`, `char`, or the path of a `tokenizer.json` or of a run's `vocabulary.json`.
    validation
        Share of the text, at its end, kept for validation.
    """

    def __init__(
        self, path: str | None = None, tokens: str = "byte", validation: float = 0.1
    ) -> None:
        if not 0 < validation < 1:
            raise UsageError(f"data.validation: {validation} given; above 0 and below 1 is allowed")
        if path == "":
            raise UsageError("data.path: it is empty; a file, a folder or a glob is needed")
        if tokens == "":
            raise UsageError("data.tokens: it is empty; byte, char or a tokenizer.json is needed")
        self.path, self.tokens, self.validation = path, tokens, validation
        self._tokenizer: Callable[[], Path] | None = None

    def cut_by(self, tokenizer: Callable[[], Path]) -> None:
        """Cut the text by the tokenizer.json that `tokenizer` finds, whatever `tokens` says."""
        self._tokenizer = tokenizer

    def corpus(self) -> TokenCorpus:
        found = None if self.path is None else find_files(self.path)
        described = describe_python() if found is None else _described(found)
        tokens = self.tokens if self._tokenizer is None else str(self._tokenizer())
        tokenizer = Path(tokens).expanduser()

        def pieces() -> Iterator[str]:
            is_empty = True
            for piece in read_python() if found is None else read_files(found.files):
                is_empty = False
                yield piece
            if is_empty:
                raise UsageError(f"data.path: {self.path} holds no text")
            if found is not None and _described(found) != described:
                raise UsageError(f"data.path: {self.path} was changed while it was read")

        def vocabulary() -> Vocabulary:
            if tokens == "byte":
                return ByteVocabulary()
            if tokens == "char":
                return CharVocabulary(sorted({one for piece in pieces() for one in set(piece)}))
            if is_vocabulary(tokenizer):
                return Vocabulary.load(tokenizer)
            return FileVocabulary.from_path(tokenizer)

        try:
            text = prepared([described, tokens, stamp(tokenizer)], pieces, vocabulary)
        except UnfitTokens as error:
            raise UsageError(f"data.tokens: {tokens}: {error}") from error
        facts = [
            f"{text.bytes:,} bytes",
            f"sha256 {text.sha256[:12]}",
            f"{len(text.tokens):,} {text.vocabulary.kind} tokens",
            *([found.left_out()] if found is not None and found.left_out() else []),
            *([text.loss] if text.loss else []),
        ]
        source = self.path or "documentation of the Python standard library"
        boundary = int(len(text.tokens) * (1 - self.validation))
        description = f"{source} ({', '.join(facts)})"
        return TokenCorpus(text.tokens, boundary, text.vocabulary, text.sha256, description)


def _described(found: Found) -> list[object]:
    """What tells that files have changed, or are others."""
    return [[str(file.resolve()), *stamp(file)] for file in found.files]
