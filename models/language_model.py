"""The generative model of text with latent routes.

    alpha[l, t] ~ prior(l, t)                        site route_{l}     batch [B, T], event [K]
    g[l, t] ~ depth(l, t), l >= 1                    site depth_{l}     batch [B, T], if gated
    y[t] ~ Categorical(network(x, alpha, g)[t])      site next_token    batch [B, T], observed
    -B T penalty                                     factor penalty     in training alone

in the plates `sequence` (dim -2) and `position` (dim -1). Only reparameterised latents may stand in
the position plate: y[t] depends on the routes of earlier tokens, and a score-function estimator
would drop those costs without a word.

The penalty is what mechanisms ask for beside the loss, such as chunks of a certain length
(`chunk_learned`), and what open gates cost where they pay no KL: minus the log of a prior density,
up to a constant, of how the network reads. The factor exists only where somebody asks for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention import collected_penalties
from pyro_meta.attention.ops.precision import at_least_float32
from pyro_meta.models.depth import DepthPrior
from pyro_meta.models.module import StandaloneModule
from pyro_meta.models.priors import Prior
from pyro_meta.network.route import Decision, Features, Route, decided
from pyro_meta.network.transformer import Transformer


class _Found(NamedTuple):
    """What a pass through the network gives."""

    logits: Tensor
    penalty: Tensor | None
    """The mechanisms' own losses, nats per token; None: none has any."""


@dataclass
class _Walk:
    """One pass through the network, as drawn by a guide: what went in, and what came out."""

    tokens: Tensor
    decisions: list[Decision]
    found: _Found
    state: tuple[object, ...]


class LanguageModel(StandaloneModule):
    """p(y, alpha, g | x) = prod_l p(alpha_l) p(g_l) prod_t p(y_t | x_{<=t}, alpha_{<=t}, g_{<=t}).

    Parameters
    ----------
    network
        The transformer.
    prior
        The law of its routes.
    depth
        The law of its depth gates; None: every token runs every layer, and there is no g.

    Attributes
    ----------
    kl_weight
        Scale of the sites of routes and gates in model and guide; 1 is the ELBO, below 1 a tempered
        objective. Must be above 0.
    """

    def __init__(self, network: Transformer, prior: Prior, depth: DepthPrior | None = None) -> None:
        super().__init__()
        self.network = network
        self.prior = prior
        self.depth = depth
        self.kl_weight = 1.0
        self._walk: _Walk | None = None

    @contextmanager
    def plates(self, tokens: Tensor) -> Iterator[None]:
        """The plates `sequence` and `position` of tokens [B, T]."""
        B, T = tokens.shape
        with pyro.plate("sequence", B, dim=-2), pyro.plate("position", T, dim=-1):
            yield

    def is_gated(self, layer: int) -> bool:
        """Whether tokens may pass a layer by: with gates any but the first."""
        return self.depth is not None and layer > 0

    def depth_law(self, layer: int, positions: Tensor) -> dist.Beta | None:
        """p(g_l) at `positions` [T], batch [T] or []; None where every token runs the layer."""
        if not self.is_gated(layer):
            return None
        return self._depth_law(layer, positions, self.prior(layer, positions))

    def _depth_law(self, layer: int, positions: Tensor, routes: Distribution) -> dist.Beta:
        assert self.depth is not None
        law: dist.Beta = self.depth(layer, positions, routes.mean)
        return law

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Sample latents and next tokens, [B, T]; `targets` [B, T] observes the latter."""
        network = self.network  # read here: registers its parameters
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        with self.plates(tokens):
            outside_autocast = torch.autocast(tokens.device.type, enabled=False)
            with pyro.poutine.scale(scale=self.kl_weight), outside_autocast:
                decisions = [
                    self._decide(layer, positions) for layer in range(network.shape.layers)
                ]
            found = self._already_walked(tokens, decisions)
            if found is None:
                found = self._walked(tokens, lambda layer, features: decisions[layer])
            law = dist.Categorical(logits=at_least_float32(found.logits))
            drawn = pyro.sample("next_token", law, obs=targets)
        penalties = [one for one in (found.penalty, self._penalty(decisions)) if one is not None]
        if penalties:
            pyro.factor("penalty", -tokens.numel() * torch.stack(penalties).sum())
        return drawn

    def _decide(self, layer: int, positions: Tensor) -> Decision:
        """Draw the latents of a layer."""
        law = self.prior(layer, positions)
        route = pyro.sample(f"route_{layer}", law)
        if not self.is_gated(layer):
            return Decision(route)
        return Decision(
            route, pyro.sample(f"depth_{layer}", self._depth_law(layer, positions, law))
        )

    def _penalty(self, decisions: Sequence[Decision]) -> Tensor | None:
        """What open gates cost in training, nats per token; None: nothing."""
        if self.depth is None or not (self.training and self.depth.penalty):
            return None
        gates = [one.gate for one in decisions if one.gate is not None]
        return self.depth.penalty * torch.stack(gates).mean()

    def walk(self, tokens: Tensor, route: Route) -> Tensor:
        """Logits [B, T, V] along `route`, kept for a replay of this model with the same draws.

        A guide walks the network to draw its routes, and the model replayed against it needs the
        very same activations. So an SVI step costs one forward and one backward pass.
        """
        self._walk = None  # frees the activations of a walk that was never replayed
        decisions: list[Decision] = []

        def remembering(layer: int, features: Features) -> Decision:
            decisions.append(decided(route(layer, features)))
            return decisions[-1]

        found = self._walked(tokens, remembering)
        if torch.is_grad_enabled():  # else there is no backward pass to save
            self._walk = _Walk(tokens, decisions, found, self._network_state(tokens))
        return found.logits

    def _walked(self, tokens: Tensor, route: Route) -> _Found:
        with collected_penalties() as penalties:
            logits = self.network(tokens, route)
        return _Found(logits, torch.stack(penalties).sum() if penalties else None)

    def _already_walked(self, tokens: Tensor, decisions: Sequence[Decision]) -> _Found | None:
        """What the last walk found, if it went exactly this way; it is given out once."""
        walk, self._walk = self._walk, None
        if walk is None or walk.tokens is not tokens or len(walk.decisions) != len(decisions):
            return None
        both = zip(walk.decisions, decisions, strict=True)
        is_same_way = all(a.route is b.route and a.gate is b.gate for a, b in both)
        return walk.found if is_same_way and walk.state == self._network_state(tokens) else None

    def _network_state(self, tokens: Tensor) -> tuple[object, ...]:
        """Changes whenever the network would answer otherwise to the same tokens and routes."""
        kind = tokens.device.type
        tensors = (tokens, *self.network.parameters(), *self.network.buffers())
        return (
            id(self.network),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
            *(module.training for module in self.network.modules()),
            *((tensor._version, tensor.data_ptr()) for tensor in tensors),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_walk": None}  # activations are not copied
