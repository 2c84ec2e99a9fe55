"""Forward and backward time and peak memory of each mechanism by length."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from pyro_meta.attention import Mechanism, Sizes, build_mechanisms
from pyro_meta.attention.clock import interleaved, medians
from pyro_meta.speed.peak_memory import added_peak_bytes, in_fresh_process

CHUNKS = ("chunk", "chunk_sliding", "chunk_sentence", "chunk_learned")
MECHANISMS = ("full", "window", "linear", *CHUNKS)
HEADS, SIZES = 4, Sizes(head_width=32, window=64, chunk=16)


def bench_mechanisms(lengths: list[int], repeats: int) -> dict[str, Any]:
    """Times by mechanism and length, growth exponents, ratios to full attention, peak memory."""
    forward: dict[int, dict[str, float]] = {}
    both: dict[int, dict[str, float]] = {}
    memory: dict[int, dict[str, int | None]] = {}
    for length in lengths:
        calls = {name: _call(name, length, backward=False) for name in MECHANISMS}
        forward[length] = medians(interleaved(dict(calls), repeats))
        calls = {name: _call(name, length, backward=True) for name in MECHANISMS}
        both[length] = medians(interleaved(dict(calls), max(3, repeats // 3)))
        memory[length] = {
            name: in_fresh_process(peak_bytes, name=name, length=length) for name in MECHANISMS
        }
    return {
        "setting": {
            "batch": 1,
            "heads": HEADS,
            **SIZES._asdict(),
        },
        "forward_seconds": forward,
        "forward_backward_seconds": both,
        "peak_memory_bytes": memory,
        "growth_exponent_forward_backward": {
            name: growth_exponent(lengths, [both[length][name] for length in lengths])
            for name in MECHANISMS
        },
        "forward_ratio_to_full": {
            length: {name: times[name] / times["full"] for name in MECHANISMS}
            for length, times in forward.items()
        },
        "macs_ratio_to_full": {length: macs_ratios(length) for length in lengths},
        "bytes_of_dense_scores": {length: dense_scores_bytes(length) for length in lengths},
        "peak_memory_share_of_dense_scores": {
            length: {
                name: None if peak is None else peak / dense_scores_bytes(length)
                for name, peak in peaks.items()
                if name in CHUNKS
            }
            for length, peaks in memory.items()
        },
    }


def growth_exponent(lengths: list[int], seconds: list[float]) -> float:
    """Slope of log time over log length, between the first and the last length."""
    return float(np.log(seconds[-1] / seconds[0]) / np.log(lengths[-1] / lengths[0]))


def macs_ratios(length: int) -> dict[str, float]:
    """Declared MACs of all queries of a text over those of full attention."""
    position = torch.arange(length, dtype=torch.float64)
    macs = {name: float(_built(name).macs(position).sum()) for name in MECHANISMS}
    return {name: own / macs["full"] for name, own in macs.items()}


def dense_scores_bytes(length: int) -> int:
    """Bytes of one score for each pair of tokens and head: the least that keeping scores takes."""
    return 4 * HEADS * length**2


def peak_bytes(name: str, length: int) -> int | None:
    """Bytes that a forward and backward pass adds to this process at its peak."""
    _call(name, 64, backward=True)()  # libraries load now, not in the measurement
    return added_peak_bytes(_call(name, length, backward=True))


def _built(name: str) -> Mechanism:
    return cast(Mechanism, build_mechanisms([name], SIZES)[0])


def _call(name: str, length: int, backward: bool) -> Callable[[], None]:
    mechanism = _built(name)
    q, k, v = torch.randn(3, 1, HEADS, length, SIZES.head_width)
    is_separator = torch.rand(1, 1, length, 1) < 1 / SIZES.chunk
    more = [is_separator] if mechanism.reads_separators else []
    if not backward:

        def forward_only() -> None:
            with torch.no_grad():
                mechanism(q, k, v, *more)

        return forward_only

    def forward_and_backward() -> None:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        mechanism(*inputs, *more).sum().backward()

    return forward_and_backward
