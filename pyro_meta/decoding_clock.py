"""How fast a text is continued: tokens per second with a cache, by route and by what was read.

Shapes: B rows, T tokens read, L layers, K mechanisms.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_meta.evaluation import evaluating
from pyro_meta.transformer import Features, Route, Shape, Transformer

MIX = (0.10, 0.45, 0.45)


def measure_decoding(
    length: int = 16384,
    shares: Sequence[float] = MIX,
    layers: int = 4,
    width: int = 256,
    heads: int = 8,
    window: int = 64,
    rows: int = 1,
    steps: int = 16,
    repeats: int = 9,
    device: str = "cpu",
) -> dict[str, Any]:
    """Decoding after `length` tokens: random routes with given shares beside all tokens full.

    Random weights; both ways read the same tokens through the same code, with caches of their own,
    in turn.

    Returns
    -------
    dict
        Settings, medians of seconds per token and row, and their ratio, `speed_up`.
    """
    torch.manual_seed(0)
    shape = Shape(
        vocabulary=256, context=length, width=width, layers=layers, heads=heads, window=window
    )
    network = Transformer(shape).to(device)
    choices = torch.multinomial(
        torch.tensor(shares), layers * (2 * length + 1024), replacement=True
    ).view(layers, -1)
    routes = {
        "routed": listed(choices.to(device)),
        "full": listed(torch.zeros_like(choices).to(device)),
    }
    tokens = torch.randint(256, (rows, length), device=device)
    seconds = seconds_per_token(network, routes, tokens, steps, repeats)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    return {
        "setting": {
            "length": length, "shares": list(shares), "layers": layers, "width": width,
            "heads": heads, "window": window, "rows": rows, "threads": torch.get_num_threads(),
        },
        "seconds_per_token": medians,
        "tokens_per_second": {name: 1 / median for name, median in medians.items()},
        "speed_up": medians["full"] / medians["routed"],
    }  # fmt: skip


def listed(choices: Tensor) -> Route:
    """The route that `choices` [L, T] give by position, the same for all texts."""

    def route(layer: int, features: Features) -> Tensor:
        return choices[layer, features.positions].expand_as(features.tokens)

    return route


def seconds_per_token(
    network: Transformer, routes: dict[str, Route], tokens: Tensor, steps: int, repeats: int
) -> dict[str, list[float]]:
    """Of every route, `repeats` times the mean over `steps` tokens, decoded after `tokens` [B, T].

    The routes take turns. A route has to be one that looks at each token's own features alone.
    """
    rows = len(tokens)
    calls: dict[str, Callable[[], None]] = {}
    with evaluating(network):
        for name, route in routes.items():
            cache = network.new_cache(rows, keeps_features=False)
            network.states(tokens, route, cache)

            def decode(route: Route = route, cache: Any = cache) -> None:
                for step in range(steps):
                    network(tokens[:, step : step + 1], route, cache)

            decode()
            calls[name] = decode
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        gc.disable()
        try:
            for turn in range(repeats):
                for name in list(calls) if turn % 2 else list(calls)[::-1]:
                    _finish(tokens)
                    started = time.perf_counter()
                    calls[name]()
                    _finish(tokens)
                    seconds[name].append((time.perf_counter() - started) / steps / rows)
        finally:
            gc.enable()
    return seconds


def _finish(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
