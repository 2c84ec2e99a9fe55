"""What the objective would gain if every token had a posterior of its own, the network frozen.

    amortisation gap    J(q_guide) - J(q_free | x)
    conditioning gap    J(q_free | x) - J(q_free | x, y)

(Cremer et al. 2018, arXiv 1801.03558; Bayer et al. 2021, arXiv 2101.07046.) q_free | x, y is fitted
to the targets, q_free | x to what the deployed route predicts in their place; all are judged on the
targets. A router that runs before y is known can close the first gap alone. Gradients through hard
routes are biased and predictions are not the truth, so that the first is at least what is found.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from pyro_meta.guides import Guide
from pyro_meta.posterior.free_posterior import FreePosterior, fit
from pyro_meta.posterior.objective import Loss, Parts, against, against_prediction, averaged

TEXTS, LENGTH, STEPS, DRAWS = 4, 256, 60, 16


@dataclass(frozen=True)
class Gap:
    """A difference of objectives, averaged over texts, nats per token."""

    gap: float
    interval: tuple[float, float]
    """95% t-interval for other texts."""
    share_of_loss: float
    """gap / J(q_guide)."""


@dataclass(frozen=True)
class Amortisation:
    """How far the guide is from the best posterior of each token, for one tempering w."""

    kl_weight: float
    """w of the objective."""
    loss: float
    """J(q_guide), nats per token."""
    nll: list[float]
    """E[-log p(y | alpha)] of the guide, of q_free | x and of q_free | x, y."""
    kl: list[float]
    """KL(q || p) of the same, untempered."""
    amortisation: Gap
    conditioning: Gap
    texts: int
    tokens: int
    """Tokens in all texts."""


def amortisation_gap(
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    kl_weight: float,
    texts: int = TEXTS,
    length: int = LENGTH,
    steps: int = STEPS,
    draws: int = DRAWS,
) -> Amortisation:
    """The gaps on the first `length` tokens of the first texts of tokens and targets [B, T]."""
    tokens, targets = (part[:texts, :length] for part in windows)
    came = against(targets)

    def free(loss: Loss) -> Parts:
        posterior = FreePosterior(guide, tokens)
        fit(posterior, tokens, loss, kl_weight, steps)
        return averaged(posterior, tokens, came, draws)

    found = [
        averaged(guide, tokens, came, draws),
        free(against_prediction(guide, tokens)),
        free(came),
    ]
    ours, without_y, with_y = (parts.loss(kl_weight).cpu().numpy() for parts in found)
    loss = float(ours.mean())
    return Amortisation(
        kl_weight=kl_weight,
        loss=loss,
        nll=[float(parts.nll.mean()) for parts in found],
        kl=[float(parts.kl.mean()) for parts in found],
        amortisation=_gap(ours - without_y, loss),
        conditioning=_gap(without_y - with_y, loss),
        texts=len(tokens),
        tokens=tokens.numel(),
    )


def _gap(difference: np.ndarray, loss: float) -> Gap:
    """From the difference of each text, [B]."""
    mean, n = float(difference.mean()), len(difference)
    half = 0.0
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / np.sqrt(n))
    return Gap(mean, (mean - half, mean + half), mean / loss)
