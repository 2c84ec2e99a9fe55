"""A posterior of its own for every token of a few texts: the best that a guide could be."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, Distribution

from pyro_meta.distributions import Choice
from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.network.route import Features
from pyro_meta.posterior.objective import Loss, estimate, frozen

LEAST, MOST = 0.02, 2000.0
"""Bounds of a free concentration."""
TOTAL = 20.0
"""Concentration in all that a free posterior starts with where the guide's is no Dirichlet."""


def free(place: Tensor, of_choices: bool) -> Distribution:
    """What a free place [.., K] means: logits of a choice, or the log of a Dirichlet's a."""
    if of_choices:
        return Choice(logits=place)
    return Dirichlet(place.exp().clamp(LEAST, MOST))


def place_of(dist: Distribution, of_choices: bool) -> Tensor:
    """Where `free` gives about `dist`, [.., K]."""
    if of_choices:
        return dist.mean.clamp(min=1e-6).log()
    total = TOTAL * dist.mean
    a = dist.concentration if isinstance(dist, Dirichlet) else total
    return a.clamp(LEAST, MOST).log()


class FreePosterior(Guide):
    """q(alpha_l,t), a Dirichlet or a choice, free for each layer and token of fixed texts.

    It stands where the guide stood, and is executed as the guide was.

    Parameters
    ----------
    guide
        Whose model and loads it takes over.
    tokens
        The texts, [B, T]. It starts at the guide's posteriors along its deployed route.
    """

    of_choices = None

    def __init__(self, guide: Guide, tokens: Tensor) -> None:
        super().__init__(guide.model)
        self.depth, self.load_posterior = guide.depth, guide.load_posterior
        self.place = nn.Parameter(_places_of(guide, tokens))  # [L, B, T, K]
        self.to(tokens.device)

    def posterior(self, layer: int, features: Features) -> Distribution:
        return free(self.place[layer], self.model.prior.of_choices)


def fit(
    posterior: FreePosterior,
    tokens: Tensor,
    loss: Loss,
    kl_weight: float,
    steps: int,
    rate: float = 0.1,
) -> None:
    """Fit `posterior` in place to its texts by the objective of training, with the network frozen.

    On one draw a step, gradients through hard routes straight through.
    """

    def objective() -> Tensor:
        return estimate(posterior, tokens, loss).loss(kl_weight).sum() * tokens.shape[1]

    torch.manual_seed(1)
    with frozen(posterior.model):
        descend(posterior.place, objective, steps, rate)


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


def _places_of(guide: Guide, tokens: Tensor) -> Tensor:
    """The guide's posteriors along its deployed route, [L, B, T, K]."""
    of_choices = guide.model.prior.of_choices
    with torch.no_grad():
        walked = walk(guide.model, guide, tokens, along_means())
    found = [place_of(dist, of_choices) for dist, _ in walked.posteriors]
    return torch.stack([part.expand(*walked.means[0].shape) for part in found]).clone()
