"""The default guide: a Dirichlet by mean and total concentration."""

import math

import torch
from pyro.distributions import Dirichlet

from pyro_meta.errors import UsageError
from pyro_meta.guides.base import Guide, favour, heads
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.transformer import Features

FLOOR = 0.05  # below this, float32 draws of a Dirichlet are clamped and their gradients wild
LEAST_TOTAL, MOST_TOTAL = 1.0, 900.0  # above, the closed-form KL loses digits in float32


class DirichletGuide(Guide):
    """q(alpha_l | x) = Dirichlet(floor + a_0 m), with m and a_0 from a two-layer network.

    m = softmax(logits) is a point of the simplex and a_0, bounded in [1, 900], says how sure the
    guide is; the floor is .05.

    Parameters
    ----------
    model
        The language model.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    total
        a_0 at the start.
    start
        By how many logits the mechanism `full` is ahead at the start (no effect without `full`):
        a cost that bites before full attention has learned anything would kill it.
    """

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None = None,
        total: float = 20.0,
        start: float = 1.5,
    ) -> None:
        super().__init__(model)
        if not LEAST_TOTAL < total < MOST_TOTAL:
            raise UsageError(
                f"guide.total: {total} given; between {LEAST_TOTAL} and {MOST_TOTAL} is allowed"
            )
        network = model.network
        names = network.mechanism_names
        K = len(names)
        self.heads = heads(network.shape.width, hidden, K + 1, network.shape.layers)
        if "full" in names:
            favour(self.heads, names.index("full"), start)
        share = math.log(total / LEAST_TOTAL) / math.log(MOST_TOTAL / LEAST_TOTAL)
        favour(self.heads, K, math.log(share / (1 - share)))

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        out = self.heads[layer](features.normed)  # [B, T, K + 1]
        mean = torch.softmax(out[..., :-1], -1)
        log_total = torch.sigmoid(out[..., -1:]) * math.log(MOST_TOTAL / LEAST_TOTAL)
        return Dirichlet(FLOOR + LEAST_TOTAL * log_total.exp() * mean)
