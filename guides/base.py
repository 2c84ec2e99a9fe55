"""What every guide is: one posterior, asked layer by layer.

    q(alpha | x) = prod_l q(alpha_l | x, alpha_{<l})

and of depth gates, where the model has any, q(g_l | x, alpha_{<l}, g_{<l}) beside it.

A guide sees the prefix x of each token and never its target y, so that the router that is trained
is the one that is deployed. The price is a conditioning gap: the best it can do is not the
posterior given y, but its average over what may follow (Bayer et al. 2021, arXiv 2101.07046).
"""

from collections.abc import Sequence
from typing import ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention.prices import require_prices
from pyro_meta.distributions.by_group import for_each_group
from pyro_meta.distributions.choice import require_family
from pyro_meta.distributions.gates import open_gate
from pyro_meta.distributions.hardening import GateExecution, RouteExecution
from pyro_meta.errors import UsageError
from pyro_meta.guides.depth import DepthGuide
from pyro_meta.guides.load_posterior import LoadPosterior
from pyro_meta.guides.networks import default_width, make_heads
from pyro_meta.guides.spending import Spending
from pyro_meta.guides.walk import Latents, Walked, sampled, walk
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.models.made_with import MadeWith
from pyro_meta.models.plates import Plates
from pyro_meta.models.standalone import StandaloneModule
from pyro_meta.network.route import Features
from pyro_meta.own_classes import is_own, require_defined, require_kind


