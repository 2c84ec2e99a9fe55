"""A guide without context: what a token is decides how it attends, whatever came before."""

import torch
from pyro.distributions import Dirichlet
from torch import nn

from pyro_meta.guides.base import Guide
from pyro_meta.guides.dirichlet import by_mean_and_total, start_at
from pyro_meta.guides.networks import of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features


class TokenTableGuide(Guide):
    """q(alpha_l | x_t) = Dirichlet(floor + a_0 m), one m and a_0 per layer, group and token id.

    The opponent that a contextual router has to beat.

    Parameters
    ----------
    model
        The language model.
    total
        a_0 at the start.
    start
        By how many logits a mechanism is ahead at the start: `full` in the first layer, with
        `window` half a logit behind, and `window` in the others.
    """

    def __init__(self, model: LanguageModel, total: float = 5.0, start: float = 3.0) -> None:
        super().__init__(model)
        rows = model.network.shape.vocabulary
        self._groups = model.network.shape.groups

        def table(start: list[float]) -> nn.Embedding:
            near = torch.tensor(start * self._groups)
            near = near + 0.02 * torch.randn(rows, len(near))
            return nn.Embedding.from_pretrained(near, freeze=False)

        self.tables = nn.ModuleList(map(table, start_at(model.network, total, start)))

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Dirichlet:
        out = self.tables[layer](features.tokens)  # [B, T, K + 1]
        return by_mean_and_total(
            out if self._groups == 1 else out.unflatten(-1, (self._groups, -1))
        )
