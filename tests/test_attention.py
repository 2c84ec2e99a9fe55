"""Mechanisms are exact, causal and, but for full attention, linear in T."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import linear_attention as slow_linear
from reference import masked_attention, seen_by_window
from reference import mean_attention as slow_mean
from reference import softmax_attention as slow_softmax
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_meta.attention import (
    Mechanism,
    Sizes,
    Window,
    build_mechanisms,
    find_mechanism,
    full_attention,
    linear_attention,
    mean_attention,
    window_attention,
)
from pyro_meta.attention.ops import dense
from pyro_meta.attention.ops.dense import last_row_of_attention
from pyro_meta.attention.rotary import rotate, rotation
from pyro_meta.errors import UsageError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
PAIRS: dict[str, tuple[Attention, Attention]] = {
    "full": (full_attention, slow_softmax),
    "window-1": (lambda *x: window_attention(*x, 1), lambda *x: slow_softmax(*x, 1)),
    "window-7": (lambda *x: window_attention(*x, 7), lambda *x: slow_softmax(*x, 7)),
    "window-100": (lambda *x: window_attention(*x, 100), lambda *x: slow_softmax(*x, 100)),
    **{
        f"window-{W}-sinks-{S}": (
            lambda *x, W=W, S=S: window_attention(*x, W, S),
            lambda *x, W=W, S=S: slow_softmax(*x, W, S),
        )
        for W, S in [(1, 1), (7, 4), (7, 70), (100, 4), (1, 2000)]
    },
    "linear": (linear_attention, slow_linear),
    "mean": (mean_attention, slow_mean),
}
LENGTHS = [1, 63, 100, 1000]


def qkv(length: int, dtype: torch.dtype = torch.float64, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (batch, 2, length, 8)
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]


def gradients(attention: Attention, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients of a random projection of it."""
    out = attention(*inputs)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def rms_ratio(a: Tensor, b: Tensor) -> float:
    difference = (a - b).detach().pow(2).mean().sqrt()
    scale = b.detach().pow(2).mean().sqrt()
    return float(difference / scale.clamp(min=0.1))  # some gradients are exactly zero


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_slow_reference_in_value_and_gradient(name: str, length: int) -> None:
    fast, slow = PAIRS[name]
    for ours, truth in zip(gradients(fast, qkv(length)), gradients(slow, qkv(length)), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_float32_stays_close_to_float64(name: str) -> None:
    fast, slow = PAIRS[name]
    exact = gradients(slow, qkv(100))
    single = gradients(fast, [x.detach().float().requires_grad_() for x in qkv(100)])
    for ours, truth in zip(single, exact, strict=True):
        assert rms_ratio(ours.double(), truth) < 1e-5


@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_keeps_dtype_and_value(name: str) -> None:
    fast, slow = PAIRS[name]
    inputs = [x.detach() for x in qkv(100)]
    out = fast(*(x.bfloat16() for x in inputs))
    assert out.dtype == torch.bfloat16
    assert rms_ratio(out.double(), slow(*(x.bfloat16().double() for x in inputs))) < 6e-3


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(2, 150), data=st.data())
def test_the_past_does_not_depend_on_the_future(name: str, length: int, data: Any) -> None:
    fast, _ = PAIRS[name]
    end = data.draw(st.integers(1, length - 1))
    inputs = [x.detach() for x in qkv(length, batch=1)]
    whole = fast(*inputs)
    cut = fast(*(x[:, :, :end] for x in inputs))
    torch.testing.assert_close(cut, whole[:, :, :end], rtol=1e-10, atol=1e-10)
    changed = [torch.cat([x[:, :, :end], 5 * torch.randn_like(x[:, :, end:])], 2) for x in inputs]
    torch.testing.assert_close(
        fast(*changed)[:, :, :end], whole[:, :, :end], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_reach_no_future_input(name: str) -> None:
    fast, _ = PAIRS[name]
    inputs = qkv(90)
    grads = torch.autograd.grad(fast(*inputs)[:, :, :40].sum(), inputs)
    for grad in grads:
        assert (grad[:, :, 40:] == 0).all()


class _Elements(TorchDispatchMode):
    """Counts the elements of every tensor that is produced."""

    def __init__(self) -> None:
        super().__init__()
        self.produced = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        parts = out if isinstance(out, tuple | list) else [out]
        self.produced += sum(part.numel() for part in parts if isinstance(part, Tensor))
        return out


@pytest.mark.parametrize("name", ["window-7", "window-100", "window-7-sinks-4", "linear"])
def test_work_and_memory_grow_linearly(name: str) -> None:
    """All tensors of a forward and backward pass together: four times the tokens, four times."""
    fast, _ = PAIRS[name]

    def produced(length: int) -> int:
        inputs = qkv(length)
        with _Elements() as elements:
            fast(*inputs).sum().backward()
        return elements.produced

    assert produced(4096) < 4.2 * produced(1024)


def test_rotary_scores_depend_on_distances_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(position_q: int, position_k: int) -> Tensor:
        at = [rotation(torch.tensor([position]), 8) for position in (position_q, position_k)]
        return (rotate(q, *at[0]) * rotate(k, *at[1])).sum()

    torch.testing.assert_close(score(9, 4), score(100_009, 100_004), rtol=1e-9, atol=1e-9)
    assert abs(score(9, 4) - score(9, 5)) > 1e-4


@pytest.mark.parametrize("d", [2, 4, 6, 8, 16])
def test_half_of_the_channels_do_not_turn(d: int) -> None:
    x = torch.randn(5, d)
    turned = rotate(x, *rotation(torch.arange(5) * 100, d))
    still = 2 * max(1, d // 4)
    assert torch.equal(turned[:, still:], x[:, still:])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_linear_attention_survives_queries_that_find_nothing() -> None:
    q, k, v = torch.randn(3, 1, 1, 70, 8)
    out = linear_attention(torch.full_like(q, -200.0), k, v)
    assert torch.isfinite(out).all()
    small = [x.double() for x in (q - 16, k, v)]
    exact = slow_linear(*small)
    torch.testing.assert_close(linear_attention(q - 16, k, v).double(), exact, rtol=1e-4, atol=1e-5)


class Mean(Mechanism):
    """A user's own mechanism: the mean of all values so far."""

    nominal_cost = 0.01

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1, device=v.device)[:, None]

    def macs(self, position: Tensor) -> Tensor:
        return torch.zeros_like(position)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 200),
    window=st.one_of(st.integers(1, 9), st.integers(60, 220)),
    sinks=st.one_of(st.integers(0, 9), st.integers(50, 220)),
)
def test_a_window_with_sinks_sees_every_key_once(length: int, window: int, sinks: int) -> None:
    """In value and gradient; and it declares as many keys as it sees."""
    is_seen = seen_by_window(length, window, sinks)

    def slow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return masked_attention(q, k, v, is_seen)

    mechanism = Window(8, window, sinks)
    pairs = zip(gradients(mechanism, qkv(length)), gradients(slow, qkv(length)), strict=True)
    for ours, truth in pairs:
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    macs = mechanism.macs(torch.arange(length, dtype=torch.float64))
    assert macs.tolist() == (2 * 8 * is_seen.sum(1)).tolist()