class Guide(MadeWith, StandaloneModule):
    """An amortised posterior over routes; subclass it and define `posterior`.

    Parameters
    ----------
    model
        The language model whose routes are inferred. It stays outside the guide's own parameters.

    Attributes
    ----------
    load_posterior
        That of the loads, where the prior has a level of them and the guide a KL to pay. Else loads
        are as the prior says.
    depth
        The posterior of the model's depth gates; None where it has none.
    follows
        Whether its posteriors move with the price of compute at once, instead of learning it.
    spending
        What its hard routes spend at each price, once that was measured; it is saved with the
        results of a run, and not with the guide's parameters.
    reads_near
        Whether it asks what window attention gives a token.
    is_resting
        Whether it does not learn: before it begins, and once it has settled. Its routes then are
        detached: no gradient passes from them into the network, which does not learn to move them
        by what it feeds the guide. And the network runs along posterior means, as it is evaluated.
        Training sets it from its schedule; it is not saved.
    """

    pays_kl: ClassVar[bool] = True
    """Whether posteriors differ from the prior, and so have a KL to pay and to learn from."""
    is_mixture: ClassVar[bool] = False
    """Whether tokens run a mixture of mechanisms to the end, instead of turning hard."""
    of_choices: ClassVar[bool | None] = False
    """Whether `posterior` gives choices of one mechanism (`Choice`), rather than weights of all;
    None: either, as the prior says. One that pays no KL goes with any prior."""
    fitted: ClassVar[tuple[str, ...]] = ()
    """Buffers that are found from text, as parameters are; the others are as options say."""
    depth: DepthGuide | None
    load_posterior: LoadPosterior | None
    spending: Spending | None

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        require_defined(self, Guide, "posterior")
        if model.prior.learns_from_kl and not self.pays_kl:
            raise UsageError(
                f"guide: {type(model.prior).__name__} learns from the KL of the guide's posterior, "
                f"and that of {type(self).__name__} is always 0; choose another guide or prior"
            )
        if self.pays_kl and self.of_choices not in (None, model.prior.of_choices):
            ours, theirs = ("choices", "weights") if self.of_choices else ("weights", "choices")
            raise UsageError(
                f"guide: {type(self).__name__} infers {ours}, and {type(model.prior).__name__} is "
                f"a prior of {theirs}; choose another guide or prior"
            )
        self._model = (model,)  # in a tuple: known, but no submodule of the guide
        self.depth = None
        learns_loads = model.has_loads and self.pays_kl
        self.load_posterior = LoadPosterior(model.network) if learns_loads else None
        self.follows = False
        self.spending = None
        self.reads_near = False
        self.is_resting = False
        everywhere = torch.arange(model.network.shape.context)
        for mechanism in filter(is_own, model.network.mechanisms):
            require_prices(mechanism, everywhere.to(torch.get_default_dtype()))

    def posterior(self, layer: int, features: Features) -> Distribution:
        """q(alpha_l | x, alpha_{<l}): batch [B, T], event [K], reparameterised.

        Of a model that routes G groups of heads the batch is [B, T, G]; [B, T] speaks for all of
        them alike. Particles stand in front of B, in what it is given and in what it gives.

        Training, evaluation, read-out and generation all ask here and nowhere else. What it reads
        of the network is `features`, through which gradients stop while the guide rests. One
        that needs the features of each token alone is declared so by the decorator `of_own_token`.
        """
        raise NotImplementedError

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Walked:
        """Sample the sites route_{l}, and depth_{l} where there are gates, for tokens [B, T].

        `targets` are taken and not looked at. What was met on the way is returned. `RouteELBO`
        hands it to the model, which then needs no second forward pass.
        """
        model = self.model
        plates = model.plates(tokens)
        loads = [self._draw_load(layer, tokens, plates) for layer in self._layers]
        wide = tokens.expand(*plates.leading, *tokens.shape)
        with plates.of_tokens():
            return walk(model, self, wide, sampled(plates, self.is_resting), loads=loads)

    def _draw_load(self, layer: int, tokens: Tensor, plates: Plates) -> Tensor | None:
        """Sample the load of a layer, if the prior has any."""
        dist = self.load_dist(layer)
        if dist is None:
            return None
        share = self.model.share_of_text(tokens)
        with plates.of_groups(), pyro.poutine.scale(scale=share):
            load: Tensor = pyro.sample(f"load_{layer}", dist)
        return load

    @property
    def _layers(self) -> range:
        return range(self.model.network.shape.layers)

    @property
    def moves_loads(self) -> list[Tensor]:
        """The parameters that move the loads: those of their posterior, or of the prior."""
        return list((self.load_posterior or self.model.prior).parameters())

    @property
    def draws_choices(self) -> bool:
        """Whether a draw of its posterior is the choice of one mechanism, and it learns from it."""
        return self.pays_kl and self.model.prior.of_choices and self.of_choices is not False

    @property
    def offsets(self) -> list[Tensor]:
        """The parameters that speak for all tokens of a layer or group alike: those of the loads.

        Subclasses add their own.
        """
        return [] if self.load_posterior is None else list(self.load_posterior.parameters())

    @property
    def model(self) -> LanguageModel:
        return self._model[0]

    @property
    def execution(self) -> RouteExecution:
        """That of the model: when a token's route turns hard, and what it then runs."""
        return self.model.execution

    @property
    def gate_execution(self) -> GateExecution:
        """That of the model's depth gates."""
        return self.model.gate_execution

    def load_dist(self, layer: int) -> TorchDistribution | None:
        """q(pi_l): batch [], or [G] of several groups; None where the prior has no loads."""
        if self.load_posterior is not None:
            return self.load_posterior(layer)
        return self.model.load_dist(layer) if self.model.has_loads else None

    def load(self, layer: int) -> Tensor | None:
        """The posterior mean of a layer's load, [K] or [G, K]; None where the prior has none."""
        dist = self.load_dist(layer)
        return None if dist is None else dist.mean

    def routes(self, layer: int, features: Features) -> Distribution:
        """`posterior`, with a dimension of groups wherever the model has several."""
        route = self.posterior(layer, self._seen(features))
        require_kind(route, Distribution, self, "posterior")
        if self.pays_kl:
            require_family(route, self.of_choices, self, "posterior")
        G, tokens = self.model.network.shape.groups, features.tokens
        if G == 1:
            return route
        if len(route.batch_shape) == tokens.dim():
            route = for_each_group(route)
        return route.expand(torch.Size([*tokens.shape, G]))

    def decided(self, layer: int, features: Features) -> Tensor:
        """What hard tokens run by posterior means: mechanisms [B, T], or [B, T, G] of groups.

        Subclasses may say the same in fewer steps, since each decoded token is asked for it.
        """
        return self.execution.decide(self.routes(layer, features).mean)

    def latents(self, layer: int, features: Features) -> Latents:
        """The posterior of a layer's route, and of its gate.

        Raises
        ------
        UsageError
            The model has gates, and the guide no posterior of them.
        """
        route = self.routes(layer, features)
        if layer not in self.model.gated:
            return Latents(route, open_gate(features.tokens))
        if self.depth is None:
            raise UsageError("guide: the model has depth gates, and `guide.depth` is not set")
        gate = self.depth.posterior(layer, self._seen(features))
        require_kind(gate, Distribution, self.depth, "posterior")
        return Latents(route, gate)

    def _seen(self, features: Features) -> Features:
        """What posteriors read: no gradient finds back through it while the guide rests."""
        return features.detached() if self.is_resting else features

    def harden_below(self, threshold: float) -> None:
        """Set the uncertainty below which a token's route and gates are hard.

        The routes of a mixture never are.
        """
        self.model.harden_below(threshold)
        if self.is_mixture:
            self.execution.threshold.zero_()

    def shares(self, mean: Tensor) -> Tensor:
        """What runs once everything is hard, as weights [.., K]: one mechanism, or the mixture."""
        return mean if self.is_mixture else self.execution.shares(mean)

    @property
    def is_of_own_token(self) -> bool:
        """Whether the posteriors of a token depend on that token's features alone."""
        is_own = getattr(type(self).posterior, "is_of_own_token", False)
        return is_own and (self.depth is None or self.depth.is_of_own_token)


