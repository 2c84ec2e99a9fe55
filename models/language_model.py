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
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention import Cache, collected_penalties
from pyro_meta.attention.ops.precision import at_least_float32
from pyro_meta.distributions.gates import open_gate
from pyro_meta.models.depth import DepthPrior
from pyro_meta.models.priors import Prior
from pyro_meta.models.standalone import StandaloneModule
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.own_classes import require_kind


class Passed(NamedTuple):
    """What a forward pass through the network gives."""

    logits: Tensor
    """Of the next token, [B, T, V]."""
    penalty: Tensor | None
    """The mechanisms' own losses, nats per token; None: none has any."""
    decisions: list[Decision]
    """What was decided on the way, by layer."""

    def went_along(self, drawn: Sequence[Decision]) -> bool:
        """Whether these very tensors were decided on, layer by layer."""
        pairs = zip(self.decisions, drawn, strict=True)
        return all(a.route is b.route and a.gate is b.gate for a, b in pairs)


class LanguageModel(StandaloneModule):
    """p(y, alpha, g | x) = prod_l p(alpha_l) p(g_l) prod_t p(y_t | x_{<=t}, alpha_{<=t}, g_{<=t}).

    Parameters
    ----------
    network
        The network.
    prior
        The distribution of its routes.
    depth
        The distribution of its depth gates; None: every token runs every layer, and there is no g.

    Attributes
    ----------
    kl_weight
        Scale of the sites of routes and gates in model and guide; 1 is the ELBO, below 1 a tempered
        objective. Must be above 0.
    """

    def __init__(self, network: Network, prior: Prior, depth: DepthPrior | None = None) -> None:
        super().__init__()
        self.network = network
        self.prior = prior
        self.depth = depth
        self.kl_weight = 1.0

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, passed: Passed | None = None
    ) -> Tensor:
        """Sample latents and next tokens, [B, T].

        Parameters
        ----------
        tokens
            [B, T].
        targets
            Observes the next tokens, [B, T].
        passed
            What the network gave along the guide's routes and gates. An objective that replays this
            model against the guide hands it on, and spares a second forward pass. Where other
            latents are sampled here, say under a condition, it is not used.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        outside_autocast = torch.autocast(tokens.device.type, enabled=False)
        with self.plates(tokens):
            with pyro.poutine.scale(scale=self.kl_weight), outside_autocast:
                drawn = [self._draw(layer, positions) for layer in range(self.network.shape.layers)]
            if passed is None or not passed.went_along(drawn):
                passed = self.run(tokens, lambda layer, features: drawn[layer])
            next_token: Tensor = pyro.sample(
                "next_token", self.next_token_dist(passed.logits), obs=targets
            )
        if (penalty := self._penalty(passed, drawn)) is not None:
            pyro.factor("penalty", -tokens.numel() * penalty)
        return next_token

    @contextmanager
    def plates(self, tokens: Tensor) -> Iterator[None]:
        """The plates `sequence` and `position` of tokens [B, T]."""
        B, T = tokens.shape
        with pyro.plate("sequence", B, dim=-2), pyro.plate("position", T, dim=-1):
            yield

    def route_dist(self, layer: int, positions: Tensor) -> TorchDistribution:
        """p(alpha_l) at `positions` [T]: batch [T] or [], event [K]."""
        found: TorchDistribution = self.prior(layer, positions)
        require_kind(found, Distribution, self.prior, "forward")
        return found

    def gate_dist(self, layer: int, positions: Tensor, routes: Distribution) -> TorchDistribution:
        """p(g_l) at `positions` [T], batch [T] or []; all mass on 1 where every token runs it.

        `routes` is `route_dist` of the layer.
        """
        if layer not in self.gated or self.depth is None:
            return open_gate(positions)
        found: TorchDistribution = self.depth(layer, positions, routes.mean)
        return found

    def next_token_dist(self, logits: Tensor) -> dist.Categorical:
        """p(y_t | ..) of logits [B, T, V], in at least float32."""
        return dist.Categorical(logits=at_least_float32(logits))

    @property
    def gated(self) -> range:
        """The layers that tokens may skip: with gates any but the first."""
        return range(0) if self.depth is None else range(1, self.network.shape.layers)

    def run(self, tokens: Tensor, route: Route, cache: Cache | None = None) -> Passed:
        """One forward pass along `route`; with a cache, of the tokens that follow it."""
        decisions: list[Decision] = []

        def noting(layer: int, features: Features) -> Decision:
            decisions.append(route(layer, features))
            return decisions[-1]

        with collected_penalties() as penalties:
            logits = self.network(tokens, noting, cache)
        return Passed(logits, torch.stack(penalties).sum() if penalties else None, decisions)

    def _draw(self, layer: int, positions: Tensor) -> Decision:
        """Sample the latents of a layer."""
        routes = self.route_dist(layer, positions)
        route = pyro.sample(f"route_{layer}", routes)
        if layer not in self.gated:
            return Decision(route)
        gates = self.gate_dist(layer, positions, routes)
        return Decision(route, pyro.sample(f"depth_{layer}", gates))

    def _penalty(self, passed: Passed, drawn: Sequence[Decision]) -> Tensor | None:
        """What mechanisms ask for and open gates cost in training, nats per token."""
        penalties = [] if passed.penalty is None else [passed.penalty]
        if self.depth is not None and self.training and self.depth.penalty:
            gates = [one.gate for one in drawn if one.gate is not None]
            penalties.append(self.depth.penalty * torch.stack(gates).mean())
        return torch.stack(penalties).sum() if penalties else None
