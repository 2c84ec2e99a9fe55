"""Queries, keys and values of a layer, and which of them each mechanism reads.

Shapes: B sequences, T tokens, H query heads, G key-value heads, d head width.
"""

from functools import cache
from typing import NamedTuple

from torch import Tensor

from pyro_meta.attention.mechanisms import Mechanism, carries
from pyro_meta.attention.ops.heads import with_heads


class Names(NamedTuple):
    """The fields of `Inputs` that a mechanism reads as q, k and v."""

    q: str
    k: str
    v: str


def names_read_by(mechanism: Mechanism) -> Names:
    """Rotated or not, and momenta in place of values if `mechanism` carries one."""
    return _names(mechanism.rotary, carries(mechanism))


@cache
def _names(is_rotated: bool, is_carrying: bool) -> Names:
    suffix = "_rotated" if is_rotated else ""
    return Names(f"q{suffix}", f"k{suffix}", "momentum" if is_carrying else "v")


class Inputs(NamedTuple):
    """Queries [B, H, T, d], keys and values [B, G, T, d] of a layer, as they are and rotated; and
    which tokens separate sentences, [B, 1, T, 1], if a mechanism reads it."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_rotated: Tensor
    k_rotated: Tensor
    is_separator: Tensor | None = None
    momentum: Tensor | None = None
    """[B, H, T, d], of a layer with a mechanism that carries one, which it reads as values; None
    before the layer has kicked it."""

    def read_by(self, mechanism: Mechanism) -> tuple[Tensor, ...]:
        """q, k, v as `mechanism` reads them, and behind them what else it reads."""
        names = names_read_by(mechanism)
        q, k, v = getattr(self, names.q), getattr(self, names.k), getattr(self, names.v)
        if v is None:
            v = self.v
        elif names.v == "momentum":
            k = with_heads(k, v.shape[1])  # momenta are of query heads
        if self.is_separator is not None and mechanism.reads_separators:
            return q, k, v, self.is_separator
        return q, k, v

    def with_repeated_heads(self, group: int) -> "Inputs":
        """Each key-value head `group` times, so that there are as many as query heads."""
        k, v, k_rotated = (
            x.repeat_interleave(group, dim=1) for x in (self.k, self.v, self.k_rotated)
        )
        return self._replace(k=k, v=v, k_rotated=k_rotated)

    def folded(self, groups: int) -> "Inputs":
        """Each of `groups` groups of heads as a sequence of its own: [B groups, H / groups, T, d].

        Sequence b g is that of group g of sequence b.
        """
        if groups == 1:
            return self

        def fold(x: Tensor) -> Tensor:
            return x.unflatten(1, (groups, -1)).flatten(0, 1)

        separators = self.is_separator
        return Inputs(
            fold(self.q),
            fold(self.k),
            fold(self.v),
            fold(self.q_rotated),
            fold(self.k_rotated),
            None if separators is None else separators.repeat_interleave(groups, 0),
            None if self.momentum is None else fold(self.momentum),
        )
