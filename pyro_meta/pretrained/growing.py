"""A layer of a transformers cache that writes what is new into room that it keeps.

`DynamicLayer` copies all keys and values of a text for each new token. After 8192 tokens of a small
model that takes longer than attention does. `GrowingLayer` copies them when its room is spent, and
in between writes the new ones behind the old.

Nothing that was given is ever written over. Whatever another hand does with a cache, such as
cropping it, choosing beams or copying it, leaves tensors that are not the newest ones given. They
get room of their own.

Shapes: B sequences, G key-value heads, S tokens, d head width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 8
"""One place is kept free for so many that are taken."""
LEAST_SPARE = 64
"""Places that are kept free at least."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that gives the same keys and values, [B, G, S, d], as views of its room."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.rooms = (_Room(), _Room())

    @classmethod
    def of(cls, layer: DynamicLayer) -> "GrowingLayer":
        """One that goes on with the keys and values of another."""
        new = cls()
        for name, value in vars(layer).items():
            setattr(new, name, value)
        return new

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """All keys and values, [B, G, S, d], with the new ones at their end."""
        of_keys, of_values = self.rooms
        keys, values = self.keys, self.values
        if not (_can_grow(keys, key_states) and _can_grow(values, value_states)):
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = of_keys.grown(keys, key_states)
        self.values = of_values.grown(values, value_states)
        return self.keys, self.values


class _Room:
    """A tensor with places to spare, and the view of it that was given last."""

    def __init__(self) -> None:
        self.whole: Tensor | None = None
        self.given: Tensor | None = None

    def grown(self, past: Tensor, new: Tensor) -> Tensor:
        """`past` and what is `new`, one behind the other: a view, in place if it can be."""
        before = past.shape[2]
        end = before + new.shape[2]
        whole = self.whole
        if whole is None or self.given is not past or whole.shape[2] < end or _is_sealed(whole):
            B, G, _, d = past.shape
            whole = past.new_empty(B, G, end + max(LEAST_SPARE, end // SPARE), d)
            whole[:, :, :before] = past
        whole[:, :, before:end] = new
        self.whole, self.given = whole, whole[:, :, :end]
        return self.given


def _can_grow(past: Tensor | None, new: Tensor) -> bool:
    """Whether there is something to grow, and no gradient or graph that needs it as it was."""
    if past is None or not past.numel() or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and (past.requires_grad or new.requires_grad):
        return False
    return past.dtype == new.dtype and past.device == new.device


def _is_sealed(x: Tensor) -> bool:
    """Whether inference mode has made it, and nobody may write to it outside."""
    return x.is_inference() and not torch.is_inference_mode_enabled()


def give_room(*given: object) -> None:
    """Have the layers of a cache grow in place, as far as they are plain `DynamicLayer`s.

    Whatever else is given is left alone, and so is a cache that moves its layers between devices.
    """
    for cache in given:
        if isinstance(cache, DynamicCache) and not cache.offloading:
            for index, layer in enumerate(cache.layers):
                if type(layer) is DynamicLayer:
                    cache.layers[index] = GrowingLayer.of(layer)
