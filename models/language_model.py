"""The generative model of text with latent routes.

    alpha[l, t] ~ prior(l, t)                        site route_{l}     batch [B, T], event [K]
    y[t] ~ Categorical(network(x, alpha)[t])         site next_token    batch [B, T], observed
    -B T penalty                                     factor penalty     in training alone

in the plates `sequence` (dim -2) and `position` (dim -1). Only reparameterised latents may stand in
the position plate: y[t] depends on the routes of earlier tokens, and a score-function estimator
would drop those costs without a word.

The penalty is what mechanisms ask for beside the loss, such as chunks of a certain length
(`chunk_learned`): minus the log of a prior density, up to a constant, of how the network reads. The
factor exists only where a mechanism has one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_meta.attention import collected_penalties
from pyro_meta.models.module import StandaloneModule
from pyro_meta.models.priors import Prior
from pyro_meta.transformer import Features, Route, Transformer, at_least_float32


class _Found(NamedTuple):
    """What a pass through the network gives."""

    logits: Tensor
    penalty: Tensor | None
    """The mechanisms' own losses, nats per token; None: none has any."""


@dataclass
class _Walk:
    """One pass through the network, as drawn by a guide: what went in, and what came out."""

    tokens: Tensor
    routes: list[Tensor]
    found: _Found
    state: tuple[object, ...]


class LanguageModel(StandaloneModule):
    """p(y, alpha | x) = prod_l p(alpha_l) prod_t p(y_t | x_{<=t}, alpha_{<=t}).

    Parameters
    ----------
    network
        The transformer.
    prior
        The law of its routes.

    Attributes
    ----------
    kl_weight
        Scale of the route sites in model and guide; 1 is the ELBO, below 1 a tempered objective.
        Must be above 0.
    """

    def __init__(self, network: Transformer, prior: Prior) -> None:
        super().__init__()
        self.network = network
        self.prior = prior
        self.kl_weight = 1.0
        self._walk: _Walk | None = None

    @contextmanager
    def plates(self, tokens: Tensor) -> Iterator[None]:
        """The plates `sequence` and `position` of tokens [B, T]."""
        B, T = tokens.shape
        with pyro.plate("sequence", B, dim=-2), pyro.plate("position", T, dim=-1):
            yield

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Sample routes and next tokens, [B, T]; `targets` [B, T] observes the latter."""
        network, prior = self.network, self.prior  # read here: registers their parameters
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        with self.plates(tokens):
            outside_autocast = torch.autocast(tokens.device.type, enabled=False)
            with pyro.poutine.scale(scale=self.kl_weight), outside_autocast:
                routes = [
                    pyro.sample(f"route_{layer}", prior(layer, positions))
                    for layer in range(network.shape.layers)
                ]
            found = self._already_walked(tokens, routes)
            if found is None:
                found = self._walked(tokens, lambda layer, features: routes[layer])
            law = dist.Categorical(logits=at_least_float32(found.logits))
            drawn = pyro.sample("next_token", law, obs=targets)
        if found.penalty is not None:
            pyro.factor("penalty", -tokens.numel() * found.penalty)
        return drawn

    def walk(self, tokens: Tensor, route: Route) -> Tensor:
        """Logits [B, T, V] along `route`, kept for a replay of this model with the same draws.

        A guide walks the network to draw its routes, and the model replayed against it needs the
        very same activations. So an SVI step costs one forward and one backward pass.
        """
        self._walk = None  # frees the activations of a walk that was never replayed
        routes: list[Tensor] = []

        def remembering(layer: int, features: Features) -> Tensor:
            routes.append(route(layer, features))
            return routes[-1]

        found = self._walked(tokens, remembering)
        if torch.is_grad_enabled():  # else there is no backward pass to save
            self._walk = _Walk(tokens, routes, found, self._network_state(tokens))
        return found.logits

    def _walked(self, tokens: Tensor, route: Route) -> _Found:
        with collected_penalties() as penalties:
            logits = self.network(tokens, route)
        return _Found(logits, torch.stack(penalties).sum() if penalties else None)

    def _already_walked(self, tokens: Tensor, routes: Sequence[Tensor]) -> _Found | None:
        """What the last walk found, if it went exactly this way; it is given out once."""
        walk, self._walk = self._walk, None
        if walk is None or walk.tokens is not tokens or len(walk.routes) != len(routes):
            return None
        is_same_way = all(a is b for a, b in zip(walk.routes, routes, strict=True))
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
