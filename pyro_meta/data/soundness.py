"""Whether data of one's own can be trained on: found out before there is a run.

Shapes: B sequences of a batch, N for validation, T tokens of context, V vocabulary.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_meta.data.corpus import Corpus, Data, TokenCorpus, Truth, Windows
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import described, is_ours, own_classes_named, said

PIECE = 1 << 22


def sound_corpus(data: Data, context: int, batch: int, most_tokens: int, seed: int = 0) -> Corpus:
    """The corpus of some data, checked as far as training will use it.

    Parameters
    ----------
    data
        Where it comes from. What this package ships is taken as sound.
    context
        Length of the sequences, T.
    batch
        Sequences of a training step, B.
    most_tokens
        Most tokens for validation.
    seed
        Of the training.

    Raises
    ------
    UsageError
        Sequences of `context` cannot be had; or a class of one's own gives something else than
        tokens of its vocabulary, of the shapes that were asked for, the same each time.
    """
    with own_classes_named():
        corpus = data.corpus()
        if is_ours(type(data)) and is_ours(type(corpus)):
            corpus.require(context)
        else:
            _require_sound(corpus, type(data).__name__, context, batch, most_tokens, seed)
    return corpus


def _require_sound(
    corpus: Any, name: str, context: int, batch: int, most_tokens: int, seed: int
) -> None:
    if not isinstance(corpus, Corpus):
        raise UsageError(f"{name}: corpus() gives {described(corpus)}; a Corpus is needed")
    size = _require_vocabulary(getattr(corpus, "vocabulary", None), name)
    for word in ("sha256", "description"):
        value = getattr(corpus, word, None)
        if not isinstance(value, str) or not value:
            raise UsageError(f"{name}: its {word} is {described(value)}; a text is needed")
    if isinstance(corpus, TokenCorpus):
        _require_tokens(corpus.tokens, f"{name}: tokens", size)
        _require_boundary(corpus, name)
    corpus.require(context)
    _require_tokens(corpus.train, f"{name}: train", size)
    for length, rows in ((context, batch), (max(1, context // 2), 2 * batch)):

        def draw(step: int, length: int = length, rows: int = rows) -> Windows:
            return corpus.batch(seed, step, rows, length)

        call = f"{name}: batch({seed}, 0, {rows}, {length})"
        _require_windows(draw(0), call, rows, length, size)
        draw(1)
        _require_same(lambda: draw(0), draw(0), call)
    call = f"{name}: windows({context}, {most_tokens})"
    windows = corpus.windows(context, most_tokens)
    _require_windows(windows, call, None, context, size)
    _require_same(lambda: corpus.windows(context, most_tokens), windows, call)
    _require_truth(corpus.truth(context, most_tokens), name, tuple(windows[0].shape))


def _require_vocabulary(vocabulary: Any, name: str) -> int:
    """Its size, V; it must be one that a run can keep."""
    if not isinstance(vocabulary, Vocabulary):
        raise UsageError(
            f"{name}: its vocabulary is {described(vocabulary)}; a Vocabulary is needed"
        )
    size = getattr(vocabulary, "size", None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UsageError(
            f"{name}: the size of its vocabulary is {described(size)}; at least 1 is needed"
        )
    try:
        again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{name}: its vocabulary, {type(vocabulary).__name__}, cannot be read again from what "
            f"a run keeps of it ({said(error)})"
        ) from error
    if again.size != size:
        raise UsageError(
            f"{name}: its vocabulary has {size} tokens, and {again.size} where a run reads it again"
        )
    return size


def _require_tokens(tokens: Any, what: str, size: int) -> None:
    """Raise `UsageError` unless they are ids of the vocabulary, [N]."""
    needed = f"a NumPy array [N] of whole numbers from 0 to {size - 1} is needed"
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1:
        raise UsageError(f"{what} is {described(tokens)}; {needed}")
    if not np.issubdtype(tokens.dtype, np.integer) or not len(tokens):
        raise UsageError(f"{what} is {described(tokens)}; {needed}")
    lowest, highest = _extent(tokens, size)
    if lowest < 0 or highest >= size:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(f"{what} has token {wrong}; {needed}")


def _extent(tokens: NDArray[np.integer], size: int) -> tuple[int, int]:
    """Lowest and highest, a piece at a time: there may be more of them than memory holds."""
    kind = np.iinfo(tokens.dtype)
    if kind.min >= 0 and kind.max < size:
        return 0, 0  # no other can be written
    pieces = [tokens[start : start + PIECE] for start in range(0, len(tokens), PIECE)]
    return min(int(p.min()) for p in pieces), max(int(p.max()) for p in pieces)


def _require_boundary(corpus: TokenCorpus, name: str) -> None:
    boundary, most = corpus.boundary, len(corpus.tokens)
    is_whole = isinstance(boundary, int | np.integer) and not isinstance(boundary, bool)
    if not is_whole or not 0 <= boundary <= most:
        raise UsageError(
            f"{name}: its boundary is {described(boundary)}; a whole number from 0 to {most}, "
            "the number of tokens, is needed"
        )


def _require_windows(windows: Any, call: str, rows: int | None, length: int, size: int) -> None:
    """Raise `UsageError` unless they are tokens and targets, [rows, length] each."""
    shape = f"[{'N' if rows is None else rows}, {length}]"
    needed = f"two int64 tensors {shape} on the CPU, tokens and targets, are needed"
    if not isinstance(windows, tuple) or len(windows) != 2:
        raise UsageError(f"{call} gives {described(windows)}; {needed}")
    for part, kind in zip(windows, ("tokens", "targets"), strict=True):
        is_right = (
            isinstance(part, torch.Tensor)
            and part.dtype == torch.int64
            and part.device.type == "cpu"
            and part.ndim == 2
            and part.shape[1] == length
            and len(part) == (len(part) or 1 if rows is None else rows)
        )
        if not is_right or part.shape != windows[0].shape:
            raise UsageError(f"{call} gives {kind} {described(part)}; {needed}")
        lowest, highest = int(part.min()), int(part.max())
        if lowest < 0 or highest >= size:
            wrong = lowest if lowest < 0 else highest
            raise UsageError(
                f"{call} gives {kind} with token {wrong}; 0 to {size - 1} are in the vocabulary"
            )


def _require_same(again: Callable[[], Windows], windows: Windows, call: str) -> None:
    """Raise `UsageError` unless a second call gives the same."""
    second = again()
    if not all(torch.equal(one, other) for one, other in zip(windows, second, strict=True)):
        raise UsageError(
            f"{call} gives other tokens when it is called again; the same are needed, so that a "
            "run can be resumed and its losses compared"
        )


def _require_truth(truth: Any, name: str, shape: tuple[int, ...]) -> None:
    if truth is None:
        return
    parts = [getattr(truth, part, None) for part in ("is_answer", "is_undecided")]
    if not isinstance(truth, Truth) or not all(
        isinstance(part, np.ndarray) and part.dtype == bool and part.shape == shape
        for part in parts
    ):
        given = ", ".join(map(described, parts)) if isinstance(truth, Truth) else described(truth)
        raise UsageError(
            f"{name}: truth() gives {given}; a Truth with two bool arrays {list(shape)} is needed"
        )
