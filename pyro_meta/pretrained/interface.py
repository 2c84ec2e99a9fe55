"""The hook: one attention function and one mask function in the registries of transformers.

A model whose attention goes through these registries calls `attention` in every layer, with
queries, keys and values after rotation, and after its cache. What a router reads, the input of the
layer, is seen by pre-hooks just before. No file of ours names an architecture, and no weight is
touched. Where nothing routes, `attention` is what `sdpa` is.

Shapes: B sequences, T new tokens, S keys, H query heads, G key-value heads, d head width, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pyro_meta.pretrained.growing import give_room

NAME = "pyro_meta"
"""Of our attention function, in the registries of transformers."""
SITE = "pyro_meta_site"  # the attribute of an attention module
ROUTING = "pyro_meta_routing"  # the attribute of a model


recorded: ContextVar["list[Call] | None"] = ContextVar("recorded", default=None)
"""The calls of `attention`, in order, where somebody wants to know."""


class Call:
    """What a layer hands to its attention function."""

    def __init__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        self.module, self.query, self.key, self.value = module, query, key, value
        self.mask, self.options = mask, options
        self.near: Tensor | None = None
        """What window attention gives, [B, T, H, d], once somebody has asked."""

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """What `sdpa` gives: [B, T, H, d]."""
        return sdpa_attention_forward(
            self.module, self.query, self.key, self.value, self.mask, **self.options
        )

    def without_room(self) -> "Call":
        """The same, without the keys behind a text that is read into a cache of fixed size.

        Without a mask, T new tokens are the first T keys; so `sdpa` understands it, too.
        """
        T, S = self.query.shape[2], self.key.shape[2]
        if self.mask is not None or T == 1 or T == S:
            return self
        key, value = self.key[:, :, :T], self.value[:, :, :T]
        return Call(self.module, self.query, key, value, None, self.options)

    @property
    def dropout(self) -> float:
        """Probability that a weight of attention is dropped; 0 outside of training."""
        return float(self.options.get("dropout") or 0.0)

    @property
    def scaling(self) -> float:
        """What scores are multiplied by."""
        given = self.options.get("scaling")
        return self.query.shape[-1] ** -0.5 if given is None else float(given)


class Pass(Protocol):
    """What is done in the layers of one forward pass."""

    def attend(self, site: "Site", call: Call) -> Tensor:
        """[B, T, H, d]."""


@dataclass
class Routing:
    """What all layers of one model share."""

    implementation: str
    """The name of the attention that the model had before."""
    sizes: tuple[int, int, int]
    """Of routed layers: query heads H, key-value heads G, head width d."""
    sites: list["Site"] = field(default_factory=list)
    """All attention modules, in the order of a forward pass."""
    passing: Pass | None = None
    """What routes at present; None: nothing does."""

    @contextmanager
    def within(self, passing: Pass) -> Iterator[None]:
        """Route by `passing` meanwhile."""
        before, self.passing = self.passing, passing
        try:
            yield
        finally:
            self.passing = before
            for site in self.sites:
                site.clear()


@dataclass
class Site:
    """An attention module of a model, and what has been seen of its layer's input."""

    index: int
    """Among all attention modules, in the order of a forward pass."""
    layer: int | None
    """Among those that are routed; None: it stays as it is."""
    window: int | None
    """How many keys it sees, of a module that the model itself makes local."""
    routing: Routing
    module: nn.Module = field(repr=False)
    """The attention module."""
    around: nn.Module = field(repr=False)
    """The layer that it is in."""
    state: Tensor | None = field(default=None, repr=False)
    """The residual stream that enters the layer, [B, T, D]."""
    normed: Tensor | None = field(default=None, repr=False)
    """What queries, keys and values are projected from, [B, T, D]."""

    def clear(self) -> None:
        """Forget what was seen."""
        self.state = self.normed = None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied: not what an interrupted pass has left; a graph's tensor cannot be."""
        return vars(self) | {"state": None, "normed": None}


def register() -> None:
    """Make our attention known to transformers, under `NAME`.

    The mask function stands beside it: without one, transformers hands over no mask at all.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in every layer.

    query [B, H, T, d], key and value [B, G, S, d] -> [B, T, H, d], and no weights of attention.
    """
    call = Call(module, query, key, value, attention_mask, options)
    if not torch.compiler.is_compiling() and (calls := recorded.get()) is not None:
        calls.append(call)
    site: Site | None = getattr(module, SITE, None)
    if site is None or site.routing.passing is None:
        return call.plain()
    try:
        return site.routing.passing.attend(site, call), None
    finally:
        site.clear()


class SeeNormed:
    """Pre-hook of an attention module: keeps its input for the attention function."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        site: Site = getattr(module, SITE)
        if site.routing.passing is not None:
            site.normed = hidden_states(args, kwargs)


@dataclass
class SeeState:
    """Pre-hook of the layer around an attention module: keeps the residual stream.

    That of the first layer also has the cache grow in place.
    """

    site: Site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.site.routing.passing is None:
            return
        self.site.state = hidden_states(args, kwargs)
        if self.site.index == 0 and not torch.compiler.is_compiling():
            give_room(*args, *kwargs.values())


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument of a layer or an attention module, whichever way it was given."""
    found = kwargs.get("hidden_states", args[0] if args else None)
    if not isinstance(found, Tensor):
        raise TypeError("a layer was called without hidden_states")
    return found


def routing_of(hf_model: nn.Module) -> Routing | None:
    """What routes a model, if it has been hooked."""
    return getattr(hf_model, ROUTING, None)
