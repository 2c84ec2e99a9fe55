"""A relaxed categorical guide."""

from pyro_meta.errors import UsageError
from pyro_meta.guides.base import Guide, favour, heads, lead_of_full
from pyro_meta.laws import LEAST_TEMPERATURE, Concrete
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.transformer import Features


class ConcreteGuide(Guide):
    """q(alpha_l | x) = Concrete(temperature, logits), with logits from a two-layer network.

    A draw is softmax((logits + Gumbel) / temperature). Its KL to a prior is estimated by the draw.

    Parameters
    ----------
    model
        The language model.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    temperature
        At least 0.3; up to 1 / (K - 1) the density has no mode inside the simplex (Maddison et al.
        2017, arXiv 1611.00712), which is the default for three mechanisms.
    start
        By how many logits the mechanism `full` is ahead at the start (no effect without `full`).
    """

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None = None,
        temperature: float = 0.5,
        start: float = 2.5,
    ) -> None:
        super().__init__(model)
        if not temperature >= LEAST_TEMPERATURE:
            raise UsageError(
                f"guide.temperature: {temperature} given; at least {LEAST_TEMPERATURE} is allowed"
            )
        self.temperature = temperature
        network = model.network
        bias = lead_of_full(network, start)
        self.heads = heads(network.shape.width, hidden, len(bias), network.shape.layers)
        favour(self.heads, bias)

    def posterior(self, layer: int, features: Features) -> Concrete:
        return Concrete(self.temperature, self.heads[layer](features.normed))
