"""What a mechanism keeps of texts beside keys and values, if that grows with the texts.

Shapes: B rows, T tokens read before, S new ones, G key-value heads, H query heads, d head width,
N queries.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.span import Span


class Memory(ABC):
    """Read piece by piece, like the cache that it is part of (`pyro_meta.attention.cache`).

    What is taken in belongs to the text only after `commit`: until then another `take` puts
    something else in its place.
    """

    @abstractmethod
    def take(self, k: Tensor, v: Tensor, span: Span, *more: Tensor) -> None:
        """Take in the new tokens of a span.

        Parameters
        ----------
        k, v
            [B, G, T + S, d], of all tokens: views of the cache.
        more
            Whatever else the mechanism reads (`Inputs.read_by`), of all tokens.
        """

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        """Rows [N, H, d] of new tokens, all taken in: q [N, H, d], k and v as of `take`."""

    @abstractmethod
    def commit(self) -> None:
        """What was taken in last belongs to the text from now on."""

    @abstractmethod
    def replace(self, rows: list[int], other: "Memory") -> None:
        """Put the texts of another, of the same mechanism, in place of `rows`."""
