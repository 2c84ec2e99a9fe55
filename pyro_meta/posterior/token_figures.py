"""What the tried choices of single tokens say of a guide, on real targets.

    efficiency      1 / sum_z p(z)^2 / q(z), the effective share of draws of q for p_w(z | x)
    kl              KL(q || p_w(z | x)), nats
    gap             J(q) - J(p_w(. | x)), nats per token: what a better guide would gain
    conditioning    J(p_w(. | x)) - J(p_w(. | x, y)): what no guide can, since it does not see y
    rank            of the guide's likeliest choice in p_w(z | x, y); 1 is the first
    indifference    rank correlation of the entropy of q with how much the choice matters

J is the objective of training for the choice of one token, all others deployed. Where all layers
and groups of a token are tried together, efficiency, KL and rank are those of whole routes; else of
one layer and group at a time. Gaps are summed over layers and groups, each by itself.

Shapes: N tokens, S layers and groups, K choices, M whole routes, P patterns, B texts.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from scipy.stats import rankdata

from pyro_meta.analysis.estimates import Estimate, of_texts, resampled
from pyro_meta.posterior.cross_fitted import given_prefix, objective
from pyro_meta.posterior.one_token import Tried

Array = NDArray[np.floating]
Index = NDArray[np.integer]
FEW_RESAMPLES = 200
"""Of what takes a while."""


def efficiency(log_q: Array, log_p: Array) -> Array:
    """1 / E_q[(p / q)^2], the effective share of draws of q, [.., K] each -> [..], in (0, 1]."""
    found: Array = np.exp(-logsumexp(2 * log_p - log_q, -1))
    return found


def divergence(log_q: Array, log_p: Array) -> Array:
    """KL(q || p) of choices, [.., K] each -> [..], nats."""
    found: Array = (np.exp(log_q) * (log_q - log_p)).sum(-1)
    return found


def ranks(log_q: Array, log_p: Array) -> Array:
    """The place of q's likeliest choice among those of p, from 1 on, [.., K] each -> [..]."""
    best = log_q.argmax(-1)[..., None]
    return (log_p > np.take_along_axis(log_p, best, -1)).sum(-1) + 1.0


def correlation(left: Array, right: Array) -> float:
    """Rank correlation (Spearman) of two series [N]; NaN where one does not vary."""
    a, b = rankdata(left), rankdata(right)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def figures(tried: Tried, kl_weight: float) -> dict[str, Any]:
    """The section `one_token` of belief.json, for the weight of the KL.

    Every interval is for other texts.
    """
    by_layer = tried.features.repeat(tried.groups, 1)  # [N, S, D]
    log_q, log_prior = tried.log_guide, tried.log_prior
    log_x = given_prefix(tried.log_likelihood, log_q, log_prior, by_layer, tried.text, kl_weight)
    log_y = log_softmax(tried.log_likelihood / kl_weight + log_prior, -1)
    ours, best, seeing = (
        objective(one, tried.log_likelihood, log_prior, kl_weight) for one in (log_q, log_x, log_y)
    )  # [N, S]
    text = tried.text
    loss = float(tried.nll.mean() + kl_weight * divergence(log_q, log_prior).sum(1).mean())
    undecided = -(np.exp(log_q) * log_q).sum(-1)  # [N, S]
    at_stake = np.ptp(tried.log_likelihood, axis=-1)
    sites = range(log_q.shape[1])
    parts = []
    for site in sites:
        gap = _by_text(ours[:, site] - best[:, site], text)
        parts.append(
            {
                "layer": site // tried.groups,
                "group": site % tried.groups,
                "efficiency_median": float(np.median(efficiency(log_q[:, site], log_x[:, site]))),
                "kl_mean": float(divergence(log_q[:, site], log_x[:, site]).mean()),
                "gap": _described(of_texts(gap), loss),
                "indifference": correlation(undecided[:, site], at_stake[:, site]),
                "at_stake_mean": float(at_stake[:, site].mean()),
            }
        )
    judged = _judged(tried, log_x, log_y, kl_weight)
    gaps = of_texts(_by_text((ours - best).sum(1), text))
    conditioning = of_texts(_by_text((best - seeing).sum(1), text))
    cares = resampled(
        lambda some: _indifference(undecided, at_stake, text, some), text.max() + 1, FEW_RESAMPLES
    )
    return {
        "kl_weight": kl_weight,
        "texts": int(text.max()) + 1,
        "tokens": len(text),
        "loss": loss,
        **judged,
        "gap": _described(gaps, loss),
        "conditioning": _described(conditioning, loss),
        "indifference": cares.value,
        "indifference_interval": list(cares.interval),
        "by_site": parts,
    }


