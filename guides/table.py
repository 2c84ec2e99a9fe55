"""A guide without context: what a token is decides how it attends, whatever came before."""

import torch
from pyro.distributions import Dirichlet
from torch import nn

from pyro_meta.guides.base import Guide
from pyro_meta.guides.dirichlet import by_mean_and_total, start_at
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.transformer import Features


class TokenTableGuide(Guide):
    """q(alpha_l | x_t) = Dirichlet(floor + a_0 m), one m and a_0 per layer and token id.

    The opponent that a contextual router has to beat.

    Parameters
    ----------
    model
        The language model.
    total
        a_0 at the start.
    start
        By how many logits the mechanism `full` is ahead at the start (no effect without `full`).
    """

    def __init__(self, model: LanguageModel, total: float = 20.0, start: float = 2.5) -> None:
        super().__init__(model)
        network = model.network
        bias = torch.tensor(start_at(network, total, start))

        def table() -> nn.Embedding:
            noise = 0.02 * torch.randn(network.shape.vocabulary, len(bias))
            return nn.Embedding.from_pretrained(bias + noise, freeze=False)

        self.tables = nn.ModuleList(table() for _ in range(network.shape.layers))

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return by_mean_and_total(self.tables[layer](features.tokens))  # from [B, T, K + 1]
