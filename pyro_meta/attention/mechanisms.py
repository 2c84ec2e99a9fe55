"""Mechanisms: the ways in which a token may attend, and what each costs.

A mechanism is a class; those that are built in have names (`pyro_meta.attention.registry`), and a
user's own is named by its import path (`my_file.MyMechanism`).
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from pyro_meta.attention.memory import Memory
from pyro_meta.attention.ops import flex, gathered
from pyro_meta.attention.ops.backend import uses_flex
from pyro_meta.attention.ops.dense import (
    full_attention,
    last_row_of_attention,
    linear_attention,
    linear_attention_after,
    linear_state,
    window_attention,
)
from pyro_meta.attention.ops.heads import with_heads
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.sizes import Sizes
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import require_defined, require_price

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [B, H, T, d] of the newest tokens -> what they attend to, [B, H, T, d],
among all tokens so far."""


class Abilities(NamedTuple):
    """What a mechanism can do beside `forward`; see `serves` and so on."""

    serves: bool
    decodes: bool
    recurs: bool
    carries: bool
    remembers: bool
    groups: bool


class Mechanism(nn.Module):
    """Causal attention over queries, keys and values that all mechanisms of a layer share.

    Subclass it, set `nominal_cost`, and define `forward` and `macs`. Where routes are hard a
    mechanism serves the tokens that chose it, if it also defines `serve`; else it runs on all.
    What is inherited counts as defined until a subclass defines another `forward`.

    Text that is continued is read through a cache (`pyro_meta.attention.cache`). A mechanism that
    defines nothing more has everything it reads kept and is asked again; `serve` spares it all but
    the new queries. One that looks back at keys gives a new token its row by `decode`. One that
    carries a running state defines `state_of` and `resume`, and no key is kept for it. One that
    keeps something that grows with the text defines `new_memory`.

    What a token has to remember from layer to layer, rather than of the text, is a momentum: see
    `kick`.

    Attributes
    ----------
    nominal_cost
        Cost in the unit of the Meta-Attention paper, where full attention is 1.
    rotary
        Whether q and k arrive rotated by position.
    reads_separators
        Whether `forward` and `serve` get, behind everything else, which tokens separate
        sentences: booleans [B, 1, T, 1].
    block
        How many neighbouring queries `forward` works through at once, each with the keys of all: a
        hint of what it does beyond `macs`, from which dispatch judges whether `serve` is faster.
    of_keys
        About which share of the work of `forward` is done on keys and values, and so by `serve` as
        well, however few it serves: a hint, too.
    abilities
        What counts as defined, decided once, when a mechanism is built.
    """

    nominal_cost: ClassVar[float]
    rotary: ClassVar[bool] = True
    reads_separators: ClassVar[bool] = False
    block: ClassVar[int] = 128
    of_keys: ClassVar[float] = 0.0

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__()
        kind = type(self)
        with_separators = ("forward", "serve") if self.reads_separators else ()
        require_defined(self, Mechanism, "forward", "macs", more=with_separators)
        if _redefines(kind, "resume") != _redefines(kind, "state_of"):
            raise UsageError(
                f"{kind.__name__} defines one of state_of and resume; a mechanism that "
                "carries a state defines both"
            )
        if not hasattr(self, "nominal_cost"):
            raise UsageError(f"{kind.__name__} does not define nominal_cost, a number")
        require_price(self.nominal_cost, f"{kind.__name__}: nominal_cost")
        self.head_width = head_width
        self.abilities = _abilities(kind)

    @classmethod
    def of_sizes(cls, sizes: Sizes) -> Self:
        """One of a transformer's sizes; a mechanism that takes more than two overrides it."""
        return cls(head_width=sizes.head_width, window=sizes.window)

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, H, T, d] -> [B, H, T, d]; row t must depend on rows 0..t alone."""
        raise NotImplementedError

    def grouped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`forward` of grouped queries: query head h reads key-value head h // (H / G).

        Optional. Else keys and values are repeated for every query head; and always for one that
        reads separators.

        Parameters
        ----------
        q
            [B, H, T, d].
        k, v
            [B, G, T, d].

        Returns
        -------
        Tensor
            [B, H, T, d].
        """
        raise NotImplementedError

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        """The rows of `forward` that belong to `queries`, at a cost that follows their number.

        Optional. K and V are those of all tokens, q those of the N queries alone, and key-value
        heads G are not repeated: query head h reads key-value head h // (H / G).

        Parameters
        ----------
        q
            [N, H, d], N >= 1.
        k, v
            [B, G, T, d].
        queries
            Sequence and position of each query, in order.

        Returns
        -------
        Tensor
            [N, H, d].
        """
        raise NotImplementedError

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The last row of `forward`: what the newest token gets.

        Optional, for mechanisms that define `serve`, which else is asked for one query.

        Parameters
        ----------
        q
            [B, H, 1, d], of the newest token alone.
        k, v
            [B, G, T, d], of all T tokens: views of the cache, to be sliced and not to be copied.

        Returns
        -------
        Tensor
            [B, H, 1, d].
        """
        raise NotImplementedError

    def state_of(
        self, k: Tensor, v: Tensor, past: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        """All that later tokens need to know of the text so far, of fixed size.

        Optional, together with `resume`: one without the other is refused. Every token enters the
        state, whichever mechanism it chose, since any later one may choose this.

        Parameters
        ----------
        k, v
            [B, G, S, d], of the S newest tokens.
        past
            [B, ...], the state before them; None at the beginning of the text.
        is_token
            [B, S], false where a shorter row is padded: such a place must change nothing. None
            where there is no padding.

        Returns
        -------
        Tensor
            [B, ...], another tensor than `past`.
        """
        raise NotImplementedError

    def resume(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
        """The last S rows of `forward`: those of tokens that follow a state.

        Parameters
        ----------
        q
            [B, H, S, d].
        k, v
            [B, G, S, d].
        past
            [B, ...], the state before these tokens, of `state_of`.

        Returns
        -------
        Tensor
            [B, H, S, d].
        """
        raise NotImplementedError

    def kick(
        self, q: Tensor, v: Tensor, momentum: Tensor | None, layer: int, attend: Attend
    ) -> Tensor:
        """The momenta that this layer reads in place of values, and hands to the next one.

        Optional, for one mechanism of a layer. Every token is kicked, whichever mechanism it chose,
        since any later one may read its momentum.

        Parameters
        ----------
        q, v
            [B, H, T, d]; those of key-value heads are repeated.
        momentum
            [B, H, T, d], as the layer before left it; None in the first.
        layer
            0, 1, ..., L - 1: the time.
        attend
            This mechanism's own `forward` over the text so far, also where that is read through a
            cache; to be called once at most.

        Returns
        -------
        Tensor
            [B, H, T, d].
        """
        raise NotImplementedError

    def new_memory(self, rows: int) -> Memory:
        """An empty memory of texts in `rows` rows, beside keys and values.

        Optional, for mechanisms that would else go through the whole text for each new token.
        """
        raise NotImplementedError

    def macs(self, position: Tensor) -> Tensor:
        """Multiply-accumulates per head of one query at `position` (same shape, float)."""
        raise NotImplementedError

    def kick_macs(self, position: Tensor) -> Tensor:
        """The part of `macs` that `kick` takes, which tokens of other mechanisms pay too."""
        return torch.zeros_like(position)

    def macs_of(self, position: Tensor, k: Tensor, *more: Tensor) -> Tensor:
        """The same for a given text, where what is read depends on the text.

        Parameters
        ----------
        position
            [T], 0 .. T - 1.
        k
            [B, G, T, d].
        more
            Whatever else the mechanism reads.

        Returns
        -------
        Tensor
            [B, T] or broadcastable.
        """
        return self.macs(position)


class Full(Mechanism):
    """Causal softmax attention over all earlier tokens: 2 d (t + 1) MACs per head."""

    nominal_cost = 1.0
    block = 512  # of PyTorch's kernel on a CPU

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return full_attention(q, k, v)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        if uses_flex(q.device.type, q.shape[-1]):
            return flex.softmax_attention_of(q, k, v, queries)
        return gathered.softmax_attention_of(q, k, v, queries)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return last_row_of_attention(q, k, v)

    def macs(self, position: Tensor) -> Tensor:
        return 2.0 * self.head_width * (position + 1)


class Window(Mechanism):
    """Softmax over the last W keys, self included, and the first S of the text, its sinks.

    A key that is among both counts once: 2 d min(t + 1, W + S) MACs per head. The first tokens are
    where pretrained heads look when there is nothing to look at (StreamingLLM, Xiao et al. 2023,
    arXiv 2309.17453).
    """

    nominal_cost = 0.30

    def __init__(self, head_width: int, window: int, sinks: int = 0) -> None:
        super().__init__(head_width, window)
        if window < 1:
            raise UsageError(
                f"window: {window} given; it counts the token itself, so at least 1 is allowed"
            )
        if sinks < 0:
            raise UsageError(f"sinks: {sinks} given; at least 0 is allowed")
        self.window, self.sinks = window, sinks

    @classmethod
    def of_sizes(cls, sizes: Sizes) -> Self:
        if not sizes.sinks:  # an own subclass may know of none
            return super().of_sizes(sizes)
        return cls(head_width=sizes.head_width, window=sizes.window, sinks=sizes.sinks)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window_attention(q, k, v, self.window, self.sinks)

    def grouped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.forward(q, k, v)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        if uses_flex(q.device.type, q.shape[-1]):
            return flex.softmax_attention_of(q, k, v, queries, self.window, self.sinks)
        return gathered.softmax_attention_of(q, k, v, queries, self.window, self.sinks)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return last_row_of_attention(q, self._seen_by_newest(k), self._seen_by_newest(v))

    def _seen_by_newest(self, x: Tensor) -> Tensor:
        """Those of all tokens, x [B, G, T, d], that the newest one sees; a view without sinks."""
        most = self.window + self.sinks
        if self.sinks and x.shape[2] > most:
            return torch.cat([x[:, :, : self.sinks], x[:, :, -self.window :]], 2)
        return x[:, :, -most:]

    def macs(self, position: Tensor) -> Tensor:
        return 2.0 * self.head_width * (position + 1).clamp(max=self.window + self.sinks)


class Linear(Mechanism):
    """Kernel attention with a d x d state (elu + 1): 2 d^2 MACs per head, at any position."""

    nominal_cost = 0.15
    rotary = False
    of_keys = 0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        return gathered.linear_attention_of(q, k, v, queries)

    def state_of(
        self, k: Tensor, v: Tensor, past: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        new = linear_state(k, v, is_token)
        return new if past is None else past + new

    def resume(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
        return linear_attention_after(q, k, v, past)

    def macs(self, position: Tensor) -> Tensor:
        return torch.full_like(position, 2.0 * self.head_width**2, dtype=torch.get_default_dtype())


def serves(mechanism: Mechanism) -> bool:
    """Whether `mechanism` can serve chosen queries alone."""
    return mechanism.abilities.serves


def decodes(mechanism: Mechanism) -> bool:
    """Whether `mechanism` has a way of its own to give the newest token its row."""
    return mechanism.abilities.decodes


def recurs(mechanism: Mechanism) -> bool:
    """Whether `mechanism` carries a running state."""
    return mechanism.abilities.recurs


def carries(mechanism: Mechanism) -> bool:
    """Whether `mechanism` carries a momentum through depth."""
    return mechanism.abilities.carries


def remembers(mechanism: Mechanism) -> bool:
    """Whether `mechanism` keeps a memory of its own."""
    return mechanism.abilities.remembers


def attend_all(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
    """What `mechanism` gives all tokens, [B, H, T, d], of q [B, H, T, d], k and v [B, G, T, d].

    `more` is whatever else it reads.
    """
    H = q.shape[1]
    if k.shape[1] < H and mechanism.abilities.groups:
        return mechanism.grouped(q, k, v)
    found: Tensor = mechanism(q, with_heads(k, H), with_heads(v, H), *more)
    return found


def _abilities(kind: type[Mechanism]) -> Abilities:
    """What `kind` can do, by the methods that are defined beside its `forward`."""
    return Abilities(
        serves=_is_of_forward(kind, "serve"),
        decodes=_is_of_forward(kind, "decode"),
        recurs=_is_of_forward(kind, "resume") and _is_of_forward(kind, "state_of"),
        carries=_is_of_forward(kind, "kick"),
        remembers=_is_of_forward(kind, "new_memory"),
        groups=_is_of_forward(kind, "grouped") and not kind.reads_separators,
    )


def _redefines(kind: type[Mechanism], method: str) -> bool:
    return getattr(kind, method) is not getattr(Mechanism, method)


def _is_of_forward(kind: type[Mechanism], method: str) -> bool:
    """Whether `method` is defined, and belongs to the `forward` that `kind` has.

    A subclass that defines another `forward` attends otherwise than the methods it inherits.
    """
    if not _redefines(kind, method):
        return False
    lineage = kind.__mro__
    owner, of_forward = (
        next(up for up, one in enumerate(lineage) if name in vars(one))
        for name in (method, "forward")
    )
    return owner <= of_forward
