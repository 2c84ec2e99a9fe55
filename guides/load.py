"""The learned static split: every layer and group of heads has a posterior, and no token a say."""

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_meta.distributions import Choice
from pyro_meta.errors import UsageError
from pyro_meta.guides.base import Guide
from pyro_meta.guides.dirichlet import by_mean_and_total, start_at
from pyro_meta.guides.following import known_factors, require_price
from pyro_meta.guides.networks import leads, of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features


class LoadGuide(Guide):
    """q(alpha_l) for each layer and group, learned; the same for every token.

    The opponent that a router of tokens has to beat: once hard, each layer and group of heads runs
    one mechanism (as in DuoAttention, arXiv 2410.10819, which splits by heads). Its family is that
    of the model's prior: a `Choice`, or a Dirichlet by mean and total as of `DirichletGuide`.

    Parameters
    ----------
    model
        The language model.
    start
        By how many logits a mechanism is ahead at the start: `full` in the first layer, with
        `window` half a logit behind, and `window` in the others.
    total
        a_0 of a Dirichlet at the start.
    follows
        Of choices: whether load and price are factors of the posterior, see `CategoricalGuide`.

    Raises
    ------
    UsageError
        It is to follow, and the prior is one of weights, or has no price.
    """

    of_choices = None

    def __init__(
        self,
        model: LanguageModel,
        start: float = 3.0,
        total: float = 5.0,
        follows: bool = False,
    ) -> None:
        super().__init__(model)
        network = model.network
        self._chooses = model.prior.of_choices
        if follows and not self._chooses:
            raise UsageError(
                f"guide.follows: true given, and {type(model.prior).__name__} is a prior of "
                "weights; a prior of choices is allowed"
            )
        if follows:
            require_price(model)
        self.follows = follows
        near = leads(network, start) if self._chooses else start_at(network, total, start)
        outputs = torch.tensor(near)  # [L, K], or [L, K + 1] with a total
        if network.shape.groups > 1:
            outputs = outputs[:, None].repeat(1, network.shape.groups, 1)
        self.outputs = nn.Parameter(outputs)

    @property
    def offsets(self) -> list[Tensor]:
        return [*super().offsets, self.outputs]

    def begin_at(self, layer: int, logits: Tensor) -> None:
        """Have the logits of a layer begin at `logits`, [G, K], in place."""
        outputs = self.outputs.detach()[layer]
        outputs[..., : logits.shape[-1]] = logits.view(*outputs.shape[:-1], -1)

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Distribution:
        out = self.outputs[layer]
        if self.follows:
            out = out + known_factors(self.model, self.load(layer))
        dist: Distribution = Choice(logits=out) if self._chooses else by_mean_and_total(out)
        return dist.expand(torch.Size([*features.tokens.shape, *dist.batch_shape]))
