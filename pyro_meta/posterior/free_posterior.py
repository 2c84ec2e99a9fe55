"""Posteriors that are free for each of a few tokens, and how they are fitted."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from pyro_meta.distributions import Choice

LEAST, MOST = 0.02, 2000.0
"""Bounds of a free concentration."""
TOTAL = 20.0
"""Concentration in all that a free posterior starts with where the guide's is no Dirichlet."""


def free(place: Tensor, of_choices: bool) -> Distribution:
    """What a free place [.., K] means: logits of a choice, or the log of a Dirichlet's a."""
    if of_choices:
        return Choice(logits=place)
    return Dirichlet(place.exp().clamp(LEAST, MOST))


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
