"""The prior-free baseline: a deterministic router."""

import torch

from pyro_meta.guides.base import Guide, favour, heads
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

    def __init__(self, model: LanguageModel, hidden: int | None = None, start: float = 1.5) -> None:
        super().__init__(model)
        network = model.network
        names = network.mechanism_names
        self.heads = heads(network.shape.width, hidden, len(names), network.shape.layers)
        if "full" in names:
            favour(self.heads, names.index("full"), start)

    def posterior(self, layer: int, features: Features) -> Point:
        return Point(torch.softmax(self.heads[layer](features.normed), -1))
