"""Mechanisms: the ways in which a token may attend, and what each costs.

A mechanism is a class; `full`, `window` and `linear` are built in, and a user's own is named by its
import path (`my_file.MyMechanism`).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_meta.attention import flexible, gathered
from pyro_meta.attention.backend import uses_flex
from pyro_meta.attention.functional import full_attention, linear_attention, window_attention
from pyro_meta.attention.queries import Queries
from pyro_meta.errors import UsageError, require_defined
from pyro_meta.naming import NoSuchClass, find_class


class Mechanism(nn.Module):
    """Causal attention over queries, keys and values that all mechanisms of a layer share.

    Subclass it, set `nominal_cost`, and define `forward` and `macs`. Where routes are hard a
    mechanism serves the tokens that chose it, if it also defines `serve`; else it runs on all.

    Attributes
    ----------
    nominal_cost
        Cost in the unit of the Meta-Attention paper, where full attention is 1.
    rotary
        Whether q and k arrive rotated by position.
    """

    nominal_cost: ClassVar[float]
    rotary: ClassVar[bool] = True

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__()
        require_defined(self, Mechanism, "forward", "macs")
        if not hasattr(self, "nominal_cost"):
            raise UsageError(f"{type(self).__name__} does not define nominal_cost, a number")
        self.head_width = head_width

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, H, T, d] -> [B, H, T, d]; row t must depend on rows 0..t alone."""
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

    def macs(self, position: Tensor) -> Tensor:
        """Multiply-accumulates per head of one query at `position` (same shape, float)."""
        raise NotImplementedError


class Full(Mechanism):
    """Causal softmax attention over all earlier tokens: 2 d (t + 1) MACs per head."""

    nominal_cost = 1.0

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return full_attention(q, k, v)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        if uses_flex(q.device.type):
            return flexible.softmax_attention_of(q, k, v, queries)
        return gathered.softmax_attention_of(q, k, v, queries)

    def macs(self, position: Tensor) -> Tensor:
        return 2.0 * self.head_width * (position + 1)


class Window(Mechanism):
    """Softmax over the last W keys, self included: 2 d min(t + 1, W) MACs per head."""

    nominal_cost = 0.30

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)
        if window < 1:
            raise UsageError(
                f"window: {window} given; it counts the token itself, so at least 1 is allowed"
            )
        self.window = window

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window_attention(q, k, v, self.window)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        if uses_flex(q.device.type):
            return flexible.softmax_attention_of(q, k, v, queries, self.window)
        return gathered.softmax_attention_of(q, k, v, queries, self.window)

    def macs(self, position: Tensor) -> Tensor:
        return 2.0 * self.head_width * (position + 1).clamp(max=self.window)


class Linear(Mechanism):
    """Kernel attention with a d x d state (elu + 1): 2 d^2 MACs per head, at any position."""

    nominal_cost = 0.15
    rotary = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        return gathered.linear_attention_of(q, k, v, queries)

    def macs(self, position: Tensor) -> Tensor:
        return torch.full_like(position, 2.0 * self.head_width**2, dtype=torch.get_default_dtype())


BUILT_IN: dict[str, type[Mechanism]] = {"full": Full, "window": Window, "linear": Linear}


def find_mechanism(name: str) -> type[Mechanism]:
    """The class that `name` stands for: a built-in's name, or an import path `module.Class`.

    Raises
    ------
    UsageError
        No such name (near matches are given), or the class is not a `Mechanism`.
    """
    try:
        found = find_class(name, BUILT_IN, "my_file.MyMechanism")
    except NoSuchClass as error:
        raise UsageError(f"mechanisms: {error}") from error
    if not issubclass(found, Mechanism):
        raise UsageError(
            f"mechanisms: {name!r} is not a mechanism; a subclass of "
            "pyro_meta.attention.Mechanism is allowed"
        )
    return found


def build_mechanisms(names: Sequence[str], head_width: int, window: int) -> nn.ModuleList:
    """One instance of each named mechanism, in order; names must be distinct and not empty."""
    if not names:
        raise UsageError("mechanisms: none given; at least one is needed")
    built = [find_mechanism(name)(head_width=head_width, window=window) for name in names]
    labels = [mechanism.name for mechanism in built]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise UsageError(f"mechanisms: {', '.join(repeated)} given twice; each is allowed once")
    return nn.ModuleList(built)
