"""The generative model of text with latent routes.

    pi[l] ~ prior.load_dist(l)                       site load_{l}      event [K], of load priors
    alpha[l, t] ~ prior(l, t)                        site route_{l}     batch [B, T], event [K]
    g[l, t] ~ depth(l, t), l >= 1                    site depth_{l}     batch [B, T], if gated
    x[l, t] = execution(alpha[l, t])                 site executed_{l}  deterministic, what runs
    -lambda E_k[c_k]                                 factor compute_{l} if compute has a price
    y[t] ~ Categorical(network(x, x, g)[t])^(1 / w)  site next_token    batch [B, T], observed
    -B T penalty / w                                 factor penalty     in training alone

in the plates `sequence` and `position` (see `pyro_meta.models.plates`); where the heads of a layer
are routed in G groups, routes are [B, T, G, K] in one plate more. Only reparameterised latents may
stand in the position plate: y[t] depends on the routes of earlier tokens, and a score-function
estimator would drop those costs without a word.

w is the temperature: the likelihood counts 1 / w times, so that SVI, MCMC, Renyi's bound and
importance weights are all of the same tempered posterior, p(alpha) p(y | alpha)^(1 / w). A loss of
SVI is w times as much in nats of the text.

The penalty is what mechanisms ask for beside the loss, such as chunks of a certain length
(`chunk_learned`), and what open gates cost where they pay no KL: minus the log of a prior density,
up to a constant, of how the network reads. The factor exists only where somebody asks for it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention import Cache, collected_penalties
from pyro_meta.attention.ops.precision import at_least_float32
from pyro_meta.distributions import GateExecution, RouteExecution
from pyro_meta.distributions.by_group import for_each_group
from pyro_meta.distributions.choice import require_family
from pyro_meta.distributions.for_pyro import for_pyro
from pyro_meta.distributions.gates import open_gate
from pyro_meta.distributions.hardening import Place
from pyro_meta.distributions.simplex import scored
from pyro_meta.distributions.soft_target import SoftTarget
from pyro_meta.errors import UsageError
from pyro_meta.models.compute import ComputePotential
from pyro_meta.models.depth import DepthPrior
from pyro_meta.models.loads import LoadPrior
from pyro_meta.models.plates import Plates
from pyro_meta.models.priors import Prior
from pyro_meta.models.standalone import StandaloneModule
from pyro_meta.network.costs import Costs, costs_at
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route, as_weights
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.own_classes import require_kind


class Draw(NamedTuple):
    """Values of a layer's latents."""

    route: Tensor
    """[B, T, K], or [B, T, G, K]."""
    gate: Tensor | None
    """[B, T]; None where every token runs the layer."""


class Passed(NamedTuple):
    """What a forward pass through the network gives."""

    logits: Tensor
    """Of the next token, [B, T, V]."""
    penalty: Tensor | None
    """The mechanisms' own losses, nats per token; None: none has any."""
    decisions: list[Decision]
    """What was decided on the way, by layer."""


