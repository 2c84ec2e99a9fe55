"""The newest token of many rows, each by the softmax mechanism that it chose, in few calls.

A row is a text, or a group of heads of one. What a token sees are its last keys and the first of
its text, so that rows differ in how far they reach, and in where they end. Three ways:

* neighbours that chose alike and end alike are one call on a view of the cache;
* windows that stand apart are gathered, each with the few keys that it sees, and are one call;
* on short texts all are one call with a mask, in which keys are met in vain, but no key is copied.

Which is the fastest is judged by the numbers that are read, and by what a call takes.

Shapes: R rows, N of them asked, H query heads and G key-value heads of a row, d head width, T keys
of the longest row, M keys that a window sees at most.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention.mechanisms import Full, Mechanism, Window
from pyro_meta.attention.ops.dense import last_row_of_attention

CALL_NUMBERS = 1 << 16  # numbers of keys and values that are read while a call begins
CALL_NUMBERS_CUDA = 1 << 22  # both are rough estimates, not measured
COPIED = 3  # a number that is gathered is read, written and read again


def is_softmax(mechanism: Mechanism) -> bool:
    """Whether `mechanism` is one of those that `attend_newest` knows; a subclass is another."""
    return type(mechanism) in (Full, Window)


class _Run(NamedTuple):
    """Rows that follow each other, chose alike and end alike."""

    mechanism: Mechanism
    begin: int
    stop: int
    end: int


def attend_newest(
    chosen: Sequence[Mechanism],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Sequence[int],
    ends: Sequence[int],
) -> Tensor:
    """What the newest token of each of N rows gets, [N, H, d].

    Parameters
    ----------
    chosen
        The mechanism of each of them, `Full` or `Window`.
    q
        [R, H, 1, d].
    k, v
        [R, G, T, d], views of a cache; what stands behind a row's end is finite.
    rows
        Which they are, ascending.
    ends
        How many keys each of them has, its own included.
    """
    runs = _runs(chosen, rows, ends)
    if len(runs) == 1:
        return _on_view(runs[0], q, k, v)
    window = _window_apart(runs)
    apart = [run for run in runs if run.mechanism is not window]
    gathered = [number for number, one in enumerate(chosen) if one is window]
    if _numbers_together(rows, q, k) < _numbers_apart(apart, window, len(gathered), q, k):
        return _masked(chosen, q, k, v, rows, ends)
    parts = [_on_view(run, q, k, v) for run in apart]
    if window is None:  # they follow each other
        return torch.cat(parts)
    own, own_ends = ([x[number] for number in gathered] for x in (rows, ends))
    parts.append(_gathered(window, q, k, v, own, own_ends))
    if len(parts) == 1:
        return parts[0]
    order = [number for number, one in enumerate(chosen) if one is not window] + gathered
    return torch.cat(parts)[sorted(range(len(order)), key=order.__getitem__)]


def _runs(chosen: Sequence[Mechanism], rows: Sequence[int], ends: Sequence[int]) -> list[_Run]:
    runs: list[_Run] = []
    for mechanism, row, end in zip(chosen, rows, ends, strict=True):
        last = runs[-1] if runs else None
        if last and (last.mechanism, last.stop, last.end) == (mechanism, row, end):
            runs[-1] = last._replace(stop=row + 1)
        else:
            runs.append(_Run(mechanism, row, row + 1, end))
    return runs


def _window_apart(runs: Sequence[_Run]) -> Window | None:
    """The window that rows in several places chose."""
    windows = [run.mechanism for run in runs if isinstance(run.mechanism, Window)]
    return windows[0] if len(windows) > 1 and windows.count(windows[0]) == len(windows) else None


def _call(q: Tensor) -> int:
    return CALL_NUMBERS_CUDA if q.is_cuda else CALL_NUMBERS


def _numbers_together(rows: Sequence[int], q: Tensor, k: Tensor) -> float:
    """What one masked call reads, with what it takes to begin it."""
    _, G, T, d = k.shape
    return (rows[-1] + 1 - rows[0]) * T * 2 * G * d + 2 * _call(q)  # the mask is as much as a call


def _numbers_apart(
    runs: Sequence[_Run], window: Window | None, gathered: int, q: Tensor, k: Tensor
) -> float:
    """What calls on views read, and so many gathered rows of a window."""
    _, G, T, d = k.shape
    keys = sum((run.stop - run.begin) * _most(run.mechanism, run.end) for run in runs)
    calls = len(runs)
    if window is not None:
        keys += COPIED * gathered * _most(window, T)
        calls += 3  # to gather keys, and values, and to attend
    return keys * 2 * G * d + calls * _call(q)


def _most(mechanism: Mechanism, end: int) -> int:
    """How many keys a token sees at most, of `end`."""
    if isinstance(mechanism, Window):
        return min(end, mechanism.window + mechanism.sinks)
    return end


def _on_view(run: _Run, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of a run, [n, H, d]."""
    mechanism, begin, stop, end = run
    k, v = k[begin:stop, :, :end], v[begin:stop, :, :end]
    return mechanism.decode(q[begin:stop], k, v)[:, :, 0]


def _gathered(
    window: Window, q: Tensor, k: Tensor, v: Tensor, rows: Sequence[int], ends: Sequence[int]
) -> Tensor:
    """Rows of a window, wherever they stand, [N, H, d]: copies of the M keys that each sees."""
    most = _most(window, max(ends))
    row = torch.tensor(rows, device=k.device)
    key = torch.arange(most, device=k.device)
    end = torch.tensor(ends, device=k.device)[:, None]
    place = key + (end - most).clamp(min=0)  # [N, M]
    if window.sinks:
        place = torch.where(key < window.sinks, key, place)
    seen = place < end if min(ends) < most else None
    head = torch.arange(k.shape[1], device=k.device)[:, None]
    where = row[:, None, None], head, place[:, None]
    return last_row_of_attention(q[row], k[where], v[where], seen)[:, :, 0]


def _masked(
    chosen: Sequence[Mechanism],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Sequence[int],
    ends: Sequence[int],
) -> Tensor:
    """All rows in one call, [N, H, d]; those in between are met and left out."""
    begin, stop, T = rows[0], rows[-1] + 1, k.shape[2]
    facts = [(T, 0, 0)] * (stop - begin)  # end, first of the last keys, sinks
    for mechanism, row, end in zip(chosen, rows, ends, strict=True):
        if isinstance(mechanism, Window):
            facts[row - begin] = (end, end - mechanism.window, mechanism.sinks)
        else:
            facts[row - begin] = (end, 0, 0)
    stops, first, sinks = torch.tensor(facts, device=k.device)[..., None].unbind(1)  # [n, 1] each
    key = torch.arange(T, device=k.device)
    seen = key >= first
    if any(fact[2] for fact in facts):
        seen = seen | (key < sinks)
    if min(ends) < T:
        seen = seen & (key < stops)
    out = last_row_of_attention(q[begin:stop], k[begin:stop], v[begin:stop], seen)[:, :, 0]
    return out if len(out) == len(rows) else out[[row - begin for row in rows]]
