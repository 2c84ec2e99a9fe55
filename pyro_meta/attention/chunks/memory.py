"""The decode cache of chunks: a summary is made once, when its chunk is finished.

Shapes: B rows, T tokens, M chunks, G key-value heads, H query heads, d head width, N queries.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_meta.attention.chunks.attention import Digest, chunk_attention_of, log_sizes
from pyro_meta.attention.memory import Memory
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.span import Growing, Span

Starts = Callable[..., Tensor]
Summaries = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class ChunkMemory(Memory):
    """Starts of chunks, and summaries of the finished ones, of texts in B rows.

    Where chunks begin is found by starting again at the chunk that is still open: a rule forgets
    what was before it.

    Parameters
    ----------
    starts
        Positions [1, M] at which chunks of keys [1, G, T, d] begin, the first at 0; takes whatever
        else the mechanism reads behind the keys.
    summaries
        Keys and values [1, G, M - 1, d] of all but the last of the chunks that begin at [1, M], for
        k and v [1, G, T, d].
    recent
        See `pyro_meta.attention.chunks.attention`.
    rows
        B.
    """

    def __init__(self, starts: Starts, summaries: Summaries, recent: int, rows: int) -> None:
        self._find, self._sum, self._recent = starts, summaries, recent
        self._counts = [0] * rows  # chunks that have begun
        self._open = [0] * rows  # where the last of them began
        self._staged = self._counts, self._open
        self._starts = Growing(rows)  # [B, 1, M, 1], integers
        self._keys, self._values = Growing(rows), Growing(rows)  # [B, G, M - 1, d] each

    def take(self, k: Tensor, v: Tensor, span: Span, *more: Tensor) -> None:
        counts, opened = list(self._counts), list(self._open)
        for row in span.rows:
            begin, end = opened[row], span.ends[row]
            piece = slice(begin, end)
            others = (x[row : row + 1, :, piece] for x in more)
            found = begin + self._find(k[row : row + 1, :, piece], *others)  # [1, M]
            had = counts[row]
            new = found.shape[1] - (had > 0)  # its first is the one that was open
            if new:
                self._write(row, had, k[row : row + 1, :, :end], v[row : row + 1, :, :end], found)
                counts[row], opened[row] = had + new, int(found[0, -1])
        self._staged = counts, opened

    def _write(self, row: int, had: int, k: Tensor, v: Tensor, found: Tensor) -> None:
        new = found[:, 1:] if had else found
        self._starts.write_row(row, new[:, None, :, None], had)
        for growing, x in zip((self._keys, self._values), self._sum(k, v, found), strict=True):
            growing.write_row(row, x, max(0, had - 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        counts = self._staged[0]
        M = max(counts)
        starts = self._starts.read(M)[:, 0, :, 0]
        is_begun = torch.arange(M, device=k.device) < torch.tensor(counts, device=k.device)[:, None]
        starts = starts.masked_fill(~is_begun, k.shape[2])
        wide = torch.promote_types(v.dtype, torch.float32)
        keys, values = (x.read(M - 1) for x in (self._keys, self._values))
        digest = Digest(starts, keys, values, log_sizes(starts, wide))
        return chunk_attention_of(q, k, v, digest, self._recent, queries)

    def commit(self) -> None:
        self._counts, self._open = self._staged

    def replace(self, rows: list[int], other: Memory) -> None:
        assert isinstance(other, ChunkMemory)
        M = max(other._counts)
        self._starts.replace(rows, other._starts, M)
        for ours, theirs in ((self._keys, other._keys), (self._values, other._values)):
            ours.replace(rows, theirs, max(0, M - 1))
        for row, count, begun in zip(rows, other._counts, other._open, strict=True):
            self._counts[row], self._open[row] = count, begun
        self._staged = self._counts, self._open
