"""A logistic-normal guide."""

from pyro_meta.distributions.bounded import bounded, unbounded
from pyro_meta.distributions.softmax import LogisticNormal
from pyro_meta.errors import UsageError
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.guides.networks import leads, of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features

LEAST_SCALE, MOST_SCALE = 0.02, 5.0


class LogisticNormalGuide(HeadsGuide):
    """q(alpha_l | x): alpha = softmax(z), z_k ~ N(loc_k, scale_k^2), both from a two-layer network.

    The scale is bounded in [.02, 5].

    Parameters
    ----------
    model
        The language model.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    scale
        Standard deviation of z at the start.
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
        scale: float = 0.5,
        start: float = 3.0,
        reads_near: bool = False,
    ) -> None:
        if not LEAST_SCALE < scale < MOST_SCALE:
            raise UsageError(
                f"guide.scale: {scale} given; between {LEAST_SCALE} and {MOST_SCALE} is allowed"
            )
        raw_scale = unbounded(scale, LEAST_SCALE, MOST_SCALE)
        bias = [[*loc, *([raw_scale] * len(loc))] for loc in leads(model.network, start)]
        super().__init__(model, hidden, bias, reads_near=reads_near)

    @of_own_token
    def posterior(self, layer: int, features: Features) -> LogisticNormal:
        loc, scale = self.outputs(layer, self.read(features)).chunk(2, -1)  # [B, T, K] each
        return LogisticNormal(loc, bounded(scale, LEAST_SCALE, MOST_SCALE))
