"""One walk: a forward pass that keeps what guide and model say in every layer.

Training, evaluation, read-out and contracts all learn here what a guide says of a text. They choose
how the pass goes on: along posterior means, along draws, or by Pyro's own sites.
Shapes: B sequences, T tokens, L layers, K mechanisms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention import Cache
from pyro_meta.distributions.hardening import GateExecution, RouteExecution
from pyro_meta.models.language_model import LanguageModel, Passed
from pyro_meta.network.route import Decision, Features, Route


class Latents(NamedTuple):
    """The distributions of a layer's latents, batch [B, T] each."""

    route: Distribution
    gate: Distribution
    """All mass on 1 where every token runs the layer."""


class Draw(NamedTuple):
    """Values of a layer's latents."""

    route: Tensor
    """[B, T, K]."""
    gate: Tensor
    """[B, T]."""


class Router(Protocol):
    """What a walk asks of a guide."""

    execution: RouteExecution
    gate_execution: GateExecution

    @property
    def model(self) -> LanguageModel: ...

    def posterior(self, layer: int, features: Features) -> Distribution:
        """That of a layer's route."""

    def latents(self, layer: int, features: Features) -> Latents:
        """The posterior of a layer's route and gate."""


How = Callable[[Router, int, Features, Latents], tuple[Draw, Decision]]
"""`how(guide, layer, features, posterior)` gives values of the latents and what runs for them."""


@dataclass(frozen=True)
class Walked:
    """What was met on the way."""

    passed: Passed
    model: LanguageModel
    positions: list[Tensor]
    """Those of the layer's tokens, by layer, [T]."""
    posteriors: list[Latents]
    """By layer."""
    draws: list[Draw]
    """By layer."""

    @property
    def decisions(self) -> list[Decision]:
        """What ran, by layer."""
        return self.passed.decisions

    @property
    def logits(self) -> Tensor:
        """[B, T, V]."""
        return self.passed.logits

    @cached_property
    def priors(self) -> list[Latents]:
        """By layer, expanded to the batch of the posteriors."""
        device = self.logits.device.type
        with torch.autocast(device, enabled=False):
            pairs = enumerate(zip(self.positions, self.posteriors, strict=True))
            return [prior_of(self.model, layer, at, like) for layer, (at, like) in pairs]


def prior_of(model: LanguageModel, layer: int, positions: Tensor, like: Latents) -> Latents:
    """What `model` says of a layer's latents at `positions` [T], in the batch of `like`."""
    routes = model.route_dist(layer, positions)
    gates = model.gate_dist(layer, positions, routes)
    return Latents(routes.expand(like.route.batch_shape), gates.expand(like.gate.batch_shape))


def walk(
    model: LanguageModel, guide: Router, tokens: Tensor, how: How, cache: Cache | None = None
) -> Walked:
    """One forward pass, asking `guide` in every layer.

    Parameters
    ----------
    model, guide
        Who is asked.
    tokens
        [B, T]; with a cache, those that follow what it holds.
    how
        Makes a decision of each posterior: `along_means`, `drawn`, `sampled`, or one's own.
    cache
        Of the network. Where it keeps features, posteriors are those of the whole text.
    """
    positions: list[Tensor] = []
    posteriors: list[Latents] = []
    draws: list[Draw] = []

    def route(layer: int, features: Features) -> Decision:
        posterior = guide.latents(layer, features)
        draw, decision = how(guide, layer, features, posterior)
        if layer not in model.gated:
            decision = decision.with_open_gate()
        positions.append(features.positions)
        posteriors.append(posterior)
        draws.append(draw)
        return decision

    passed = model.run(tokens, route, cache)
    return Walked(passed, model, positions, posteriors, draws)


def along_means(hard: bool | None = None) -> How:
    """Follow posterior means, as evaluation does; `hard` as of `Execution.of_mean`."""

    def how(
        guide: Router, layer: int, features: Features, posterior: Latents
    ) -> tuple[Draw, Decision]:
        route, gate = posterior
        run = guide.execution.of_mean(route, hard), guide.gate_execution.of_mean(gate, hard)
        return Draw(route.mean, gate.mean), Decision(*run)

    return how


def drawn(
    guide: Router, layer: int, features: Features, posterior: Latents
) -> tuple[Draw, Decision]:
    """Draw every latent; each draw decides for itself what runs."""
    route, gate = posterior
    draw = Draw(route.rsample(), gate.rsample())
    run = Decision(
        guide.execution.of_draw(route, draw.route), guide.gate_execution.of_draw(gate, draw.gate)
    )
    return draw, run


def sampled(
    guide: Router, layer: int, features: Features, posterior: Latents
) -> tuple[Draw, Decision]:
    """Sample Pyro's sites route_{l} and, in a gated layer, depth_{l}, as training executes them."""
    run = pyro.sample(f"route_{layer}", guide.execution.hardened(posterior.route))
    gate = posterior.gate.mean
    if layer in guide.model.gated:
        gate = pyro.sample(f"depth_{layer}", guide.gate_execution.hardened(posterior.gate))
    return Draw(run, gate), Decision(run, gate)


def mean_route(guide: Router, hard: bool | None = None) -> Route:
    """The route through posterior means alone, which keeps nothing: what generation follows.

    Where every token is hard it gives choices [B, T], so that each runs its own mechanism alone;
    else weights [B, T, K]. `hard` as of `Execution.of_mean`.
    """
    how = along_means(hard)

    def route(layer: int, features: Features) -> Decision:
        if layer in guide.model.gated:
            return how(guide, layer, features, guide.latents(layer, features))[1]
        # a decoded token has no time for gates that are not there
        return Decision(guide.execution.of_mean(guide.posterior(layer, features), hard))

    return route
