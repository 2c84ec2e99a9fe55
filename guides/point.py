"""The prior-free baseline: a deterministic router."""

import torch

from pyro_meta.distributions.simplex import Point
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.guides.networks import leads, of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features


class PointGuide(HeadsGuide):
    """alpha_l = softmax(MLP(norm(h))), all mass on one point and no KL: the prior plays no part.

    Parameters
    ----------
    model
        The language model.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    start
        By how many logits a mechanism is ahead at the start: `full` in the first layer, with
        `window` half a logit behind, and `window` in the others.
    reads_near
        Whether it also reads what window attention gives the token (see `HeadsGuide`).
    """

    pays_kl = False
    of_choices = None

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None = None,
        start: float = 3.0,
        reads_near: bool = False,
    ) -> None:
        super().__init__(model, hidden, leads(model.network, start), reads_near=reads_near)

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Point:
        return Point(torch.softmax(self.outputs(layer, self.read(features)), -1))
