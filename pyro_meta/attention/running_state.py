"""The state of a mechanism over a text that is read on: formed only when somebody needs it.

Every token enters the state, since any later one may ask for it. But as long as nobody does, what
single new tokens bring is kept as it is, and then taken in all at once: a token that chose another
mechanism pays nothing for this one.

Shapes: B rows, S new tokens, G key-value heads, d head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention.mechanisms import Mechanism

MOST_WAITING = 64  # tokens of a row


class _Piece(NamedTuple):
    """Keys and values [B, G, S, d] of new tokens, and which of them are no padding, [B, S]."""

    k: Tensor
    v: Tensor
    is_token: Tensor | None


class _Text(NamedTuple):
    """What is known of a text."""

    state: Tensor | None
    """That of all tokens but those that wait, [B, ...]; None where there are no others."""
    waiting: list[_Piece]
    tokens: int
    """Tokens of a row that wait."""


class RunningState:
    """What a mechanism that defines `state_of` and `resume` knows of the texts in B rows.

    What is taken in belongs to the text only after `commit`.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        self._read = self._staged = _Text(None, [], 0)
        self._unread: Tensor | None = None  # that of a row without text, [1, ...]

    def now(self) -> Tensor | None:
        """The state of the text so far, [B, ...]; None before any text."""
        state, waiting, _ = self._read
        if waiting:
            state = self._with(waiting)
            self._read = self._staged = _Text(state, [], 0)
        return state

    def take(self, k: Tensor, v: Tensor, is_token: Tensor | None) -> None:
        """Take in the new tokens, [B, G, S, d]."""
        state, waiting, count = self._read
        waiting, count = [*waiting, _Piece(k, v, is_token)], count + k.shape[2]
        if self._unread is None:
            none = torch.zeros(1, 1, dtype=torch.bool, device=v.device)
            self._unread = self.mechanism.state_of(k[:1, :, :1], v[:1, :, :1], None, none)
        if count > MOST_WAITING:
            self._staged = _Text(self._with(waiting), [], 0)
        else:
            self._staged = _Text(state, waiting, count)

    def commit(self) -> None:
        """What was taken in last belongs to the text from now on."""
        self._read = self._staged

    def replace(self, rows: list[int], other: "RunningState", count: int) -> None:
        """Put the texts of another in place of `rows` among `count`."""
        ours, theirs = self.now(), other.now()
        unread = other._unread if ours is None else self._unread
        if unread is None:  # neither has read anything
            return
        if ours is None:
            ours = unread.expand(count, *unread.shape[1:]).clone()
        ours[rows] = unread if theirs is None else theirs
        self._read = self._staged = _Text(ours, [], 0)
        self._unread = unread

    def _with(self, pieces: list[_Piece]) -> Tensor:
        """The state once the pieces that wait, and more, have been taken in."""
        if len(pieces) == 1:
            k, v, is_token = pieces[0]
        else:
            k = torch.cat([piece.k for piece in pieces], 2)
            v = torch.cat([piece.v for piece in pieces], 2)
            is_token = _joined(pieces)
        return self.mechanism.state_of(k, v, self._read.state, is_token)


def _joined(pieces: list[_Piece]) -> Tensor | None:
    """Which tokens of all pieces are no padding, [B, S]; None if all are."""
    if all(piece.is_token is None for piece in pieces):
        return None
    return torch.cat(
        [
            piece.k.new_ones(len(piece.k), piece.k.shape[2], dtype=torch.bool)
            if piece.is_token is None
            else piece.is_token
            for piece in pieces
        ],
        1,
    )