LEAST_SCALE = 1e-3
"""Of an input of a head: what hardly moves is not blown up."""


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
        Width of what the heads read (default: that of `read`).
    reads_near
        Whether they also read what window attention gives the token, as in L2A (arXiv 2603.17484):
        whether a far look pays shows in what the near one has found. The window is then run for
        every token, also for those that choose another mechanism.

    Attributes
    ----------
    centre, scale
        What heads take for mean and scale of their inputs, [L, inputs]; at first 0 and 1.

    Raises
    ------
    UsageError
        `hidden` is below 1, or there is no bias for every layer; or the network does not show what
        is near.
    """

    fitted = ("centre", "scale")
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None,
        bias: Sequence[Sequence[float]],
        inputs: int | None = None,
        reads_near: bool = False,
    ) -> None:
        super().__init__(model)
        shape = model.network.shape
        if reads_near and not model.network.shows_near:
            raise UsageError(
                "guide.reads_near: true given, and the network shows no window attention before a "
                "route is chosen; --pretrained does, with window among --mechanisms"
            )
        self.reads_near = reads_near
        width = default_width(shape) if hidden is None else hidden
        if width < 1:
            raise UsageError(f"guide.hidden: {hidden} given; at least 1 is allowed")
        if len(bias) != shape.layers:
            raise UsageError(
                f"guide: {len(bias)} biases given; one for each of {shape.layers} layers"
            )
        self._groups = model.network.shape.groups
        of_all = [list(start) * self._groups for start in bias]
        of_near = shape.heads * shape.head_width if reads_near else 0
        inputs = inputs or shape.width + of_near
        self.heads = make_heads(inputs, width, of_all)
        self.register_buffer("centre", torch.zeros(shape.layers, inputs))
        self.register_buffer("scale", torch.ones(shape.layers, inputs))

    @property
    def offsets(self) -> list[Tensor]:
        return [*super().offsets, *(head[-1].bias for head in self.heads)]  # type: ignore[index]

    def read(self, features: Features) -> Tensor:
        """What heads read of a layer, [B, T, inputs]: its normalised input, and what is near."""
        normed = features.normed
        if not self.reads_near:
            return normed
        if features.near is None:
            raise UsageError(
                f"guide.reads_near: {type(self).__name__} was asked where nothing is near"
            )
        return torch.cat([normed, features.near().to(normed)], -1)

    def standardise(self, layer: int, read: Tensor) -> None:
        """Take mean and scale of a layer's inputs from examples of them, [.., inputs], in place."""
        read = read.flatten(0, -2)
        self.centre[layer] = read.mean(0)
        self.scale[layer] = read.std(0).clamp(min=LEAST_SCALE)

    def begin_at(self, layer: int, logits: Tensor) -> None:
        """Have the first K outputs of a layer begin near `logits`, [G, K], in place."""
        bias = self.heads[layer][-1].bias.detach()  # type: ignore[index]
        bias.view(self._groups, -1)[:, : logits.shape[-1]] = logits

    def outputs(self, layer: int, read: Tensor) -> Tensor:
        """What the head of a layer gives for `read` [B, T, inputs], [B, T, outputs].

        Of several groups it is [B, T, G, outputs].
        """
        # divided in place: of a long text it is a large tensor, and a second one takes its time
        out: Tensor = self.heads[layer]((read - self.centre[layer]).div_(self.scale[layer]))
        return out if self._groups == 1 else out.unflatten(-1, (self._groups, -1))