@pytest.mark.parametrize(("window", "sinks"), [(7, 0), (7, 4), (100, 4), (300, 0)])
@pytest.mark.parametrize("length", [1, 63, 200])
@pytest.mark.parametrize("width", [2, 16])
def test_window_attention_of_grouped_queries(
    length: int, window: int, sinks: int, width: int
) -> None:
    """Six query heads on two key-value heads, in value and in gradient.

    Narrow heads have their keys copied, and wide ones the mask.
    """
    generator = torch.Generator().manual_seed(length)
    q, k, v = (
        torch.randn(2, H, length, width, dtype=torch.float64, generator=generator).requires_grad_()
        for H in (6, 2, 2)
    )

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return slow_softmax(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), window, sinks)

    found = gradients(lambda *x: window_attention(*x, window, sinks), [q, k, v])
    for ours, truth in zip(found, gradients(repeated, [q, k, v]), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_without_sinks_nothing_is_computed_otherwise() -> None:
    """Bit for bit; likewise where the window holds the sinks of all queries."""
    inputs = qkv(150, torch.float32)
    plain = gradients(lambda *x: window_attention(*x, 7), inputs)
    for ours, truth in zip(gradients(Window(8, 7), inputs), plain, strict=True):
        assert torch.equal(ours, truth)
    wide = window_attention(*inputs, 150, 4)
    assert torch.equal(wide, window_attention(*inputs, 150))


class OwnWindow(Window):
    """One that was written before there were sinks."""

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)


class Inheriting(Window):
    """It has the constructor that it inherits."""


