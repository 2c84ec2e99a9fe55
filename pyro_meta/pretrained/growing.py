"""A layer of a transformers cache that writes what is new into room that it keeps.

`DynamicLayer` copies all keys and values of a text for each new token. After 8192 tokens of a small
model that takes about as long as attention does. `GrowingLayer` copies them when its room is spent,
and in between writes the new ones behind the old.

What was given is never written over. The room belongs to the newest tensor that was given, and goes
with it: whatever another hand leaves in a cache, by cropping it, choosing beams or copying it, has
none, and gets one of its own with the next token.

Shapes: B sequences, G key-value heads, S tokens, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 8
"""One place is kept free for so many that are taken."""
LEAST_SPARE = 64
"""Places that are kept free at least."""
ROOM = "pyro_meta_room"  # the attribute of a tensor that was given


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that gives the same keys and values, [B, G, S, d], as views of its room.

    Where gradients are recorded it is a `DynamicLayer`: a graph may need what it would write to.
    """

    keys: Any
    values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """All keys and values, [B, G, S, d], with the new ones at their end."""
        keys, values = self.keys, self.values
        if not (_can_grow(keys, key_states) and _can_grow(values, value_states)):
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = _grown(keys, key_states), _grown(values, value_states)
        return self.keys, self.values

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: without room."""
        return {name: _without_room(value) for name, value in vars(self).items()}


@dataclass
class _Room:
    """A tensor with places to spare, and how many are taken."""

    whole: Tensor
    taken: int


def _grown(past: Tensor, new: Tensor) -> Tensor:
    """`past` and what is `new`, one behind the other: a view, in place if it can be."""
    before = past.shape[2]
    end = before + new.shape[2]
    room: _Room | None = getattr(past, ROOM, None)
    if room is None or room.taken != before or not _has_places(room.whole, end):
        B, G, _, d = past.shape
        room = _Room(past.new_empty(B, G, end + max(LEAST_SPARE, end // SPARE), d), before)
        room.whole[:, :, :before] = past
    room.taken = end
    room.whole[:, :, before:end] = new
    given = room.whole[:, :, :end]
    setattr(given, ROOM, room)
    return given


def _can_grow(past: Tensor | None, new: Tensor) -> bool:
    """Whether there is something to grow by what is `new`, and no graph that needs it as it was."""
    if past is None or not past.numel() or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    B, G, _, d = past.shape
    is_alike = (past.dtype, past.device) == (new.dtype, new.device)
    return is_alike and (B, G, d) == (*new.shape[:2], new.shape[3])


def _has_places(whole: Tensor, end: int) -> bool:
    """Whether so many can be written: inference mode seals what it makes for all others."""
    is_sealed = whole.is_inference() and not torch.is_inference_mode_enabled()
    return end <= whole.shape[2] and not is_sealed


def _without_room(value: object) -> object:
    if isinstance(value, Tensor) and hasattr(value, ROOM):
        return value.clone(memory_format=torch.contiguous_format)
    return value


def give_room(*given: object) -> None:
    """Have the layers of a cache grow in place, as far as they are plain `DynamicLayer`s.

    They stay the objects that they are. Whatever else is given is left alone, and so is a cache
    that moves its layers between devices.
    """
    for cache in given:
        if isinstance(cache, DynamicCache) and not cache.offloading:
            for layer in cache.layers:
                if type(layer) is DynamicLayer:
                    layer.__class__ = GrowingLayer
