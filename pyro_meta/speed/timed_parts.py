"""The timed parts of the routed benchmark: each gives calls by name, to be taken in turn.

Names: those of the mechanisms (one for all tokens), and `routed SHARE` (random hard
routes with that share of full attention). `PARTS` lists them; a new part is one more function.

Shapes: B = 1, T tokens, L layers.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention import Cache, routed_attention
from pyro_meta.attention.clock import Calls
from pyro_meta.guides import mean_route
from pyro_meta.models import LanguageModel
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.speed import PART_NAMES
from pyro_meta.speed.scene import Attention, Scene

DECODED = 16  # tokens of a call of the decoding part


def routed(share: float) -> str:
    """Name of the calls with a share of full attention."""
    return f"routed {share:g}"


def attention_calls(scene: Scene, length: int, shares: Sequence[float]) -> Calls:
    """Attention of one layer, from q, k and v to [1, T, D].

    Alone, a mechanism runs without dispatch and gain: `full` is `scaled_dot_product_attention`,
    causal, and nothing else but the layout of its result.
    """
    attention = Attention.of(scene, length)

    def alone(index: int) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                attention.alone(index)

        return run

    def along(choice: Tensor) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                routed_attention(attention.mechanisms, attention.gain, choice, attention.inputs)

        return run

    calls: Calls = {name: alone(index) for index, name in enumerate(scene.mechanisms)}
    return calls | {routed(share): along(scene.choices(share, length)[0]) for share in shares}


def prefill_calls(scene: Scene, length: int, shares: Sequence[float]) -> Calls:
    """The whole model reads T tokens.

    Routed, every layer asks the router and then follows given routes: the router's work is in the
    time, and the share is what it should be. Pinned to one mechanism, no router is asked.
    """
    model, guide = scene.network(length)
    network = model.network
    walk = partial(reading, scene, network, scene.tokens(length))

    def asked(choices: Tensor) -> Route:
        ask = mean_route(guide, hard=True)

        def route(layer: int, features: Features) -> Decision:
            ask(layer, features)
            return Decision(choices[layer])

        return route

    calls: Calls = {name: walk(chosen_by_all(network, name)) for name in scene.mechanisms}
    return calls | {routed(share): walk(asked(scene.choices(share, length))) for share in shares}


def reading(scene: Scene, network: Network, tokens: Tensor, route: Route) -> Callable[[], object]:
    """A call in which `network` reads tokens along a route, without gradients."""

    def run() -> None:
        with torch.no_grad(), scene.autocast():
            network(tokens, route)

    return run


def training_calls(scene: Scene, length: int, shares: Sequence[float]) -> Calls:
    """Loss and gradients of the network along given hard routes; no router, no optimiser."""
    model, _ = scene.network(length)
    network, tokens = model.train().network, scene.tokens(length)

    def step(route: Route) -> Callable[[], object]:
        def run() -> None:
            with scene.autocast():
                train_once(model, tokens, route)

        return run

    def given(choices: Tensor) -> Route:
        def route(layer: int, features: Features) -> Decision:
            return Decision(choices[layer])

        return route

    calls: Calls = {name: step(chosen_by_all(network, name)) for name in scene.mechanisms}
    return calls | {routed(share): step(given(scene.choices(share, length))) for share in shares}


def decoding_calls(scene: Scene, length: int, shares: Sequence[float]) -> Calls:
    """`DECODED` tokens, one by one, after T tokens were read.

    Each call goes on where the last one ended. Every route has a cache of its own, filled along
    that route. Routed, every layer asks the router for every token and then follows given routes.
    """
    model, guide = scene.network(length)
    network, tokens = model.network, scene.tokens(length)
    ask = mean_route(guide, hard=True)

    def after(route: Route, is_asking: bool) -> Callable[[], object]:
        def asking(layer: int, features: Features) -> Decision:
            ask(layer, features)
            return route(layer, features)

        followed = asking if is_asking else route
        with torch.no_grad(), scene.autocast():
            cache = network.new_cache(1, keeps_features=False)
            network.states(tokens, route, cache)

        def run() -> None:
            with torch.no_grad(), scene.autocast():
                decode(network, tokens, followed, cache)

        return run

    def given(choices: Tensor) -> Route:
        def route(layer: int, features: Features) -> Decision:
            begin = int(features.positions[0]) % length
            return Decision(choices[layer][:, begin : begin + features.tokens.shape[1]])

        return route

    calls: Calls = {name: after(chosen_by_all(network, name), False) for name in scene.mechanisms}
    return calls | {
        routed(share): after(given(scene.choices(share, length)), True) for share in shares
    }


def train_once(model: LanguageModel, tokens: Tensor, route: Route) -> None:
    """Loss of tokens [B, T] along a route, and its gradients."""
    model.zero_grad(set_to_none=True)
    logits = model.network(tokens, route)
    F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()


def decode(network: Network, tokens: Tensor, route: Route, cache: Cache) -> None:
    """Read the first `DECODED` of tokens [B, T], or as many over again, one by one."""
    for step in range(DECODED):
        network(tokens[:, step % tokens.shape[1], None], route, cache)


def in_seconds(times: Sequence[float], tokens: int) -> dict[str, Any]:
    """What is written of the repetitions of a call that works through so many tokens."""
    median = statistics.median(times)
    return {
        "seconds": median,
        "seconds_range": [min(times), max(times)],
        "tokens_per_second": tokens / median,
        "repeats": len(times),
    }


class Part(NamedTuple):
    """What is timed under one name."""

    calls: Callable[[Scene, int, Sequence[float]], Calls]
    """Calls by name, at a length and for shares of full attention."""
    tokens: Callable[[int], int] = int
    """Tokens that one call works through, of the length."""
    is_slow: bool = False
    """A call takes several times as long as a prefill: a third of the repetitions."""


_PARTS = (
    Part(attention_calls),
    Part(prefill_calls),
    Part(training_calls, is_slow=True),
    Part(decoding_calls, tokens=lambda _: DECODED),
)
PARTS = dict(zip(PART_NAMES, _PARTS, strict=True))
"""By the name in routed.json."""
