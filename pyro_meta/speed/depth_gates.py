"""What hard depth gates save on the clock: a prefill in which tokens pass layers by.

Along `full`, and along random hard routes with a tenth of full attention; always against the same
routes without gates, taken in turn. No router is asked.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_meta.attention import NO_TOKEN
from pyro_meta.attention.clock import Calls
from pyro_meta.network.macs import attention_macs, dense_macs
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.speed.scene import FULL, MIX, Scene
from pyro_meta.speed.timed_parts import in_seconds, reading
from pyro_meta.terminal.progress import Tell

LENGTHS = {"cpu": [512, 2048, 8192], "cuda": [2048, 8192, 32768]}
SHARES = [0.1, 0.25, 0.5]


def bench_depth(
    scene: Scene, lengths: Sequence[int], shares: Sequence[float], tell: Tell
) -> dict[str, Any]:
    """Everything that depth.json says but for the machine.

    Parameters
    ----------
    scene
        Sizes, device, precision, repetitions.
    lengths
        T.
    shares
        Of all pairs of token and layer, in how many the token skips the layer.
    tell
        Told of the progress.
    """
    points: list[dict[str, Any]] = []
    for length in lengths:
        for name, choices in routes(scene, length).items():
            tell(f"{name}, {length:,} tokens")
            points += _points(scene, length, name, choices, shares)
    return {
        "setting": dataclasses.asdict(scene) | {"batch": 1, "head_width": scene.head_width},
        "points": points,
    }


def routes(scene: Scene, length: int) -> dict[str, Tensor]:
    """Choices [L, 1, T] by name."""
    mixed = scene.choices(MIX, length)
    return {"full": torch.full_like(mixed, FULL), f"routed {MIX:g}": mixed}


def depth_calls(scene: Scene, length: int, choices: Tensor, shares: Sequence[float]) -> Calls:
    """A prefill along `choices` [L, 1, T] by the share that is skipped; `open`: no gates."""
    model, _ = scene.network(length)
    walk = partial(reading, scene, model.network, scene.tokens(length))

    def gated(gates: Tensor | None) -> Route:
        def route(layer: int, features: Features) -> Decision:
            return Decision(choices[layer], None if gates is None else gates[layer])

        return route

    calls: Calls = {"open": walk(gated(None))}
    return calls | {f"{share:g}": walk(gated(scene.gates(share, length))) for share in shares}


def _points(
    scene: Scene, length: int, name: str, choices: Tensor, shares: Sequence[float]
) -> list[dict[str, Any]]:
    seconds = scene.time(depth_calls(scene, length, choices, shares))
    open_s = statistics.median(seconds["open"])
    open_macs = _macs(scene, length, choices, torch.ones_like(choices, dtype=torch.bool))
    rows = []
    for share in (0.0, *shares):
        gates = scene.gates(share, length)
        times = seconds[f"{share:g}" if share else "open"]
        rows.append(
            {
                "length": length,
                "route": name,
                "passed_by": float((~gates).double().mean()),
                **in_seconds(times, length),
                "speed_up": open_s / statistics.median(times),
                "macs_ratio": _macs(scene, length, choices, gates) / open_macs,
            }
        )
    return rows


def _macs(scene: Scene, length: int, choices: Tensor, gates: Tensor) -> float:
    """MACs of the whole model for a text."""
    model, _ = scene.network(length)
    network = model.network
    attention = sum(
        attention_macs(network.mechanisms, scene.heads, choice)
        for choice in choices.masked_fill(~gates, NO_TOKEN)
    )
    return attention + length * dense_macs(network.shape, float((~gates).sum()) / length)
