"""What uncertainty is good for: does it foretell harm, and are probabilities what they say?

N tokens, B bins. Losses in nats per token.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pyro_meta.analysis.diversity import Array

BINS = 15
"""Bins of a calibration curve."""
COVERAGES = 100
"""Points of a risk-coverage curve."""


@dataclass(frozen=True)
class ByUncertainty:
    """A loss difference in equal parts of the tokens, from the most to the least certain."""

    uncertainty: Array
    """Mean uncertainty of each part, [B]."""
    difference: Array
    """Mean difference, [B]."""
    error: Array
    """Standard error of that mean, tokens taken as independent, [B]."""
    rank_correlation: float
    """Spearman's, of uncertainty and difference, over tokens; NaN where one does not vary."""


def by_uncertainty(uncertainty: Array, difference: Array, parts: int = 10) -> ByUncertainty:
    """Means of `difference` [N] in equal parts of the tokens, ordered by `uncertainty` [N]."""
    order = np.array_split(np.argsort(uncertainty, kind="stable"), min(parts, len(uncertainty)))
    means = [float(difference[part].mean(dtype=float)) for part in order]
    errors = [difference[part].std(dtype=float) / np.sqrt(len(part)) for part in order]
    varies = np.ptp(uncertainty) > 0 and np.ptp(difference) > 0
    correlation = stats.spearmanr(uncertainty, difference).statistic if varies else np.nan
    return ByUncertainty(
        np.array([uncertainty[part].mean(dtype=float) for part in order]),
        np.array(means),
        np.array(errors),
        float(correlation),
    )


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the tokens that are kept, the least uncertain first."""

    coverage: Array
    """Share of tokens that are kept, [B]."""
    risk: Array
    """Share of wrong predictions among them, [B]."""
    area: float
    """Mean of the risk over all coverages: lower is better, the overall error rate is chance."""


def risk_coverage(uncertainty: Array, is_wrong: Array) -> RiskCoverage:
    """Risk by coverage (El-Yaniv & Wiener 2010, JMLR 11): uncertainty and is_wrong [N]."""
    N = len(uncertainty)
    order = np.argsort(uncertainty, kind="stable")
    risks = np.cumsum(is_wrong[order], dtype=float) / np.arange(1, N + 1)
    kept = np.unique(np.linspace(max(1, N // COVERAGES), N, min(COVERAGES, N)).round().astype(int))
    return RiskCoverage(kept / N, risks[kept - 1], float(risks.mean()))


@dataclass(frozen=True)
class Calibration:
    """Stated and observed frequencies in bins of equal mass."""

    stated: Array
    """Mean probability of the likeliest token, [B]."""
    observed: Array
    """How often it came, [B]."""
    count: Array
    """Tokens in the bin, [B]."""
    error: float
    """Expected calibration error, sum_b n_b / N |observed_b - stated_b|."""


def calibration(probability: Array, is_right: Array, bins: int = BINS) -> Calibration:
    """Calibration of the likeliest prediction, [N] each (Guo et al. 2017, arXiv 1706.04599)."""
    parts = np.array_split(np.argsort(probability, kind="stable"), min(bins, len(probability)))
    stated = np.array([probability[part].mean(dtype=float) for part in parts])
    observed = np.array([is_right[part].mean(dtype=float) for part in parts])
    count = np.array([len(part) for part in parts])
    error = float((count * np.abs(observed - stated)).sum() / count.sum())
    return Calibration(stated, observed, count, error)
