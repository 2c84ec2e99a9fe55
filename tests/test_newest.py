"""The newest token of many rows: every way gives what the formula says, and reads what it must."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_meta import Shape, Transformer
from pyro_meta.attention import Full, Mechanism, Window, newest
from pyro_meta.attention.newest import attend_newest, is_softmax
from pyro_meta.network.transformer import chosen_by_all


def by_formula(
    chosen: list[Mechanism], q: Tensor, k: Tensor, v: Tensor, rows: list[int], ends: list[int]
) -> Tensor:
    """Row by row and key by key."""
    out = []
    for mechanism, row, end in zip(chosen, rows, ends, strict=True):
        seen = torch.arange(end)
        if isinstance(mechanism, Window):
            seen = seen[(seen >= end - mechanism.window) | (seen < mechanism.sinks)]
        group = q.shape[1] // k.shape[1]
        keys, values = (x[row, :, seen].repeat_interleave(group, 0) for x in (k, v))
        scores = (q[row] * keys).sum(-1) / q.shape[-1] ** 0.5  # [H, keys]
        out.append(scores.softmax(-1)[:, None].matmul(values)[:, 0])
    return torch.stack(out)


@pytest.mark.parametrize("call", [1, 1 << 16, 1 << 30])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_way_is_the_formula(call: int, data: Any) -> None:
    """Where a call costs nothing, something, and more than any number that is read.

    What is behind the end of a row is large, and what belongs to no row that is asked is poisoned.
    """
    R, T = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 40))
    H, G = data.draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
    sinks = data.draw(st.sampled_from([0, 1, 3, 60]))
    kinds: list[Mechanism] = [Full(4, 5), Window(4, data.draw(st.integers(1, 9)), sinks)]
    if data.draw(st.booleans()):
        kinds.append(Window(4, 7))
    rows = [row for row in range(R) if data.draw(st.integers(0, 3))] or [0]
    chosen = [data.draw(st.sampled_from(kinds)) for _ in rows]
    ends = [T if data.draw(st.booleans()) else data.draw(st.integers(1, T)) for _ in rows]
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    q = torch.randn(R, H, 1, 4, generator=draw, dtype=torch.float64)
    k, v = torch.randn(2, R, G, T + 3, 4, generator=draw, dtype=torch.float64)[:, :, :, :T]
    for row, end in zip(rows, ends, strict=True):
        k[row, :, end:], v[row, :, end:] = 1e3, 1e3
    for row in set(range(R)) - set(rows):
        k[row], v[row] = torch.nan, torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newest, "CALL_NUMBERS", call)
        found = attend_newest(chosen, q, k, v, rows, ends)
    expected = by_formula(chosen, q, k, v, rows, ends)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kinds", "calls"),
    [
        ("ffff", 1),  # neighbours that end alike
        ("ffww", 2),
        ("wfwf", 3),  # windows are gathered, each full run is read where it is
        ("wfww", 2),
        ("wwww", 1),
    ],
)
def test_long_texts_take_a_call_for_each_mechanism_and_place(
    kinds: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    T = 1 << 14
    q, k, v = torch.randn(4, 1, 1, 8), torch.randn(4, 1, T, 8), torch.randn(4, 1, T, 8)
    full, window = Full(8, 5), Window(8, 5, 2)
    attend_newest(
        [full if kind == "f" else window for kind in kinds], q, k, v, [0, 1, 2, 3], [T] * 4
    )
    assert len(seen) == calls
    assert sum(seen) == sum(T if kind == "f" else 7 for kind in kinds), "keys that are met"


def test_short_texts_take_one_call_whatever_they_chose_and_wherever_they_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = counted(monkeypatch)
    q, k, v = torch.randn(4, 1, 1, 8), torch.randn(4, 1, 90, 8), torch.randn(4, 1, 90, 8)
    full, window = Full(8, 5), Window(8, 5, 2)
    attend_newest([full, window, full, window], q, k, v, [0, 1, 2, 3], [90, 80, 3, 90])
    assert seen == [4 * 90]


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["full", "window", "linear"])
@pytest.mark.parametrize("groups", [1, 2])
def test_texts_of_different_lengths_cost_no_more_operations_than_one_more_text(
    name: str, groups: int
) -> None:
    """No loop over rows: a decoded token of nine texts takes as many as that of three."""

    def operations(rows: int) -> int:
        shape = Shape(
            vocabulary=9, width=16, layers=1, heads=4, kv_heads=2, window=5, groups=groups
        )
        network = Transformer(shape, ("full", "window", "linear"))
        route = chosen_by_all(network, name)
        cache = network.new_cache(rows, keeps_features=False)
        lengths = [7 + row % 3 for row in range(rows)]
        network.states(torch.zeros(rows, 9, dtype=torch.long), route, cache, lengths)
        one = torch.zeros(rows, 1, dtype=torch.long)
        network.states(one, route, cache)  # the state of `linear` is formed
        with Operations() as counting:
            network.states(one, route, cache)
        return counting.count

    assert operations(9) == operations(3)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keys that the rows of each call of attention meet."""
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def noting(q: Tensor, k: Tensor, *more: Any, **options: Any) -> Tensor:
        seen.append(k.shape[0] * k.shape[2])
        return attend(q, k, *more, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    return seen


def test_a_subclass_is_another_mechanism() -> None:
    class Own(Full):
        pass

    assert is_softmax(Full(4, 5)) and is_softmax(Window(4, 5)) and not is_softmax(Own(4, 5))
