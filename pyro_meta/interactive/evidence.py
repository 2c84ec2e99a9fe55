"""The ELBO of one text, from draws of its routes.

    elbo        E_q[log p(y | alpha)] - KL(q || p) - lambda E_q[c]             at w = 1
    as trained  E_q[log p(y | alpha)] - w (KL(q || p) + lambda E_q[c]) - penalty

nats per token. KL and price are those of routes, loads and depth gates together; loads are paid by
the share of their text that this one is (`LanguageModel.share_of_text`).
"""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_meta.guides import Guide
from pyro_meta.inference.elbo import ELBOTerms, Objective


@dataclass(frozen=True, repr=False)
class TextELBO:
    """Estimates over draws, nats per token; a notebook shows them as a table of words."""

    elbo: float
    """At w = 1: a lower bound of the log evidence of the text, where compute has no price."""
    as_trained: float
    """At the temperature w of the run: minus the loss of training."""
    nll: float
    """E_q[-log p(y | alpha)]."""
    kl: float
    """Of routes, loads and depth gates, untempered."""
    compute: float
    """lambda E_q[c]; 0 where compute has no price."""
    kl_weight: float
    """w, the temperature of the run."""
    error: float
    """Standard error of `elbo` over the draws."""
    tokens: int
    """Tokens that are scored: all but the first."""
    draws: int

    def __repr__(self) -> str:
        return (
            f"TextELBO, nats per token: {self.tokens} tokens, {self.draws} draws of their routes\n"
            f"  elbo        {self.elbo:8.4f} ± {self.error:.4f}, at w = 1\n"
            f"  as_trained  {self.as_trained:8.4f}, at w = {self.kl_weight:g}\n"
            f"  nll         {self.nll:8.4f}\n"
            f"  kl          {self.kl:8.4f}\n"
            f"  compute     {self.compute:8.4f}"
        )


def elbo_of(guide: Guide, tokens: Tensor, targets: Tensor, draws: int) -> TextELBO:
    """Of tokens and targets [T], each draw of the routes a forward pass of its own."""
    objective = Objective(guide.model, guide)
    found = [objective(tokens[None], targets[None]) for _ in range(draws)]
    elbos = [-float(terms.nll + _kl(terms) + terms.compute.sum()) for terms in found]
    spread = statistics.stdev(elbos) if draws > 1 else math.nan
    return TextELBO(
        elbo=statistics.fmean(elbos),
        as_trained=-_mean([terms.loss for terms in found]),
        nll=_mean([terms.nll for terms in found]),
        kl=_mean([_kl(terms) for terms in found]),
        compute=_mean([terms.compute.sum() for terms in found]),
        kl_weight=guide.model.temperature,
        error=spread / math.sqrt(draws),
        tokens=len(targets),
        draws=draws,
    )


def _kl(terms: ELBOTerms) -> Tensor:
    return terms.kl.sum() + terms.load_kl.sum() + terms.depth_kl.sum()


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).double().mean())
