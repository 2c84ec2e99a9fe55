"""The gaps of a handful of tokens, whose posterior and evidence are known.

    J(q_guide) + w log Z  =  [J(q_guide) - J(q_best)]  +  [J(q_best) + w log Z]
                             amortisation, conditioning    approximation

with J(q) = E_q[-log p(y | alpha)] + w KL(q || p), Z the evidence of the tempered posterior and
q_best the best Dirichlets, or choices, for these very tokens (Cremer et al. 2018, arXiv
1801.03558). Where Z has no finite sum it is bounded from below by importance weights of q_best
(Burda et al. 2016, arXiv 1509.00519), and the approximation gap is then at least what is found.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Distribution, kl_divergence

from pyro_meta.distributions import Choice
from pyro_meta.posterior import nuts
from pyro_meta.posterior.drawing import in_double
from pyro_meta.posterior.exact import Exact, Handful, Moments
from pyro_meta.posterior.free_posterior import LEAST, TOTAL, descend, free
from pyro_meta.posterior.objective import frozen

DRAWS, STEPS, DRAWS_A_STEP = 1000, 120, 16


@dataclass(frozen=True)
class Beside:
    """The guide beside the truth on a handful of tokens, nats per token."""

    kl_weight: float
    tokens: int
    """n, of all layers."""
    method: str
    """How the truth was found: `enumeration`, or `NUTS`."""
    guide: float
    """J of the guide."""
    best: float
    """J of the best Dirichlets, or choices."""
    optimum: float
    """-w log Z, or its upper bound."""
    amortisation: float
    """J of guide - J of best; the conditioning gap is in it."""
    approximation: float
    """J of best + w log Z."""
    moments: dict[str, list[Any]]
    """Mean and deviation of the routes, [L][n][K] each, of guide and truth."""
    chain: dict[str, float] | None
    """Least effective sample size and greatest split R-hat of NUTS."""


def beside_truth(handful: Handful, draws: int = DRAWS, steps: int = STEPS) -> Beside | None:
    """Compare; None for a guide without a density, or choices too many to be enumerated."""
    w, n = handful.kl_weight, handful.count
    exact = handful.enumerate()
    if not handful.has_density or (exact is None and handful.of_choices):
        return None
    torch.manual_seed(0)
    routes, ratio, likelihood = handful.draw_guide(draws)
    ours = float(-(likelihood + w * ratio).mean())
    with frozen(handful.model):
        best = _best(handful, steps)
    objective, log_weight = _judge(handful, best, draws)
    chain = None
    if exact is None:
        with frozen(handful.model):
            chain = nuts.sample(handful, best.mean)
        optimum = -w * (float(log_weight.logsumexp(0)) - math.log(draws))
    else:
        optimum = -w * exact.log_evidence
    return Beside(
        kl_weight=w,
        tokens=n,
        method="NUTS" if chain else "enumeration",
        guide=ours / n,
        best=objective / n,
        optimum=optimum / n,
        amortisation=(ours - objective) / n,
        approximation=(objective - optimum) / n,
        moments=_side_by_side(Moments.of(routes), exact, chain),
        chain=None if chain is None else _facts(chain),
    )


def _facts(chain: nuts.Chain) -> dict[str, float]:
    return {
        "effective": chain.effective,
        "split_r_hat": chain.split_r_hat,
        "samples": chain.samples,
    }


def _best(handful: Handful, steps: int) -> Distribution:
    """The best for the tokens, batch [L, n]; found like the free posteriors of texts."""
    means = handful.means.double()
    place = means.clamp(min=1e-6).log() if handful.of_choices else (means * TOTAL + LEAST).log()
    place.requires_grad_()

    def objective() -> Tensor:
        q = free(place, handful.of_choices)
        draws = q.rsample(torch.Size([DRAWS_A_STEP]))
        return -handful.log_likelihood(draws).mean() + handful.kl_weight * _kl(handful, q, draws)

    descend(place, objective, steps)
    with torch.no_grad():
        return free(place, handful.of_choices)


def _kl(handful: Handful, q: Distribution, draws: Tensor) -> Tensor:
    """KL(q || p) and the price of compute, summed over the tokens.

    Estimated by the draws where it has no closed form.
    """
    if handful.of_choices:
        price = handful.charge(q.mean[None])[0]
        return kl_divergence(q, Choice(logits=handful.prior_logits)).sum() + price
    priors = [in_double(prior) for prior in handful.priors]
    if isinstance(q, Dirichlet) and all(isinstance(prior, Dirichlet) for prior in priors):
        parts = [
            kl_divergence(Dirichlet(q.concentration[layer]), prior).sum()
            for layer, prior in enumerate(priors)
        ]
        return torch.stack(parts).sum() + handful.charge(q.mean[None])[0]
    return (q.log_prob(draws).sum((1, 2)) - handful.log_prior(draws)).mean()


def _judge(handful: Handful, q: Distribution, draws: int) -> tuple[float, Tensor]:
    """J of q, summed over the tokens, and its log weights log p_w - log q + log Z, [S]."""
    with torch.no_grad():
        routes = q.rsample(torch.Size([draws]))
        likelihood = handful.log_likelihood(routes)
        ratio = handful.log_prior(routes) - q.log_prob(routes).sum((1, 2))
        objective = -likelihood.mean() + handful.kl_weight * _kl(handful, q, routes)
    return float(objective), likelihood / handful.kl_weight + ratio


def _side_by_side(
    guide: Moments, exact: Exact | None, chain: "nuts.Chain | None"
) -> dict[str, list[Any]]:
    truth = exact.moments if exact else chain.moments if chain else guide
    named = {"guide": guide, "truth": truth}
    return {
        f"{who}_{what}": getattr(moments, what).tolist()
        for who, moments in named.items()
        for what in ("mean", "deviation")
    }
