"""A posterior of its own for every token of a few texts: the best that a guide could be."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet

from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.network.route import Features
from pyro_meta.posterior.objective import Loss, estimate, frozen

LEAST, MOST = 0.02, 2000.0
"""Bounds of a free concentration."""
TOTAL = 20.0
"""Concentration in all that a free posterior starts with where the guide's is no Dirichlet."""


class FreePosterior(Guide):
    """q(alpha_l,t) = Dirichlet(a_l,t), with a free a for each layer and token of fixed texts.

    It stands where the guide stood, and is executed as the guide was.

    Parameters
    ----------
    guide
        Whose model, and whose hardening, it takes over.
    tokens
        The texts, [B, T]. It starts at the guide's posteriors along its deployed route.
    """

    def __init__(self, guide: Guide, tokens: Tensor) -> None:
        super().__init__(guide.model)
        self.depth, self.gate_execution = guide.depth, guide.gate_execution
        self.execution.threshold.copy_(guide.execution.hard_below)
        self.execution.price.copy_(guide.execution.price)
        start = _concentration_of(guide, tokens).clamp(LEAST, MOST)
        self.log_concentration = nn.Parameter(start.log())  # [L, B, T, K]
        self.to(tokens.device)

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(self.log_concentration[layer].exp().clamp(LEAST, MOST))


def fit(
    free: FreePosterior,
    tokens: Tensor,
    loss: Loss,
    kl_weight: float,
    steps: int,
    rate: float = 0.1,
) -> None:
    """Fit `free` in place to its texts by the objective of training, with the network frozen.

    On one draw a step, gradients through hard routes straight through.
    """

    def objective() -> Tensor:
        return estimate(free, tokens, loss).loss(kl_weight).sum() * tokens.shape[1]

    torch.manual_seed(1)
    with frozen(free.model):
        descend(free.log_concentration, objective, steps, rate)


def descend(place: Tensor, objective: Callable[[], Tensor], steps: int, rate: float = 0.1) -> None:
    """Move `place` in place to where a noisy objective is least, about.

    Adam (Kingma & Ba 2015), the rate falling to nearly 0; what is kept is the average of the last
    half of the steps.
    """
    optimiser = torch.optim.Adam([place], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    total, kept = torch.zeros_like(place), range(steps // 2, steps)
    for step in range(steps):
        optimiser.zero_grad()
        objective().backward()
        optimiser.step()
        schedule.step()
        if step in kept:
            total += place.detach()
    with torch.no_grad():
        place.copy_(total / len(kept))


def _concentration_of(guide: Guide, tokens: Tensor) -> Tensor:
    """The guide's concentrations along its deployed route, [L, B, T, K]."""
    with torch.no_grad():
        walked = walk(guide.model, guide, tokens, along_means())
    found = [
        dist.concentration if isinstance(dist, Dirichlet) else TOTAL * dist.mean
        for dist, _ in walked.posteriors
    ]
    return torch.stack([part.expand(*tokens.shape, -1) for part in found])
