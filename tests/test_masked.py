"""Softmax mechanisms in one masked call, and which way hard routes are run.

The slow truths are attention with a mask made by comparing every pair of positions, and the one-hot
mixture of all mechanisms (`test_dispatch.dense`).
"""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import rms_ratio
from test_dispatch import Case, assert_same, dense, refuse
from torch import Tensor

from pyro_meta.attention import NO_TOKEN, Full, Inputs, Linear, Window, backend, ways
from pyro_meta.attention.mixing import mixed_attention
from pyro_meta.attention.ops import gathered, masked
from pyro_meta.attention.ops.masked import masked_attention, met_pairs, row_blocks
from pyro_meta.attention.profile import DEFAULT, Profile, profiled
from pyro_meta.network.route import as_weights

DENSE = Profile(1e9, 1e9, masked_cost=1e9, masked_cost_with_gradients=1e9)
GATHERED = replace(DENSE, gathered_cost=1e-9, gathered_cost_with_gradients=1e-9, sequence_macs=1e-9)
MASKED = replace(DENSE, masked_cost=1e-9, masked_cost_with_gradients=1e-9, mask_macs=1e-9)


def slow(
    q: Tensor, k: Tensor, v: Tensor, kind: Tensor, reaches: list[int], sinks: list[int]
) -> Tensor:
    """Every pair of positions compared, and softmax by its definition."""
    H, T, d = q.shape[1:]
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    t, s = torch.arange(T)[:, None], torch.arange(T)
    reach, sink = (torch.tensor(x)[kind][..., None] for x in (reaches, sinks))  # [B, T, 1]
    is_seen = (s <= t) & ((s > t - reach) | (s < sink))
    scores = (q @ k.transpose(-1, -2) / d**0.5).masked_fill(~is_seen[:, None], -torch.inf)
    return scores.softmax(-1) @ v


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_row_has_its_own_reach(data: Any) -> None:
    """In value and gradient, whatever the blocks of rows."""
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70))
    H, G = data.draw(st.sampled_from([(1, 1), (4, 2), (3, 1)]))
    reaches = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=4))
    edges = st.sampled_from([0, 1, 4, 33, 90])
    sinks = [data.draw(edges) for _ in reaches]
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    q, k, v, weight = (
        torch.randn(B, heads, T, 4, generator=draw, dtype=torch.float64).requires_grad_()
        for heads in (H, G, G, H)
    )
    kind = torch.randint(len(reaches), (B, T), generator=draw)
    blocks = data.draw(st.sampled_from([(8, 1 << 20), (3, 50), (256, 1 << 22)]))
    names = ("ROWS", "MASK_NUMBERS")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(names, blocks, strict=True):
            patch.setattr(masked, name, value)
        ours = masked_attention(q, k, v, kind, reaches, sinks)
    theirs = slow(q, k, v, kind, reaches, sinks)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, theirs)]
    assert_same([ours, *gradients[0]], [theirs, *gradients[1]])


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_precision(dtype: torch.dtype, most: float) -> None:
    """Blocks of keys that a row does not see at all leave nothing behind."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 1500, 16, dtype=torch.float64).to(dtype)
    kind = (torch.arange(1500) % 2)[None]
    ours = masked_attention(q, k, v, kind, [1500, 3], [0, 2])
    assert ours.dtype == dtype
    truth = slow(*(x.double() for x in (q, k, v)), kind, [1500, 3], [0, 2])
    assert rms_ratio(ours.double(), truth) < most


@pytest.mark.parametrize(
    ("sequences", "length"), [(1, 1), (1, 500), (1, 40000), (7, 3000), (64, 4096)]
)
def test_a_mask_stays_small(sequences: int, length: int) -> None:
    blocks = row_blocks(sequences, length)
    rows = [row for begin, end in blocks for row in range(begin, end)]
    assert rows == list(range(length))
    largest = max(sequences * (end - begin) * end for begin, end in blocks)
    spare = sequences * masked.SPARE_ROWS * length
    assert 4 * largest <= max(4 * masked.MASK_NUMBERS, 4 * spare)
    if length < 1000:  # each pair counted
        met = sum(1 for begin, end in blocks for _ in range(begin, end) for _ in range(end))
        assert met_pairs(sequences, length) == sequences * met


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_mask_outlives_its_call(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass makes it again, with the same numbers."""
    made: list[weakref.ref[Tensor]] = []

    def noting(*args: Any) -> Tensor:
        mask = row_mask(*args)
        made.append(weakref.ref(mask))
        return mask

    row_mask = masked.row_mask
    monkeypatch.setattr(masked, "row_mask", noting)
    torch.manual_seed(0)
    read = [x.requires_grad_() for x in torch.randn(3, 1, 2, 300, 8)]
    kind = (torch.arange(300) % 2)[None]
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        out = masked_attention(*read, kind, [300, 5], [0, 1])
    assert len(made) == 2 and not any(one() is not None for one in made)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), read)
    assert len(made) == 4
    truth = slow(*read, kind, [300, 5], [0, 1])
    expected = torch.autograd.grad((truth * weight).sum(), read)
    for one, other in zip(found, expected, strict=True):
        assert rms_ratio(one, other) < (1e-5 if dtype is None else 2e-2)


