"""Classes of tokens by what they add to the text, and by how often they occur."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COMMON, KNOWN = 0.5, 0.95
"""Common tokens: the most frequent ids that make up half of the text. Rare: those beyond 95%."""


def kinds(text: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Letters, digits, space, punctuation and the rest, disjoint: text [N] -> name -> which tokens.

    A token of several characters is what its first character that is no space makes it.
    """
    known: dict[str, str] = {}
    labels = np.array([known.setdefault(piece, _kind(piece)) for piece in text], dtype=object)
    names = ("letters", "digits", "space", "punctuation", "other")
    return {name: labels == name for name in names if (labels == name).any()}


def frequencies(ids: NDArray[np.integer]) -> dict[str, NDArray[np.bool_]]:
    """Common, middling and rare tokens, disjoint: ids [N] -> name -> which tokens."""
    found, where, counts = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = np.empty(len(found))
    before[order] = (np.cumsum(counts[order]) - counts[order]) / len(ids)  # of all more frequent
    share = before[where]
    return {
        "common": share < COMMON,
        "middling": (share >= COMMON) & (share < KNOWN),
        "rare": share >= KNOWN,
    }


class Piece(NamedTuple):
    """A piece of text and a figure averaged over the tokens that add it."""

    text: str
    mean: float
    times: int


def ranked_pieces(text: Sequence[str], values: NDArray[np.floating]) -> list[Piece]:
    """Pieces of text [N] that occur often enough to judge, by their mean of values [N], falling."""
    found, where, counts = np.unique(
        np.array(text, dtype=str), return_inverse=True, return_counts=True
    )
    means = np.bincount(where, values) / counts
    often = np.flatnonzero(counts >= max(5, len(values) // 10_000))
    ranked = often[np.argsort(-means[often], kind="stable")]
    return [Piece(str(found[i]), float(means[i]), int(counts[i])) for i in ranked]


def _kind(piece: str) -> str:
    stripped = piece.strip()
    if piece and not stripped:
        return "space"
    first = stripped[:1]
    if first.isalpha():
        return "letters"
    if first.isdigit():
        return "digits"
    is_mark = first.isprintable() and first not in ("", "\ufffd", "\u2400")
    return "punctuation" if is_mark else "other"
