"""The default guide: a Dirichlet by mean and total concentration."""

import torch
from pyro.distributions import Dirichlet
from torch import Tensor

from pyro_meta.distributions.bounded import bounded, unbounded
from pyro_meta.errors import UsageError
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.guides.networks import FLOOR, LEAST_TOTAL, MOST_TOTAL, leads, of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Features


def by_mean_and_total(out: Tensor) -> Dirichlet:
    """Dirichlet(floor + a_0 m) from out [.., K + 1]: logits of m, and a_0 bounded in [1, 900]."""
    return Dirichlet(concentration(out))


def concentration(out: Tensor) -> Tensor:
    """floor + a_0 m, [.., K]."""
    mean = torch.softmax(out[..., :-1], -1)
    return FLOOR + bounded(out[..., -1:], LEAST_TOTAL, MOST_TOTAL) * mean


def start_at(network: Network, total: float, start: float) -> list[list[float]]:
    """What `out` is near at the start, [L][K + 1]: mechanisms ahead by `start`, and a total."""
    if not LEAST_TOTAL < total < MOST_TOTAL:
        raise UsageError(
            f"guide.total: {total} given; between {LEAST_TOTAL} and {MOST_TOTAL} is allowed"
        )
    concentration = unbounded(total, LEAST_TOTAL, MOST_TOTAL)
    return [[*logits, concentration] for logits in leads(network, start)]


class DirichletGuide(HeadsGuide):
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
        By how many logits a mechanism is ahead at the start: `full` in the first layer, with
        `window` half a logit behind, and `window` in the others.
    reads_near
        Whether it also reads what window attention gives the token (see `HeadsGuide`).
    """

    def __init__(
        self,
        model: LanguageModel,
        hidden: int | None = None,
        total: float = 5.0,
        start: float = 3.0,
        reads_near: bool = False,
    ) -> None:
        super().__init__(
            model, hidden, start_at(model.network, total, start), reads_near=reads_near
        )

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return by_mean_and_total(self.outputs(layer, self.read(features)))  # from [B, T, K + 1]

    def decided(self, layer: int, features: Features) -> Tensor:
        if type(self).posterior is not DirichletGuide.posterior:  # a subclass says otherwise
            return super().decided(layer, features)
        # the largest log m_k - price c_k; that of the concentration differs by one constant
        of_outputs = concentration(self.outputs(layer, self.read(features)))
        return (of_outputs.log() - self.execution.charged).argmax(-1)