def test_who_takes_two_sizes_is_built_beside_sinks() -> None:
    own = [f"{__name__}.{name}" for name in ("Mean", "OwnWindow", "Inheriting")]
    built = build_mechanisms(["full", "chunk", "window", *own], Sizes(8, window=4))
    assert [getattr(one, "sinks", None) for one in built] == [None, None, 0, None, 0, 0]
    sizes = Sizes(8, window=4, sinks=3)
    built = build_mechanisms(["full", "chunk", "window", own[0], own[2]], sizes)
    assert [getattr(one, "sinks", None) for one in built] == [None, None, 3, None, 3]
    with pytest.raises(UsageError, match=r"OwnWindow.__init__\(\) got an unexpected .* 'sinks'"):
        build_mechanisms([own[1]], sizes)


def test_a_users_own_mechanism_is_found_by_import_path() -> None:
    built = build_mechanisms(["full", f"{__name__}.Mean"], Sizes(head_width=8, window=4))
    assert [mechanism.name for mechanism in built] == ["full", "mean"]


def test_macs_are_those_of_the_design() -> None:
    full, window, linear = build_mechanisms(["full", "window", "linear"], Sizes(8, window=4))
    positions = torch.tensor([0.0, 3.0, 10.0])
    assert full.macs(positions).tolist() == [16, 64, 176]
    assert window.macs(positions).tolist() == [16, 64, 64]
    assert linear.macs(positions).tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ful"], "did you mean full"),
        (["nowhere.Mean"], "cannot import .*; nowhere.py is sought in the folder that you are in"),
        ([f"{__name__}.Nobody"], "cannot import"),
        ([f"{__name__}._Elements"], "not a mechanism"),
        (["full", "full"], "given twice"),
        ([], "none given"),
    ],
)
def test_bad_mechanisms_are_refused_by_name(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_mechanisms(names, Sizes(head_width=8, window=4))


def test_a_window_below_one_and_sinks_below_none_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        find_mechanism("window")(head_width=8, window=0)
    with pytest.raises(UsageError, match="sinks: -1 given; at least 0"):
        Window(head_width=8, window=1, sinks=-1)


def test_linear_attention_of_no_sequence_is_empty() -> None:
    assert linear_attention(*torch.randn(3, 0, 2, 5, 4)).shape == (0, 2, 5, 4)


def test_linear_attention_compiles_as_one_graph() -> None:
    q, k, v = torch.randn(3, 1, 2, 20, 4)
    compiled = torch.compile(linear_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), linear_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_long_text_is_read_in_pieces_by_its_newest_token(
    dtype: torch.dtype, rows: int, groups: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many for each thread; keys are views of a cache with room behind them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(dense, "LONG", 16)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(rows, heads, length, 8, generator=generator, dtype=torch.float64).to(dtype)
        for heads, length in ((2 * groups, 1), (groups, 40), (groups, 40))
    )
    for length in (1, 15, 16, 17, 37):
        seen = [x[:, :, :length] for x in (k, v)]
        with torch.no_grad():
            found = last_row_of_attention(q, *seen)
        truth = slow_softmax(
            q.double().expand(-1, -1, length, -1),
            *(x.double().repeat_interleave(2, 1) for x in seen),
        )[:, :, -1:]
        assert found.dtype == dtype
        most = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=most)


def test_pieces_are_for_what_their_kernel_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast, types that differ, and keys whose numbers lie apart are PyTorch's own."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(dense, "LONG", 4)
    q, k, v = (torch.randn(1, 1, length, 16) for length in (1, 9, 9))
    apart = k.transpose(2, 3).contiguous().transpose(2, 3)
    with torch.no_grad():
        truth = last_row_of_attention(q, k, v)
        torch.testing.assert_close(last_row_of_attention(q, apart, v), truth)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = last_row_of_attention(q, k, v.bfloat16())
            same = last_row_of_attention(q, k, v)
    assert mixed.dtype == same.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), truth, rtol=0, atol=3e-2)


def test_a_gradient_asks_for_no_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(dense, "LONG", 4)
    q, k, v = (torch.randn(1, 1, length, 4, requires_grad=True) for length in (1, 9, 9))
    found = torch.autograd.grad(last_row_of_attention(q, k, v).sum(), (q, k, v))
    truth = torch.autograd.grad(
        slow_softmax(q.expand(-1, -1, 9, -1), k, v)[:, :, -1].sum(), (q, k, v)
    )
    for ours, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, expected)
