"""One walk: a forward pass that keeps what guide and model say in every layer.

Training, evaluation, read-out and contracts all learn here what a guide says of a text. They choose
how the pass goes on: along posterior means, along draws, or by Pyro's own sites.
Shapes: B sequences, T tokens, L layers, G groups of heads, K mechanisms. Where there are several
groups, routes are [B, T, G, K]; particles stand in front.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention import Cache
from pyro_meta.distributions.for_pyro import for_pyro
from pyro_meta.distributions.hardening import Place
from pyro_meta.guides.settled import runs_choices
from pyro_meta.models.language_model import Draw, LanguageModel, Passed, sampled_gate
from pyro_meta.models.plates import Plates
from pyro_meta.network.route import Decision, Features, Route


class Latents(NamedTuple):
    """The distributions of a layer's latents."""

    route: Distribution
    """Batch [B, T], or [B, T, G]."""
    gate: Distribution
    """Batch [B, T]; all mass on 1 where every token runs the layer."""


class Router(Protocol):
    """What a walk asks of a guide."""

    is_mixture: ClassVar[bool]

    @property
    def model(self) -> LanguageModel: ...

    def load(self, layer: int) -> Tensor | None:
        """The mean load of a layer, where the prior has loads."""

    def routes(self, layer: int, features: Features) -> Distribution:
        """The posterior of a layer's route, by group."""

    def decided(self, layer: int, features: Features) -> Tensor:
        """What hard tokens run by posterior means, mechanisms [B, T] or [B, T, G]."""

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
    loads: list[Tensor | None]
    """The load that the prior of each layer stands around; None where it has none."""

    @property
    def means(self) -> list[Tensor]:
        """Posterior means of the routes, by layer."""
        return [posterior.route.mean for posterior in self.posteriors]

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
        found = []
        with torch.autocast(self.logits.device.type, enabled=False):
            for layer, (at, like) in enumerate(zip(self.positions, self.posteriors, strict=True)):
                routes = self.model.route_dist(layer, at, self.loads[layer])
                gates = self.model.gate_dist(layer, at, routes)
                batches = like.route.batch_shape, like.gate.batch_shape
                found.append(Latents(routes.expand(batches[0]), gates.expand(batches[1])))
        return found


def walk(
    model: LanguageModel,
    guide: Router,
    tokens: Tensor,
    how: How,
    cache: Cache | None = None,
    loads: list[Tensor | None] | None = None,
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
    loads
        Draws of the loads, by layer; by default their posterior means.
    """
    if loads is None:
        loads = [guide.load(layer) for layer in range(model.network.shape.layers)]
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
    return Walked(passed, model, positions, posteriors, draws, loads)


def along_means(hard: bool | None = None) -> How:
    """Follow posterior means, as evaluation does; `hard` as of `Execution.of_mean`."""

    def how(
        guide: Router, layer: int, features: Features, posterior: Latents
    ) -> tuple[Draw, Decision]:
        run = of_means(guide, posterior, place_of(layer, features), hard)
        return Draw(posterior.route.mean, posterior.gate.mean), run

    return how


def place_of(layer: int, features: Features) -> Place:
    """Where the tokens of a layer are."""
    return Place(layer, features.positions)


def of_means(guide: Router, posterior: Latents, place: Place, hard: bool | None = None) -> Decision:
    """What runs along the means of a layer's posterior; `hard` as of `Execution.of_mean`."""
    route = _of_mean(guide, posterior.route, place, hard)
    return Decision(route, guide.model.gate_execution.of_mean(posterior.gate, hard, place))


def _of_mean(guide: Router, routes: Distribution, place: Place, hard: bool | None) -> Tensor:
    return guide.model.execution.of_mean(routes, False if guide.is_mixture else hard, place)


def drawn(
    guide: Router, layer: int, features: Features, posterior: Latents
) -> tuple[Draw, Decision]:
    """Draw every latent; each draw decides for itself what runs."""
    model = guide.model
    route, gate = posterior.route.rsample(), posterior.gate.rsample()
    place = place_of(layer, features)
    run = Decision(model.execution.of_draw(route, place), model.gate_execution.of_draw(gate, place))
    return Draw(route, gate), run


def sampled(plates: Plates, along_means: bool = False) -> How:
    """Sample Pyro's sites route_{l} and, in a gated layer, depth_{l}, inside `plates.of_tokens()`.

    Each draw decides for itself what runs; or, with `along_means`, the posterior's means do, as a
    guide is run that rests. Once that has settled (`runs_choices`) tokens run their choices alone.
    """

    def how(
        guide: Router, layer: int, features: Features, posterior: Latents
    ) -> tuple[Draw, Decision]:
        model, gate = guide.model, None
        with plates.of_groups():
            route = pyro.sample(f"route_{layer}", for_pyro(posterior.route))
        if layer in model.gated:
            gate = sampled_gate(f"depth_{layer}", posterior.gate, model.network.shape.groups)
        draw, place = Draw(route, gate), place_of(layer, features)
        of_routes, of_gates = model.execution, model.gate_execution
        if along_means:
            if runs_choices(model, guide):
                runs = of_routes.of_mean(posterior.route, place=place)
            else:
                runs = of_routes.straight_through_mean(posterior.route, place)
            return draw, Decision(runs, of_gates.straight_through_mean(posterior.gate, place))
        opened = None if gate is None else of_gates(gate, place)
        return draw, Decision(of_routes(route, place), opened)

    return how


def mean_route(guide: Router, hard: bool | None = None) -> Route:
    """The route through posterior means alone, which keeps nothing: what generation follows.

    Where every token is hard it gives choices [B, T], so that each runs its own mechanism alone;
    else weights [B, T, K]. `hard` as of `Execution.of_mean`.
    """

    model, is_mixture = guide.model, guide.is_mixture
    execution, gated = model.execution, model.gated

    def route(layer: int, features: Features) -> Decision:
        if layer in gated:
            return of_means(guide, guide.latents(layer, features), place_of(layer, features), hard)
        # a decoded token has no time for gates that are not there, nor for distributions
        if not is_mixture and (hard or (hard is None and execution.is_hard_everywhere)):
            return Decision(guide.decided(layer, features))
        routes = guide.routes(layer, features)
        return Decision(_of_mean(guide, routes, place_of(layer, features), hard))

    return route
