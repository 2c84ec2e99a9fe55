"""The guide of Meta-Attention (arXiv 2605.28384): evidence is added to the prior."""

import torch
import torch.nn.functional as F
from pyro.distributions import Dirichlet

from pyro_meta.errors import UsageError
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.guides.networks import of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features


class PaperGuide(HeadsGuide):
    """q(alpha_l | x) = Dirichlet(beta + softplus(MLP([LN(h); |h| / sqrt(D); t / context]))).

    beta is the concentration of the model's prior, so that evidence can only be added: evidence
    against a mechanism cannot be expressed. The norm |h| is detached, as in the paper. The position
    is divided by the context of training, a constant: the paper's code divides by the length of
    the sequence, which lets the future in.

    Parameters
    ----------
    model
        The language model; its prior must give a Dirichlet.
    hidden
        Width of the hidden layer; by default an eighth of the model's, about 1% of its parameters.
    """

    def __init__(self, model: LanguageModel, hidden: int | None = None) -> None:
        shape = model.network.shape
        bias = [[0.0] * len(model.network.mechanisms)] * shape.layers
        super().__init__(model, hidden, bias, inputs=shape.width + 2)
        prior = model.route_dist(0, torch.arange(1, device=model.network.device))
        if not isinstance(prior, Dirichlet):
            raise UsageError(
                f"guide: PaperGuide adds to the concentration of a Dirichlet prior, which "
                f"{type(model.prior).__name__} is not"
            )

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Dirichlet:
        shape = self.model.network.shape
        norm = features.state.detach().norm(dim=-1, keepdim=True) / shape.width**0.5
        position = (features.positions / shape.context)[:, None].expand_as(norm)
        seen = torch.cat([features.normed, norm, position.to(norm)], -1)  # [B, T, D + 2]
        prior = self.model.route_dist(layer, features.positions, self.load(layer))
        return Dirichlet(prior.concentration + F.softplus(self.outputs(layer, seen)))
