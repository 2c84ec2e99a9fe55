"""Hard routes: every token runs its own mechanism and no other.

K and V are those of all tokens, since any later token may need them; what is saved is the work of
the queries. The result is that of running every mechanism on all tokens and weighing them by
one-hot weights, in value and in gradient.

Shapes: B sequences, T tokens, H query heads, G key-value heads, d head width, D = H d.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention.backend import is_forced
from pyro_meta.attention.mechanisms import Mechanism, carries, serves
from pyro_meta.attention.queries import Queries

NO_TOKEN = -1
"""The choice of a place that holds no token: padding at the end of a shorter sequence."""

GATHERED_COST = 1.4
"""Work on gathered queries over that on all tokens, by multiply-accumulate (CPU, measured)."""
GATHERED_BLOCK = 200
"""As `Mechanism.block`, where queries are gathered: neighbours are some way apart."""
SEQUENCE_MACS = 1.5e6
"""What gathering from one more sequence costs, in multiply-accumulates (CPU, measured)."""


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
    """[B, H, T, d], of a layer with a mechanism that carries one, which it reads as values."""

    def read_by(self, mechanism: Mechanism) -> tuple[Tensor, ...]:
        """q, k, v as `mechanism` reads them, and behind them what else it reads."""
        q, k, v = self.q, self.k, self.v
        if mechanism.rotary:
            q, k = self.q_rotated, self.k_rotated
        if self.momentum is not None and carries(mechanism):
            k, v = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1), self.momentum
        if self.is_separator is not None and mechanism.reads_separators:
            return q, k, v, self.is_separator
        return q, k, v

    def with_repeated_heads(self, group: int) -> "Inputs":
        """Each key-value head `group` times, so that there are as many as query heads."""
        k, v, k_rotated = (
            x.repeat_interleave(group, dim=1) for x in (self.k, self.v, self.k_rotated)
        )
        return self._replace(k=k, v=v, k_rotated=k_rotated)


def routed_attention(
    mechanisms: Sequence[Mechanism], gain: Tensor, choice: Tensor, inputs: Inputs
) -> Tensor:
    """g_k A_k(q, k, v) of the mechanism k that each token has chosen, [B, T, D].

    Parameters
    ----------
    mechanisms
        Those that may be chosen. One that nobody chose is not run.
    gain
        [K, D], one factor per channel.
    choice
        [B, T], integer: the mechanism of every token. `NO_TOKEN` where there is none: such a place
        costs nothing and gets zeros. It must follow the tokens of its sequence, which would see its
        key otherwise.
    inputs
        Queries, keys and values of all tokens.

    Raises
    ------
    ValueError
        A choice that is neither a mechanism nor `NO_TOKEN`.
    """
    B, H, T, d = inputs.q.shape
    flat = choice.flatten()
    owned = [(flat == index).nonzero()[:, 0] for index in range(len(mechanisms))]
    served = sum(map(len, owned))
    if served < B * T and served + int((flat == NO_TOKEN).sum()) < B * T:
        raise ValueError(
            f"choice: {int(flat.min())} to {int(flat.max())} given; 0 to {len(mechanisms) - 1}, "
            f"or {NO_TOKEN} for no token, is allowed"
        )
    out: Tensor | None = None
    for index, (mechanism, own) in enumerate(zip(mechanisms, owned, strict=True)):
        if not len(own):
            continue
        rows = attend(mechanism, inputs.read_by(mechanism), own)
        rows = gain[index] * rows.reshape(len(own), H * d)
        if len(own) == B * T:
            return rows.view(B, T, H * d)
        if out is None:
            out = (torch.empty if served == B * T else torch.zeros)(
                B * T, H * d, dtype=rows.dtype, device=rows.device
            )
        dtype = torch.promote_types(out.dtype, rows.dtype)
        out = out.to(dtype).index_copy_(0, own, rows.to(dtype))
    if out is None:  # no token at all
        return inputs.v.new_zeros(B, T, H * d)
    return out.view(B, T, H * d)


def attend(mechanism: Mechanism, read: Sequence[Tensor], own: Tensor) -> Tensor:
    """Rows [N, H, d] of `mechanism` for its `own` tokens [N]: ascending indices into B T.

    `read` is what it reads of all tokens, see `Inputs.read_by`.

    They alone are served where the mechanism knows how to and it pays; else it runs on all tokens.
    """
    q, k, v, *more = read
    B, H, T, _ = q.shape
    if len(own) < B * T:
        if serves(mechanism):
            queries = Queries(torch.div(own, T, rounding_mode="floor"), own % T)
            if is_forced() or pays(mechanism, queries, q):
                return mechanism.serve(queries.of(q), k, v, queries, *more)
        else:
            _say_that_nothing_is_saved(type(mechanism).__module__, type(mechanism).__name__)
    group = H // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    rows = mechanism(q, k, v, *more).transpose(1, 2).flatten(0, 1)
    return rows if len(own) == B * T else rows.index_select(0, own)


def pays(mechanism: Mechanism, queries: Queries, q: Tensor) -> bool:
    """Whether serving `queries` alone is thought to be faster than running on all of q.

    Weighed are the multiply-accumulates that are asked for, those of keys that a query meets only
    since it stands in a block with later ones (half a block, on average), and what is done on keys
    and values either way.
    """
    B, H, T, d = q.shape

    def work(position: Tensor, block: int) -> float:
        unseen = len(position) * min(block, T) / 2
        return H * (float(mechanism.macs(position.float()).sum()) + 2 * d * unseen)

    everyone = B * work(torch.arange(T, device=q.device), mechanism.block)
    own = work(queries.position, GATHERED_BLOCK)
    return mechanism.of_keys * everyone + GATHERED_COST * own + SEQUENCE_MACS * B < everyone


def is_choice(route: Tensor) -> bool:
    """Whether what a route gave are choices [B, T], integers, rather than weights [B, T, K]."""
    return route.dim() == 2 and not route.dtype.is_floating_point


@cache
def _say_that_nothing_is_saved(module: str, name: str) -> None:
    warnings.warn(
        f"{module}.{name} does not define serve(q, k, v, queries) beside its forward: where routes "
        "are hard it runs on all tokens, and saves no time",
        UserWarning,
        stacklevel=2,
    )
