"""Routed attention beside what one would run instead, all taken in turn: attention alone.

`full` is PyTorch's `scaled_dot_product_attention`, causal; `window` and `linear` are this
project's, for all tokens. Beside them `flex window`, a sliding window by PyTorch's compiled
`flex_attention`, and `meta-attention`, the hard routing of the public Meta-Attention (arXiv
2605.28384) as its code goes about it, written anew, with the same routes as `routed 0.1`.

Shapes: B = 1 sequence, H heads, T tokens, d head width, W window.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from pyro_meta.attention.clock import Calls
from pyro_meta.attention.ops.dense import feature_map, normalised, window_attention
from pyro_meta.speed.scene import FULL, LINEAR, MIX, WINDOW, Attention, Scene
from pyro_meta.speed.timed_parts import attention_calls, in_seconds
from pyro_meta.terminal.progress import Tell

LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
SHARES = [0.0, MIX, 0.5, 0.75]
FLEX, PUBLIC = "flex window", "meta-attention"
PUBLIC_LENGTH = 1024
"""Tokens up to which the public routine is timed: it loops over positions in Python."""
CLOSE = 2e-2  # by the largest difference: half precision is allowed for


def bench_opponents(
    scene: Scene, lengths: Sequence[int], shares: Sequence[float], tell: Tell
) -> dict[str, Any]:
    """Everything that opponents.json says, without what it says of the machine."""
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for length in lengths:
        tell(f"{length:,} tokens")
        calls, reasons = opponents(scene, length, shares)
        seconds = scene.time(calls)
        full = statistics.median(seconds["full"])
        points += [
            {
                "length": length,
                "route": route,
                "ratio_to_full": statistics.median(times) / full,
                **in_seconds(times, length),
            }
            for route, times in seconds.items()
        ]
        left_out += [{"length": length, "route": r, "why": why} for r, why in reasons.items()]
    return {
        "setting": dataclasses.asdict(scene) | {"batch": 1, "head_width": scene.head_width},
        "points": points,
        "left_out": left_out,
    }


def opponents(scene: Scene, length: int, shares: Sequence[float]) -> tuple[Calls, dict[str, str]]:
    """Calls by name, and why those that cannot run here are left out."""
    attention = Attention.of(scene, length)
    calls, reasons = attention_calls(scene, length, shares), {}
    flex = flex_window(attention, scene.window)
    if isinstance(flex, str):
        reasons[FLEX] = flex
    else:
        calls[FLEX] = flex
    if length > PUBLIC_LENGTH:
        reasons[PUBLIC] = f"it loops over positions: timed up to {PUBLIC_LENGTH:,} tokens"
    else:
        q, k, v = attention.inputs[:3]
        choice = scene.choices(MIX, length)[0]

        def public() -> None:
            with torch.no_grad():
                public_routing(q, k, v, choice, scene.window)

        calls[PUBLIC] = public
    return calls, reasons


def flex_window(attention: Attention, window: int) -> Callable[[], object] | str:
    """A sliding window by the compiled `flex_attention`, or why it does not run here.

    It is compiled, and compared with window attention, before it is timed.
    """
    q, k, v = attention.inputs[:3]
    T, device = q.shape[2], q.device

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - window)

    attend = torch.compile(flex_attention, dynamic=False)

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = attend(q, k, v, block_mask=mask)
            return out

    try:
        mask = create_block_mask(sees, None, None, T, T, device=device)
        found = run()
    except Exception as error:  # whatever the compiler, or the one that it calls, raises
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    difference = float((found - window_attention(q, k, v, window)).abs().max())
    if not difference < CLOSE:
        return f"it gives other numbers: by up to {difference:.3g}"
    return run


def public_routing(q: Tensor, k: Tensor, v: Tensor, choice: Tensor, window: int) -> Tensor:
    """Hard routes as the public Meta-Attention runs them: [B, H, T, d].

    A mechanism that a single token chose runs on all of them, and its rows are multiplied by 0
    or 1. Full attention forms all T x T scores; the others loop over positions. Unlike theirs,
    all are causal.

    Parameters
    ----------
    q, k, v
        [B, H, T, d].
    choice
        [B, T]: full, window or linear attention.
    window
        W, the token itself included.
    """
    out = torch.zeros_like(q)
    for index, attend in ((FULL, _full), (WINDOW, _window), (LINEAR, _linear)):
        is_chosen = choice == index
        if is_chosen.any():
            out = out + is_chosen[:, None, :, None] * attend(q, k, v, window)
    return out


def _full(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    T, d = q.shape[2:]
    scores = q @ k.transpose(-1, -2) / d**0.5
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return F.softmax(scores.masked_fill(future, -torch.inf), -1) @ v


def _window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    rows = []
    for t in range(q.shape[2]):
        seen = slice(max(0, t - window + 1), t + 1)
        scores = q[:, :, t : t + 1] @ k[:, :, seen].transpose(-1, -2) / q.shape[-1] ** 0.5
        rows.append(F.softmax(scores, -1) @ v[:, :, seen])
    return torch.cat(rows, 2)


def _linear(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    B, H, T, d = q.shape
    phi_q, phi_k = feature_map(q), feature_map(k)
    values = F.pad(v, (0, 1), value=1.0)  # the last column sums the weights
    state = q.new_zeros(B, H, d, d + 1)
    rows = []
    for t in range(T):
        at = slice(t, t + 1)
        state = state + phi_k[:, :, at].transpose(-1, -2) @ values[:, :, at]
        rows.append(normalised(phi_q[:, :, at] @ state))
    return torch.cat(rows, 2)
