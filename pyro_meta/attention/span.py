"""Where new tokens stand in texts that have been read, and numbers that grow with every token.

Shapes: B rows, T tokens read before, S new ones, G key-value heads, d head width, N new tokens that
are no padding.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

ROOM = 64  # tokens that a cache begins with


class Span:
    """The new tokens of every row: `counts[b]` of them, from position `starts[b]` on.

    They come as [B, S], S >= 1, padded on the right.
    """

    def __init__(self, starts: Sequence[int], counts: Sequence[int], size: int) -> None:
        self.starts, self.counts, self.size = list(starts), list(counts), size
        self.ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.end = max(self.ends)  # length of the longest row
        self.is_first = not any(self.starts)  # nothing was read before
        self.is_aligned = min(self.starts) == max(self.starts)  # all rows are at one position
        self.is_full = min(self.counts) == size  # no padding
        self.rows = [row for row, count in enumerate(self.counts) if count]
        self._folded: Span | None = None

    def folded(self, groups: int) -> "Span":
        """The same tokens where each of `groups` groups of heads is a row of its own."""
        if groups == 1:
            return self
        if self._folded is None or len(self._folded.starts) != groups * len(self.starts):
            starts, counts = (
                [value for value in values for _ in range(groups)]
                for values in (self.starts, self.counts)
            )
            self._folded = Span(starts, counts, self.size)  # the same for every layer
        return self._folded

    def positions(self, device: torch.device) -> Tensor:
        """Positions of the new tokens, [S] if they are the same in all rows, else [B, S]."""
        steps = torch.arange(self.size, device=device)
        if self.is_aligned:
            return steps + self.starts[0]
        return torch.tensor(self.starts, device=device)[:, None] + steps

    def is_token(self, device: torch.device) -> Tensor | None:
        """Which of [B, S] are no padding; None if all are."""
        if self.is_full:
            return None
        counts = torch.tensor(self.counts, device=device)
        return torch.arange(self.size, device=device) < counts[:, None]

    def newest(self, x: Tensor) -> Tensor:
        """The new ones [B, S, ...] among all tokens of x [B, T + S, ...]."""
        if self.is_aligned and self.is_full:
            return x[:, self.starts[0] :]
        starts = torch.tensor(self.starts, device=x.device)[:, None]
        place = (starts + torch.arange(self.size, device=x.device)).clamp(max=self.end - 1)
        return x[torch.arange(len(x), device=x.device)[:, None], place]

    @cached_property
    def of_single_tokens(self) -> Tensor:
        """Row and position of each new token where no row has more than one, [2, N]."""
        return torch.tensor([self.rows, [self.starts[row] for row in self.rows]])

    @cached_property
    def numbered(self) -> Tensor:
        """Row and place of each new token, [N, 2], in order."""
        if self.is_full:
            whole = torch.ones(len(self.counts), self.size, dtype=torch.bool)
        else:
            whole = torch.arange(self.size) < torch.tensor(self.counts)[:, None]
        return whole.nonzero()


class Growing:
    """Numbers [B, G, T, d] of which there are more with every token; room is doubled when spent."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.room: Tensor | None = None

    def write(self, x: Tensor, span: Span) -> None:
        """Put x [B, G, S, d] behind what each row has."""
        self._make_room(x, span.end)
        assert self.room is not None
        if span.is_aligned and span.is_full:
            self.room[:, :, span.starts[0] : span.end] = x
            return
        if span.size == 1:
            row, place = span.of_single_tokens.to(x.device)
            self.room[row, :, place] = x[row, :, 0].to(self.room.dtype)
            return
        for row in span.rows:
            self.room[row, :, span.starts[row] : span.ends[row]] = x[row, :, : span.counts[row]]

    def write_row(self, row: int, x: Tensor, start: int) -> None:
        """Put x [1, G, S, d] into one row, from place `start` on."""
        self._make_room(x, start + x.shape[2])
        assert self.room is not None
        self.room[row : row + 1, :, start : start + x.shape[2]] = x

    def read(self, length: int) -> Tensor:
        """The first `length` of every row, a view [B, G, length, d]."""
        assert self.room is not None
        return self.room[:, :, :length]

    def replace(self, rows: list[int], other: "Growing", length: int) -> None:
        """Put the `length` first of another's rows in place of `rows`."""
        if not length or other.room is None:  # nothing was ever written
            return
        new = other.read(length)
        self._make_room(new, length)
        assert self.room is not None
        for row, own in zip(rows, new, strict=True):
            self.room[row, :, :length] = own

    def _make_room(self, like: Tensor, length: int) -> None:
        there = 0 if self.room is None else self.room.shape[2]
        if self.room is not None and length <= there:
            return
        # Zeros: what lies behind a row is never counted, but 0 times NaN would be NaN.
        _, G, _, d = like.shape
        room = like.new_zeros(self.rows, G, max(length, 2 * there, ROOM), d)
        if self.room is not None:
            room[:, :, :there] = self.room
        self.room = room
