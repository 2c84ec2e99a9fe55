"""A cache of transformers that grows in place gives what one gives that is copied every time."""

import copy
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrained_models import MODELS, converted, each_model, text
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pyro_meta.pretrained.growing import LEAST_SPARE, GrowingLayer, give_room

Pair = tuple[DynamicLayer, GrowingLayer]
STEPS = (
    "one",
    "one",
    "one",
    "many",
    "crop",
    "reorder",
    "repeat",
    "select",
    "copy",
    "reset",
    "deep",
)


def drawn(layer: DynamicLayer, count: int, seed: int) -> list[Tensor]:
    rows = layer.keys.shape[0] if layer.get_seq_length() else 2
    draw = torch.Generator().manual_seed(seed)
    return list(torch.randn(2, rows, 3, count, 4, generator=draw))


def step(kind: str, pairs: list[Pair], at: int, seed: int) -> None:
    """Do the same to both of a pair."""
    pair = pairs[at]
    plain, _ = pair
    count = {"one": 1, "many": 1 + 40 * (seed % 5)}.get(kind)
    if count is not None:
        new = drawn(plain, count, seed)
        for layer in pair:
            layer.update(*new)
    elif kind in ("copy", "deep"):
        made = copy.copy if kind == "copy" else copy.deepcopy
        pairs.append((made(pair[0]), made(pair[1])))
    elif kind == "reset":
        for layer in pair:
            layer.reset()
    elif plain.get_seq_length() > 3:
        rows = plain.keys.shape[0]
        index = torch.arange(rows).flip(0)
        for layer in pair:
            if kind == "crop":
                layer.crop(-(1 + seed % 3))
            elif kind == "reorder":
                layer.reorder_cache(index)
            elif kind == "repeat" and rows < 8:
                layer.batch_repeat_interleave(2)
            elif kind == "select":
                layer.batch_select_indices(index[:1])


@settings(max_examples=60)
@given(st.data())
def test_it_holds_the_same_whatever_is_done_to_it(data: Any) -> None:
    """Copies included, of which each goes its own way; and what was given stays as it was."""
    pairs: list[Pair] = [(DynamicLayer(), GrowingLayer())]
    given_before: list[tuple[Tensor, Tensor]] = []
    for seed in range(data.draw(st.integers(1, 25))):
        at = data.draw(st.integers(0, len(pairs) - 1))
        inference = data.draw(st.booleans())
        with torch.inference_mode() if inference else torch.no_grad():
            step(data.draw(st.sampled_from(STEPS)), pairs, at, seed)
        for plain, growing in pairs:
            assert plain.get_seq_length() == growing.get_seq_length()
            if plain.get_seq_length():
                assert torch.equal(plain.keys, growing.keys)
                assert torch.equal(plain.values, growing.values)
                given_before.append((growing.keys, growing.keys.clone()))
    assert all(torch.equal(view, then) for view, then in given_before)


def test_a_token_is_written_where_there_is_room() -> None:
    layer = GrowingLayer()
    with torch.no_grad():
        layer.update(*torch.randn(2, 1, 2, 100, 4))
        places = set()
        for _ in range(1 + LEAST_SPARE):
            layer.update(*torch.randn(2, 1, 2, 1, 4))
            places.add(layer.keys.data_ptr())
        assert len(places) == 1
        layer.update(*torch.randn(2, 1, 2, 1, 4))
        assert layer.keys.data_ptr() not in places


def test_a_graph_keeps_what_it_needs() -> None:
    """Also where keys need no gradient, and what looks at them does."""
    layer = GrowingLayer()
    with torch.no_grad():
        for _ in range(3):
            layer.update(*torch.randn(2, 1, 1, 2, 4))
    weight = torch.randn(1, 1, 1, 4, requires_grad=True)
    total, expected = torch.zeros(()), torch.zeros(4)
    for _ in range(3):
        keys, _ = layer.update(*torch.randn(2, 1, 1, 1, 4))
        total = total + (keys * weight).sum()
        expected = expected + keys.sum((0, 1, 2))
    (found,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close(found.flatten(), expected)


def test_another_batch_is_refused_and_changes_nothing() -> None:
    layer = GrowingLayer()
    with torch.no_grad():
        for _ in range(2):
            layer.update(*torch.randn(2, 2, 1, 3, 4))
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            layer.update(*torch.randn(2, 1, 1, 1, 4))
    assert layer.get_seq_length() == layer.values.shape[2] == 6


def test_room_goes_with_the_tensor_that_has_it() -> None:
    """Choosing beams, resetting and copying leave nothing behind."""
    layer = GrowingLayer()
    with torch.no_grad():
        for _ in range(2):
            layer.update(*torch.randn(2, 2, 1, 3, 4))
        room = weakref.ref(layer.keys.pyro_meta_room)
        copied = copy.copy(layer)
        assert copied.keys.untyped_storage().nbytes() == 4 * layer.keys.numel()
        layer.reorder_cache(torch.tensor([1, 0]))
    assert room() is None


def test_room_is_given_to_plain_layers_alone() -> None:
    class Own(DynamicLayer):
        """One of a user."""

    cache = DynamicCache()
    before = [DynamicLayer(), Own(), GrowingLayer()]
    cache.layers = list(before)
    give_room(cache)
    assert cache.layers == before
    assert [type(layer) for layer in before] == [GrowingLayer, Own, GrowingLayer]
    moved = DynamicCache()
    moved.layers, moved.offloading = [DynamicLayer()], True
    give_room(moved)
    assert type(moved.layers[0]) is DynamicLayer
    give_room(None)


@each_model
def test_a_converted_model_reads_on_in_place(name: str) -> None:
    model = converted(MODELS[name]())
    tokens = text(2, 9)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=tokens[:, :7], cache=cache, use_cache=True)
        for at in (7, 8):
            found = model(input_ids=tokens[:, at : at + 1], cache=cache, use_cache=True).logits
    assert GrowingLayer in {type(layer) for layer in cache.layers}
    whole = model(input_ids=tokens, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
