"""The prior-free baseline: a deterministic router."""

import torch

from pyro_meta.guides.base import Guide, favour, heads, lead_of_full
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.simplex import Point
from pyro_meta.transformer import Features


class PointGuide(Guide):
    """alpha_l = softmax(MLP(norm(h))), all mass on one point and no KL: the prior plays no part.

    Parameters
    ----------
    model
        The language model.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    start
        By how many logits the mechanism `full` is ahead at the start (no effect without `full`).
    """

    pays_kl = False

    def __init__(self, model: LanguageModel, hidden: int | None = None, start: float = 2.5) -> None:
        super().__init__(model)
        network = model.network
        bias = lead_of_full(network, start)
        self.heads = heads(network.shape.width, hidden, len(bias), network.shape.layers)
        favour(self.heads, bias)

    def posterior(self, layer: int, features: Features) -> Point:
        return Point(torch.softmax(self.heads[layer](features.normed), -1))
