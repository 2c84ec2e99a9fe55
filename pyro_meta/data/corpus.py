"""What is trained on: sequences of tokens, of a stream that is cut into two parts by position.

Order is a pure function of the seed and the step, so that a resumed or distributed run draws the
same sequences. Shapes: B sequences, T tokens of context.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_meta.data.vocabulary import Vocabulary
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
