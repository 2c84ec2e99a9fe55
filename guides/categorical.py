"""A guide of choices: which one mechanism a token runs."""

from torch import Tensor

from pyro_meta.distributions import Choice
from pyro_meta.distributions.kept import UntilMoved
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.guides.following import known_factors, require_price
from pyro_meta.guides.networks import leads, of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features


class CategoricalGuide(HeadsGuide):
    """q(alpha_l = e_k | x) = softmax(logits)_k, with logits from a two-layer network.

    A draw is one mechanism; its gradient is straight through (see `Choice`). Its KL to a prior of
    choices is exact.

    Parameters
    ----------
    model
        The language model; its prior is one of choices.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    start
        By how many logits a mechanism is ahead at the start: `full` in the first layer, with
        `window` half a logit behind, and `window` in the others.
    follows
        Whether load and price are factors of the posterior, which then moves with them at once
        (see `pyro_meta.guides.following`); else the network learns them, too.
    reads_near
        Whether it also reads what window attention gives the token (see `HeadsGuide`).
    """

    of_choices = True

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None = None,
        start: float = 3.0,
        follows: bool = False,
        reads_near: bool = False,
    ) -> None:
        super().__init__(model, hidden, leads(model.network, start), reads_near=reads_near)
        if follows:
            require_price(model)
        self.follows = follows
        self._kept = UntilMoved()

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Choice:
        out = self.outputs(layer, self.read(features))
        if self.follows:
            out = out + known_factors(self.model, self.load(layer))
        return Choice(logits=out)

    def decided(self, layer: int, features: Features) -> Tensor:
        if type(self).posterior is not CategoricalGuide.posterior:  # a subclass says otherwise
            return super().decided(layer, features)
        return (self.outputs(layer, self.read(features)) + self._lead(layer)).argmax(-1)

    def _lead(self, layer: int) -> Tensor:
        """What is added to the outputs of a layer before the largest runs, [K] or [G, K]."""
        execution, model = self.execution, self.model
        moved = [execution.price, execution.costs]
        if self.follows:
            moved += [require_price(model).rate, *self.moves_loads]

        def reckoned() -> Tensor:
            lead = -execution.charged
            return lead + known_factors(model, self.load(layer)) if self.follows else lead

        return self._kept(layer, moved, reckoned)