@pytest.mark.parametrize("traced", [False, True])
def test_the_profile_chooses_between_three_ways(
    traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case([90, 50], shares=(0.3, 0.4, 0.2, 0.1), sinks=3)
    expected = case.results("dense")
    a_mask, serving = (ways, "masked_attention"), (gathered, "softmax_attention_of")
    on_all = [(Full, "forward"), (Window, "forward")]
    for by, refused in (
        (DENSE, [a_mask, serving]),
        (GATHERED, [a_mask, *on_all]),
        (MASKED, [serving, *on_all]),
    ):
        with profiled(by), monkeypatch.context() as patch:
            for owner, name in refused:
                patch.setattr(owner, name, refuse)
            if traced:
                assert_same(case.results("auto"), expected)
            else:
                with torch.no_grad():
                    assert_same([case.run("auto")], expected[:1])


def test_a_mask_costs_more_where_few_heads_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4 pairs of a mask for each MAC of one head it pays with many heads alone."""
    profile = replace(DENSE, masked_cost=0.5, mask_macs=16.0, window_cost=1.0, placed_macs=0.0)
    calls: list[int] = []

    def noting(*args: Any) -> Tensor:
        calls.append(1)
        return masked_attention(*args)

    monkeypatch.setattr(ways, "masked_attention", noting)
    for heads, times in ((1, 0), (8, 1)):
        calls.clear()
        with profiled(profile), torch.no_grad():
            case = Case([60], heads=(heads, heads), shares=(1, 1))
            assert_same([case.run("auto")], [case.run("dense")])
        assert len(calls) == times


def test_one_softmax_mechanism_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "masked_attention", refuse)
    case = Case([60, 44], shares=(1, 0, 1))
    with profiled(MASKED):
        assert_same(case.results("auto"), case.results("dense"))


@pytest.mark.parametrize("way", ["auto", "gather", "mask"])
def test_a_sequence_of_one_mechanism_needs_no_mask_and_no_gathering(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a group of heads, which is a sequence here; others of the batch have their way."""
    case = Case([50] * 5, heads=(2, 1), shares=(1, 1, 1, 1), sinks=2)
    for row, index in enumerate((0, 1, 0, 2)):
        case.choice[row] = index
    expected = case.results("dense")
    assert_same(case.results(way), expected)
    case.choice[4] = 3
    expected = case.results("dense")
    monkeypatch.setattr(ways, "masked_attention", refuse)
    for kind in (Full, Window, Linear):
        monkeypatch.setattr(kind, "serve", refuse)
    seen: list[int] = []
    full = Full.forward

    def forward(self: Full, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(len(q))
        return full(self, q, k, v)

    monkeypatch.setattr(Full, "forward", forward)
    assert_same(case.results(way), expected)
    assert seen == [2]


@pytest.mark.parametrize("way", ["auto", "gather", "mask"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_groups_with_gains_of_their_own(way: str, kv_heads: int) -> None:
    """Equal to one-hot weights, in value and gradient; a group may be of one mechanism."""
    draw = torch.Generator().manual_seed(0)
    case = Case([45, 45, 45], heads=(4, kv_heads), width=4, sinks=2)
    choice = torch.randint(4, (3, 45, 2), generator=draw)
    choice[0, :, 1], choice[1, :, 0], choice[2, :, 1] = 1, 0, 2
    wanted = [*(x for x in case.inputs if x is not None), case.gain]
    found = []
    for route in (choice, as_weights(choice, 4).double()):
        with backend(way):
            out = mixed_attention(case.mechanisms, case.gain, route, case.inputs, 2)
        found.append([out, *torch.autograd.grad((out * case.weight).sum(), wanted)])
    assert_same(*found)


@pytest.mark.parametrize("way", ["auto", "mask"])
def test_padding_gets_zeros_in_a_masked_call(way: str) -> None:
    case = Case([60, 0, 7], shares=(1, 1, 0))
    with profiled(MASKED):
        assert_same(case.results(way), case.results("dense"))
        out = case.run(way)
    assert (out[1] == 0).all() and (out[2, 7:] == 0).all()
    with backend("mask"):
        nobody = torch.full_like(case.choice, NO_TOKEN)
        assert (case.run("mask", choice=nobody) == 0).all()


def test_linear_attention_reads_no_more_than_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No state where nobody chose it: not of other sequences, nor behind the last query."""
    case = Case([200, 200, 200], heads=(1, 1), shares=(1, 1))
    case.choice[1, [3, 70]] = 2
    expected = case.results("dense")
    shapes: list[torch.Size] = []
    states = gathered.linear_states

    def noting(k: Tensor, v: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        shapes.append(k.shape)
        return states(k, v, chunk)

    monkeypatch.setattr(gathered, "linear_states", noting)
    for way in ("gather", "mask"):
        assert_same(case.results(way), expected)
        assert shapes == [torch.Size([1, 1, 71, 4])]
        shapes.clear()
    case.choice[1, [3, 70]] = 0
    expected = case.results("dense")
    monkeypatch.setattr(Linear, "forward", refuse)
    for way in ("auto", "mask"):
        assert_same(case.results(way), expected)
    assert not shapes


def test_bfloat16_with_autocast_and_default_profile() -> None:
    """As training runs it, at a length where a masked call is taken."""
    single = Case([520], heads=(4, 4), width=16, window=20, shares=(1, 1), dtype=torch.float32)
    calls = 0

    def noting(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return masked_attention(*args)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(ways, "masked_attention", noting)
        with profiled(DEFAULT):
            ours = single.results("auto")
        theirs = single.results("dense")
    assert calls == 1
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert rms_ratio(one.double(), other.double()) < 2e-2


def test_values_are_as_of_inputs_that_are_not_contiguous() -> None:
    case = Case([70], heads=(4, 2), shares=(1, 1))
    swapped = Inputs(
        *(
            None if x is None else x.transpose(1, 2).contiguous().transpose(1, 2)
            for x in case.inputs
        )
    )
    with torch.no_grad():
        found = case.run("mask", swapped)
        assert_same([found], [dense(case.mechanisms, case.gain, case.choice, case.inputs)])