class Handed(Protocol):
    """What a guide met on its way, and an objective hands to the model."""

    @property
    def passed(self) -> Passed:
        """What the network gave along its draws."""

    @property
    def draws(self) -> Sequence[Draw]:
        """By layer."""


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
    temperature
        w: the likelihood counts 1 / w times. 1 is the posterior itself; below 1 it is tempered, and
        the text counts for more against the prior. Must be above 0.
    text_tokens
        Tokens of the whole text that loads speak for: a batch pays for its share of their KL. None:
        the tokens at hand are all there are.
    compute
        What routes are charged for their cost, beside the prior; None: nothing.
    execution
        When a token's route turns hard, and what it then runs.
    gate_execution
        The same of its depth gates.
    """

    compute: ComputePotential | None

    def __init__(self, network: Network, prior: Prior, depth: DepthPrior | None = None) -> None:
        super().__init__()
        self.network = network
        self.prior = prior
        self.depth = depth
        self.compute = prior.potential()
        self.temperature = 1.0
        self.text_tokens: int | None = None
        everywhere = torch.arange(network.shape.context)
        costs = costs_at(network, "macs", everywhere).mean(0)  # [K]
        self.execution = RouteExecution(costs / network.shape.groups, network.shape.groups)
        self.gate_execution = GateExecution()

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, handed: Handed | None = None
    ) -> Tensor:
        """Sample latents and next tokens, [B, T].

        In vectorised plates outside, such as those of particles, everything gets their dimensions
        in front, and the network reads them as more sequences.

        Parameters
        ----------
        tokens
            [B, T].
        targets
            Observes the next tokens, [B, T]; or probabilities of each, [B, T, V], which are scored
            by their expectation.
        handed
            What a guide met. An objective that replays this model against the guide hands it on,
            and spares a second forward pass: the network then ran what the guide decided. Where
            other latents are sampled here, say under a condition, it is not used.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        outside_autocast = torch.autocast(tokens.device.type, enabled=False)
        plates = self.plates(tokens)
        layers = range(self.network.shape.layers)
        with outside_autocast:
            loads = [self._draw_load(layer, tokens, plates) for layer in layers]
            drawn = [self._draw(layer, positions, loads[layer], plates) for layer in layers]
        is_along = handed is not None and _are_same(handed.draws, drawn)
        met = handed if is_along else None
        with outside_autocast:
            decided = self._executed(drawn, met, positions, plates)
            self._charge(positions, drawn, plates)
        if met is None:
            wide = tokens.expand(*plates.leading, *tokens.shape)
            passed = self.run(wide, lambda layer, features: decided[layer])
        else:
            passed = met.passed
        scale = pyro.poutine.scale(scale=1 / self.temperature)
        with plates.of_tokens(), scale:
            of_groups = self.network.shape.groups > 1
            logits = passed.logits.unsqueeze(-2) if of_groups else passed.logits
            observed = targets
            is_soft = targets is not None and targets.dtype.is_floating_point
            if of_groups and targets is not None:
                observed = targets.unsqueeze(-2 if is_soft else -1)
            next_token: Tensor = pyro.sample(
                "next_token", self.next_token_dist(logits, observed), obs=observed
            )
        if (penalty := self._penalty(passed, drawn)) is not None:
            with scale:
                pyro.factor("penalty", -tokens.numel() * penalty)
        return next_token.squeeze(-2 if is_soft else -1) if of_groups else next_token

    def plates(self, tokens: Tensor) -> Plates:
        """The plates of tokens [B, T]."""
        return Plates(tokens, self.network.shape.groups)

    def share_of_text(self, tokens: Tensor) -> float:
        """The share of its text that tokens [B, T] are: what they pay of the KL of the loads."""
        return 1.0 if self.text_tokens is None else min(1.0, tokens.numel() / self.text_tokens)

    def charge_compute(self) -> None:
        """Begin to charge for compute, at a price of 0, in the prior's unit of cost if it has one.

        Nothing changes where there is a price already. A controller may move it.
        """
        if self.compute is None:
            costs = getattr(self.prior, "costs", None)
            self.compute = ComputePotential(
                self.network, costs.spec if isinstance(costs, Costs) else "macs"
            )

    @property
    def has_loads(self) -> bool:
        """Whether the prior has a level of loads."""
        return isinstance(self.prior, LoadPrior)

    def load_dist(self, layer: int) -> TorchDistribution:
        """p(pi_l) of a load prior: batch [], or [G] of groups."""
        assert isinstance(self.prior, LoadPrior)
        found = self.prior.load_dist(layer)
        require_kind(found, Distribution, self.prior, "load_dist")
        return for_pyro(found)

    def route_dist(
        self, layer: int, positions: Tensor, load: Tensor | None = None
    ) -> TorchDistribution:
        """p(alpha_l) at `positions` [T]: batch [T] or [], event [K]; of groups [T, G] or [T, 1].

        Parameters
        ----------
        layer
            0 .. L - 1.
        positions
            [T].
        load
            pi_l, where the prior has loads; by default the mean of its prior.
        """
        prior = self.prior
        given = (load,) if isinstance(prior, LoadPrior) else ()
        found = prior(layer, positions, *given)
        require_kind(found, Distribution, prior, "forward")
        require_family(found, prior.of_choices, prior, "forward")
        if self.network.shape.groups > 1 and len(found.batch_shape) == positions.dim():
            found = for_each_group(found)
        return for_pyro(scored(found))

    def gate_dist(self, layer: int, positions: Tensor, routes: Distribution) -> TorchDistribution:
        """p(g_l) at `positions` [T], batch [T] or []; all mass on 1 where every token runs it.

        `routes` is `route_dist` of the layer.
        """
        if layer not in self.gated or self.depth is None:
            return open_gate(positions)
        shares = routes.mean if self.network.shape.groups == 1 else routes.mean.mean(-2)
        return for_pyro(self.depth(layer, positions, shares))

    def next_token_dist(self, logits: Tensor, observed: Tensor | None = None) -> TorchDistribution:
        """p(y_t | ..) of logits [B, T, V], in at least float32.

        Where probabilities of tokens are observed, it scores them by their expectation.
        """
        logits = at_least_float32(logits)
        if observed is not None and observed.dtype.is_floating_point:
            return SoftTarget(logits)
        return dist.Categorical(logits=logits)

    def own_prediction(self, tokens: Tensor) -> Tensor:
        """p(y_t | x_{<=t}) [B, T, V] where every token attends fully, without gradients.

        Raises
        ------
        UsageError
            `full` is not among the mechanisms.
        """
        if "full" not in self.network.mechanism_names:
            raise UsageError("target: model given, and full is not among --mechanisms")
        with torch.no_grad():
            logits = self.network(tokens, chosen_by_all(self.network, "full"))
            return torch.softmax(at_least_float32(logits), -1)

    def charge(self, positions: Tensor, draw: Draw) -> Tensor:
        """What compute costs the latents of a layer, nats [.., B, T], or [.., B, T, G] of groups.

        As far as a token skips the layer it costs nothing; where compute has no price, neither.
        """
        if self.compute is None:
            return torch.zeros_like(draw.route[..., 0])
        charged = self.compute(positions, draw.route)
        if draw.gate is None:
            return charged
        return charged * (draw.gate if self.network.shape.groups == 1 else draw.gate[..., None])

    def harden_below(self, threshold: float) -> None:
        """Set the uncertainty below which a token's route and gates are hard.

        In another order (`harden_in`) it is the rank.
        """
        self.execution.threshold.fill_(threshold)
        self.gate_execution.threshold.fill_(threshold)

    def harden_in(self, order: str, seed: int = 0) -> None:
        """Set in which order tokens turn hard, see `Execution.order`; not saved with the model."""
        for execution in (self.execution, self.gate_execution):
            execution.order, execution.seed = order, seed

    @property
    def gated(self) -> range:
        """The layers that tokens may skip: with gates any but the first."""
        return range(0) if self.depth is None else range(1, self.network.shape.layers)

    def run(self, tokens: Tensor, route: Route, cache: Cache | None = None) -> Passed:
        """One forward pass along `route`; with a cache, of the tokens that follow it.

        Leading dimensions of tokens [.., B, T] are the route's too; the network reads them as more
        sequences.
        """
        decisions: list[Decision] = []
        leading = tokens.shape[:-2]

        def noting(layer: int, features: Features) -> Decision:
            decision = route(layer, features.unfolded(leading))
            decisions.append(decision)
            return decision.folded(features.tokens, leading, self.network.shape.groups)

        with collected_penalties() as penalties:
            logits = self.network(tokens.flatten(0, -2), noting, cache)
        if leading:
            logits = logits.unflatten(0, tokens.shape[:-1])
        return Passed(logits, torch.stack(penalties).sum() if penalties else None, decisions)

    def _draw_load(self, layer: int, tokens: Tensor, plates: Plates) -> Tensor | None:
        """Sample the load of a layer, if the prior has any."""
        if not self.has_loads:
            return None
        with plates.of_groups(), pyro.poutine.scale(scale=self.share_of_text(tokens)):
            load: Tensor = pyro.sample(f"load_{layer}", self.load_dist(layer))
        return load

    def _draw(self, layer: int, positions: Tensor, load: Tensor | None, plates: Plates) -> Draw:
        """Sample the latents of a layer's tokens."""
        routes = self.route_dist(layer, positions, load)
        with plates.of_tokens():
            with plates.of_groups():
                route = pyro.sample(f"route_{layer}", routes)
            if layer not in self.gated:
                return Draw(route, None)
            gates = self.gate_dist(layer, positions, routes)
            return Draw(route, sampled_gate(f"depth_{layer}", gates, self.network.shape.groups))

    def _executed(
        self, drawn: Sequence[Draw], met: Handed | None, positions: Tensor, plates: Plates
    ) -> list[Decision]:
        """What runs for the draws, kept as deterministic sites."""
        decided = []
        K = len(self.network.mechanisms)
        for layer, draw in enumerate(drawn):
            if met is None:
                place = Place(layer, positions)
                gate = None if draw.gate is None else self.gate_execution(draw.gate, place)
                decision = Decision(self.execution(draw.route, place), gate)
            else:
                decision = met.passed.decisions[layer]
            with plates.of_tokens(), plates.of_groups():
                runs = as_weights(decision.route, K)
                pyro.deterministic(f"executed_{layer}", runs, event_dim=1)
            decided.append(decision)
        return decided

    def _charge(self, positions: Tensor, drawn: Sequence[Draw], plates: Plates) -> None:
        """The potential of compute, layer by layer."""
        if self.compute is None:
            return
        for layer, draw in enumerate(drawn):
            with plates.of_tokens(), plates.of_groups():
                pyro.factor(f"compute_{layer}", -self.charge(positions, draw))

    def _penalty(self, passed: Passed, drawn: Sequence[Draw]) -> Tensor | None:
        """What mechanisms ask for and open gates cost in training, nats per token."""
        penalties = [] if passed.penalty is None else [passed.penalty]
        if self.depth is not None and self.training and self.depth.penalty:
            gates = [one.gate for one in drawn if one.gate is not None]
            penalties.append(self.depth.penalty * torch.stack(gates).mean())
        return torch.stack(penalties).sum() if penalties else None


def sampled_gate(name: str, gates: Distribution, groups: int) -> Tensor:
    """Sample the site of gates [B, T], which stands in the plates of G groups."""
    wide = gates if groups == 1 else for_each_group(gates)
    gate: Tensor = pyro.sample(name, for_pyro(wide))
    return gate if groups == 1 else gate[..., 0]


def _are_same(ours: Sequence[Draw], theirs: Sequence[Draw]) -> bool:
    """Whether these very tensors were drawn, layer by layer."""
    pairs = zip(ours, theirs, strict=True)
    return all(a.route is b.route and (b.gate is None or a.gate is b.gate) for a, b in pairs)
