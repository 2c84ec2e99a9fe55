"""Posteriors that follow the load and the price of their model at once.

    q(alpha = e_k | x)  proportional to  pi_k exp(-lambda c_k) exp(f(x)_k)

The exact posterior has these three factors, of prior, compute and likelihood. The first two are
known; a guide learns the last alone, as recognition networks learn potentials (Johnson et al. 2016,
arXiv 1603.06277). So a price that moves is not learned anew by every token, and a guide that is
trained for one budget serves others.

c_k is averaged over the context: no token pays for its position.
"""

import torch
from torch import Tensor

from pyro_meta.errors import UsageError
from pyro_meta.models.compute import ComputePotential
from pyro_meta.models.language_model import LanguageModel


def known_factors(model: LanguageModel, load: Tensor | None) -> Tensor:
    """log pi_k - lambda c_k of a layer, up to a constant: [K], or [G, K] of several groups.

    Parameters
    ----------
    model
        Gives the price and the costs.
    load
        The mean load, [K] or [G, K]; None: the prior has none, and counts as uniform.

    Raises
    ------
    UsageError
        Compute has no price that could be followed.
    """
    compute = require_price(model)
    everywhere = torch.arange(model.network.shape.context, device=compute.rate.device)
    costs = compute.costs.of_groups(everywhere).mean(0)  # [K] or [1, K]
    known: Tensor = -compute.rate * (costs - costs.amin(-1, keepdim=True))
    if load is None:
        return known
    return known + load.clamp(min=torch.finfo(load.dtype).tiny).log()


def require_price(model: LanguageModel) -> ComputePotential:
    """The price of compute; raises `UsageError` where there is none."""
    if model.compute is None:
        raise UsageError(
            f"guide.follows: true given, and {type(model.prior).__name__} has no price of compute "
            "to follow; --budget gives it one, and a prior with loads has one"
        )
    return model.compute
