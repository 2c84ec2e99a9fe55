"""A text as the tokens of a run, refused in one line where the run cannot read it."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.data.loss import loss
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.errors import UsageError


class Encoded(NamedTuple):
    """Tokens of a text."""

    tokens: Tensor
    """Ids [N] on the processor."""
    pieces: list[str]
    """The text that each token adds, [N]."""


def encoded(vocabulary: Vocabulary, text: str, context: int, least: int = 1) -> Encoded:
    """The tokens of `text`: at least `least`, and no more than `context`.

    Warns of characters that the tokens lose.

    Raises
    ------
    UsageError
        The text is empty, too short, longer than the context, or cannot be written in the
        vocabulary.
    """
    if not isinstance(text, str):
        raise UsageError(f"text: {type(text).__name__} given; a str is needed")
    if not text:
        raise UsageError("text: it is empty; at least one token is needed")
    try:
        ids = vocabulary.encode(text)
        lost = loss(vocabulary, text)
    except UsageError as error:
        raise UsageError(f"text: {error}") from error
    if not len(ids) or lost.is_total():
        raise UsageError("text: nothing of it is in the vocabulary; at least one token is needed")
    if len(ids) > context:
        raise UsageError(
            f"text: {len(ids)} tokens given; at most {context} are allowed, the context of the run"
        )
    if len(ids) < least:
        raise UsageError(
            f"text: {len(ids)} token given; at least {least} are needed, as each is scored by the "
            "next one"
        )
    if said := lost.said():
        warnings.warn(f"text: {said}", stacklevel=4)
    return Encoded(torch.from_numpy(ids), vocabulary.pieces(ids.tolist()))
