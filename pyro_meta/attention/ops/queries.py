"""Which tokens a mechanism serves, and their layout in blocks of positions.

Shapes: B sequences, T tokens, N queries, P positions in a block, n blocks in a sequence, m places
in a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Queries(NamedTuple):
    """The N tokens that one mechanism serves, sorted by sequence and then by position."""

    sequence: Tensor
    """Row of the batch that each is in, [N], integer."""
    position: Tensor
    """Position in its sequence, [N], integer: it sees the keys 0 .. position."""

    def of(self, x: Tensor) -> Tensor:
        """Rows [N, H, d] of x [B, H, T, d]."""
        _, H, T, d = x.shape
        head = self.sequence[:, None] * H + torch.arange(H, device=x.device)
        row = head * T + self.position[:, None]  # [N, H]
        return x.reshape(-1, d).index_select(0, row.flatten()).view(-1, H, d)

    def neighbours(self, sequences: int, length: int, reach: int, most: int) -> list["Neighbours"]:
        """All queries, in order, in groups of at most `most` of one sequence.

        A group lies within `reach` positions, counted from 0 in sequences of `length` tokens.
        """
        blocks = -(-length // reach)
        block = self.sequence * blocks + torch.div(self.position, reach, rounding_mode="floor")
        counts = torch.bincount(block, minlength=sequences * blocks).tolist()
        starts, sizes, owners = [], [], []
        begin = 0
        for row, count in enumerate(counts):
            for start in range(0, count, most):
                starts.append(begin + start)
                sizes.append(min(most, count - start))
                owners.append(row // blocks)
            begin += count
        device = self.position.device
        begins, counted = torch.tensor(starts, device=device), torch.tensor(sizes, device=device)
        first = self.position[begins].tolist()
        last = self.position[begins + counted - 1].tolist()
        return [Neighbours(*one) for one in zip(sizes, owners, first, last, strict=True)]


class Neighbours(NamedTuple):
    """Queries of one sequence that follow each other."""

    size: int
    sequence: int
    first: int
    """Position of the first of them."""
    last: int


class Blocks:
    """Queries in a padded table [B n, m, ...]: a row for every block of P positions.

    m is the largest number of queries that share a block, so that a mechanism that meets a block's
    keys as one matrix works for its own queries, not for all positions; rounded up to `multiple`.
    """

    def __init__(
        self, queries: Queries, sequences: int, blocks: int, size: int, multiple: int = 1
    ) -> None:
        device = queries.position.device
        self.rows, most = sequences * blocks, len(queries.position)
        place, block = torch.arange(most, device=device), queries.sequence * blocks
        if self.rows > 1:  # else nothing has to be counted, which a GPU would be waited for
            block = block + torch.div(queries.position, size, rounding_mode="floor")
            counts = torch.bincount(block, minlength=self.rows)
            place = place - (counts.cumsum(0) - counts)[block]
            most = int(counts.max())
        self.places = -(-most // multiple) * multiple
        self._slot = block * self.places + place
        self._position = queries.position
        self._starts = torch.arange(blocks, device=device).repeat(sequences) * size

    def pack(self, x: Tensor) -> Tensor:
        """x [N, ...] in a table [B n, m, ...]; zero where a place is empty."""
        table = x.new_zeros(self.rows * self.places, *x.shape[1:])
        return table.index_copy(0, self._slot, x).view(self.rows, self.places, *x.shape[1:])

    def unpack(self, table: Tensor) -> Tensor:
        """[N, ...] of a table [B n, m, ...]."""
        return table.flatten(0, 1).index_select(0, self._slot)

    def offsets(self) -> Tensor:
        """Positions within their block, [B n, m]; 0 where a place is empty."""
        offset = self._starts.repeat_interleave(self.places)
        return (
            offset.index_copy(0, self._slot, self._position).view(self.rows, self.places)
            - self._starts[:, None]
        )
