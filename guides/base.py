"""What every guide is: one posterior, walked through the network layer by layer.

    q(alpha | x) = prod_l q(alpha_l | x, alpha_{<l})

and of depth gates, where the model has any, q(g_l | x, alpha_{<l}, g_{<l}) beside it.

A guide sees the prefix x of each token and never its target y, so that the router that is trained
is the one that is deployed. The price is a conditioning gap: the best it can do is not the
posterior given y, but its average over what may follow (Bayer et al. 2021, arXiv 2101.07046).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.distributions.gates import HardenedGate, harden_gate
from pyro_meta.distributions.simplex import Hardened, decide, harden, uncertainty, vertex
from pyro_meta.errors import UsageError, require_defined
from pyro_meta.guides.heads import default_width, make_heads
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.models.module import StandaloneModule
from pyro_meta.network.costs import costs_at
from pyro_meta.network.route import Decision, Features, Route

if TYPE_CHECKING:
    from pyro_meta.guides.depth import DepthGuide


class Guide(StandaloneModule):
    """An amortised posterior over routes; subclass it and define `posterior`.

    Parameters
    ----------
    model
        The language model whose routes are inferred. It stays outside the guide's own parameters.

    Attributes
    ----------
    threshold
        A token whose posterior has uncertainty below it is executed hard; 0 keeps every route
        soft, 1 makes every route hard. A buffer: it is saved with the guide.
    price
        Nats by which a mechanism must be likelier than another to be executed, for each unit by
        which it is dearer (MACs averaged over the context, full attention = 1). A buffer, too.
    depth
        The posterior of the model's depth gates; None: every token runs every layer.
    has_settled
        Whether it has stopped learning for good. Its routes then are given: no gradient passes
        from them into the network, which does not learn to move them by what it feeds the guide.
        Training sets it from its schedule; it is not saved.
    """

    pays_kl: ClassVar[bool] = True
    """Whether posteriors differ from the prior, and so have a KL to pay and to learn from."""
    is_mixture: ClassVar[bool] = False
    """Whether tokens run a mixture of mechanisms to the end, instead of turning hard."""
    threshold: Tensor
    price: Tensor
    costs: Tensor
    depth: "DepthGuide | None"

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        require_defined(self, Guide, "posterior")
        if model.prior.learns_from_kl and not self.pays_kl:
            raise UsageError(
                f"guide: {type(model.prior).__name__} learns from the KL of the guide's posterior, "
                f"and that of {type(self).__name__} is always 0; choose another guide or prior"
            )
        self._model = (model,)  # in a tuple: known, but no submodule of the guide
        self.depth = None
        self.has_settled = False
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("price", torch.zeros(()))
        everywhere = torch.arange(model.network.shape.context)
        costs = costs_at(model.network, "macs", everywhere).mean(0)  # [K]
        self.register_buffer("costs", costs, persistent=False)

    @property
    def model(self) -> LanguageModel:
        return self._model[0]

    def posterior(self, layer: int, features: Features) -> Distribution:
        """q(alpha_l | x, alpha_{<l}): batch [B, T], event [K], reparameterised.

        Training, evaluation, read-out and generation all ask here and nowhere else. What it reads
        of the network is `features`, through which gradients stop once the guide has settled. One
        that needs the features of each token alone is declared so by the decorator `of_own_token`.
        """
        raise NotImplementedError

    def depth_posterior(self, layer: int, features: Features) -> Distribution | None:
        """q(g_l | x, ..): batch [B, T], event []; None where every token runs the layer.

        Raises
        ------
        UsageError
            The model has gates, and the guide no posterior of them.
        """
        if not self.model.is_gated(layer):
            return None
        if self.depth is None:
            raise UsageError("guide: the model has depth gates, and `guide.depth` is not set")
        return self.depth.posterior(layer, features)

    @property
    def is_of_own_token(self) -> bool:
        """Whether the posteriors of a token depend on that token's features alone."""
        is_own = getattr(type(self).posterior, "is_of_own_token", False)
        return is_own and (self.depth is None or self.depth.is_of_own_token)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> None:
        """Sample the sites route_{l}, and depth_{l} where there are gates, for tokens [B, T].

        `targets` are taken and not looked at.
        """
        model = self.model

        def draw(layer: int, features: Features) -> Tensor | Decision:
            if self.has_settled:
                features = features.detached()
            law = Hardened(self.posterior(layer, features), self.hard_below, self.discount)
            route: Tensor = pyro.sample(f"route_{layer}", law)
            gates = self.depth_posterior(layer, features)
            if gates is None:
                return route
            assert self.depth is not None
            hardened = HardenedGate(gates, self.threshold, self.depth.price)
            return Decision(route, pyro.sample(f"depth_{layer}", hardened))

        with model.plates(tokens), pyro.poutine.scale(scale=model.kl_weight):
            model.walk(tokens, draw)

    @property
    def hard_below(self) -> Tensor:
        """Uncertainty below which a token is executed hard: `threshold`, or 0 for a mixture."""
        return self.threshold * 0 if self.is_mixture else self.threshold

    @property
    def discount(self) -> Tensor:
        """What each mechanism's weight counts for when one is decided on, [K]: e^(-price c)."""
        return torch.exp(-self.price * self.costs)

    def decide(self, mean: Tensor) -> Tensor:
        """The mechanism that a hard token runs, [..], from posterior means [.., K].

        argmax_k (log m_k - price c_k): who hardly cares does not pay for full attention.
        """
        return decide(mean, self.discount)

    def choice(self, mean: Tensor) -> Tensor:
        """What runs once everything is hard, as weights [.., K]: one mechanism, or the mixture."""
        return mean if self.is_mixture else vertex(self.decide(mean), mean)

    def mean_route(self, hard: bool | None = None) -> Route:
        """The route through posterior means: what evaluation and generation follow.

        Where every token is hard it gives choices [B, T], so that each runs its own mechanism
        alone; else weights [B, T, K]. Where the layer is gated it gives a `Decision`, whose gates
        are booleans or numbers accordingly.

        Parameters
        ----------
        hard
            True: what is decided (`decide`) for every token. False: the mean itself. None: hard
            where the posterior's uncertainty is below `threshold`, as in training. A mixture stays
            one.
        """

        def route(layer: int, features: Features) -> Tensor | Decision:
            law = self.posterior(layer, features)
            return self.follow(law, hard, self.depth_posterior(layer, features))

        return route

    def follow(
        self, law: Distribution, hard: bool | None = None, gates: Distribution | None = None
    ) -> Tensor | Decision:
        """What `mean_route` gives where the posteriors of routes and, if any, gates are at hand."""
        route = self.follow_route(law, hard)
        return route if gates is None else Decision(route, self.follow_gates(gates, hard))

    def gate(self, layer: int, features: Features, hard: bool | None = None) -> Tensor | None:
        """The gate of `mean_route`, booleans or numbers [B, T]; None: all tokens run the layer."""
        gates = self.depth_posterior(layer, features)
        return None if gates is None else self.follow_gates(gates, hard)

    def runs(self, layer: int, features: Features) -> Tensor:
        """Which tokens run a layer once they are hard, booleans [B, T]."""
        gate = self.gate(layer, features, hard=True)
        return torch.ones_like(features.tokens, dtype=torch.bool) if gate is None else gate

    def follow_gates(self, gates: Distribution, hard: bool | None = None) -> Tensor:
        """The gate of `mean_route` where its posterior is at hand, [B, T].

        Gates turn hard beside a mixture of mechanisms, too.
        """
        assert self.depth is not None
        mean: Tensor = gates.mean
        if hard is None and float(self.threshold) < 1:
            decided = self.depth.runs(mean)
            return harden_gate(mean, uncertainty(gates), self.threshold, decided)
        return mean if hard is False else self.depth.runs(mean)

    def follow_route(self, law: Distribution, hard: bool | None = None) -> Tensor:
        """The route of `mean_route` where its posterior is at hand: choices, or weights."""
        is_hard = float(self.hard_below) >= 1 if hard is None else hard
        if is_hard and not self.is_mixture:
            return self.decide(law.mean)
        if hard is None:
            choice = self.decide(law.mean)
            return harden(law.mean, uncertainty(law), self.hard_below, choice)
        return law.mean


class HeadsGuide(Guide):
    """A guide that asks one network of a single hidden layer in every layer of the transformer.

    Parameters
    ----------
    model
        The language model.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    bias
        What the outputs of each layer's head are near at the start, [L][outputs].
    inputs
        Width of what the heads read (default: the width of the model).

    Raises
    ------
    UsageError
        `hidden` is below 1, or there is no bias for every layer.
    """

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None,
        bias: Sequence[Sequence[float]],
        inputs: int | None = None,
    ) -> None:
        super().__init__(model)
        shape = model.network.shape
        width = default_width(shape) if hidden is None else hidden
        if width < 1:
            raise UsageError(f"guide.hidden: {hidden} given; at least 1 is allowed")
        if len(bias) != shape.layers:
            raise UsageError(
                f"guide: {len(bias)} biases given; one for each of {shape.layers} layers"
            )
        self.heads = make_heads(inputs or shape.width, width, bias)