def _judged(tried: Tried, log_x: Array, log_y: Array, kl_weight: float) -> dict[str, Any]:
    """Efficiency, KL and rank: of whole routes where these were tried, else of each site's choice.

    That of p_w(z | x) itself for p_w(z | x, y) stands beside them: no guide can do much better.
    """
    text, log_q = tried.text, tried.log_guide
    whole = tried.whole
    if whole is not None:
        text, log_q = tried.text[whole.token], whole.log_guide
        sites = np.arange(whole.choices.shape[1])
        log_x = log_x[whole.token][:, sites, whole.choices].sum(-1)  # [M, P, S] -> [M, P]
        log_y = log_softmax(whole.log_likelihood / kl_weight + whole.log_prior, -1)
    elif log_q.shape[1] > 1:
        text = np.repeat(text, log_q.shape[1])
        log_q, log_x, log_y = (x.reshape(-1, x.shape[-1]) for x in (log_q, log_x, log_y))
    else:
        log_q, log_x, log_y = (x[:, 0] for x in (log_q, log_x, log_y))
    found = efficiency(log_q, log_x)
    median = resampled(lambda some: _median(found, text, some), text.max() + 1)
    out = {
        "of": "whole routes" if whole is not None else "choices of one layer and group",
        "judged": len(log_q),
        "choices": log_q.shape[-1],
        "efficiency_median": median.value,
        "efficiency_interval": list(median.interval),
        "efficiency_quantiles": np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(),
        "kl_mean": float(divergence(log_q, log_x).mean()),
        "rank_mean": float(ranks(log_q, log_y).mean()),
        "first_share": float((ranks(log_q, log_y) == 1).mean()),
        "efficiency_median_given_targets": float(np.median(efficiency(log_q, log_y))),
        "best_efficiency_median_given_targets": float(np.median(efficiency(log_x, log_y))),
    }
    if whole is not None:
        ours, best = (
            objective(one, whole.log_likelihood, whole.log_prior, kl_weight)
            for one in (log_q, log_x)
        )
        out["whole_gap"] = asdict(of_texts(_by_text(ours - best, text)))
    return out


def _by_text(values: Array, text: Index) -> Array:
    """Means of values [N] over the tokens of each text, [B]."""
    return np.array([values[text == one].mean() for one in np.unique(text)])


def _described(found: Estimate, loss: float) -> dict[str, Any]:
    """An estimate, also as a share of the loss."""
    return {
        "value": found.value,
        "interval": list(found.interval),
        "share_of_loss": found.value / loss,
    }


def _rows(text: Index, some: Index) -> Index:
    """The tokens of some texts, of those that come twice twice."""
    return np.concatenate([np.flatnonzero(text == one) for one in some])


def _median(values: Array, text: Index, some: Index) -> float:
    return float(np.median(values[_rows(text, some)]))


def _indifference(undecided: Array, at_stake: Array, text: Index, some: Index) -> float:
    """The rank correlation within layers and groups, averaged over those where there is one."""
    rows = _rows(text, some)
    found = [correlation(*pair) for pair in zip(undecided[rows].T, at_stake[rows].T, strict=True)]
    known = [one for one in found if np.isfinite(one)]
    return float(np.mean(known)) if known else float("nan")
