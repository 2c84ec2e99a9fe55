"""A relaxed categorical guide."""

from pyro_meta.distributions.softmax import LEAST_TEMPERATURE, Concrete
from pyro_meta.errors import UsageError
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.guides.networks import leads, of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features


class ConcreteGuide(HeadsGuide):
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
        By how many logits a mechanism is ahead at the start: `full` in the first layer, with
        `window` half a logit behind, and `window` in the others.
    reads_near
        Whether it also reads what window attention gives the token (see `HeadsGuide`).
    """

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None = None,
        temperature: float = 0.5,
        start: float = 3.0,
        reads_near: bool = False,
    ) -> None:
        super().__init__(model, hidden, leads(model.network, start), reads_near=reads_near)
        if not temperature >= LEAST_TEMPERATURE:
            raise UsageError(
                f"guide.temperature: {temperature} given; at least {LEAST_TEMPERATURE} is allowed"
            )
        self.temperature = temperature

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Concrete:
        return Concrete(self.temperature, self.outputs(layer, self.read(features)))
