"""Three collapses of a router, told apart, and the numbers behind them.

q = p: the guide says what the prior says. Token-blind: every token is told the same. One mechanism:
nothing is left to choose. L layers, N tokens, K mechanisms; KL in nats.
"""

from dataclasses import dataclass

import numpy as np

from pyro_meta.analysis.diversity import Array, Mask, spread

PRIOR_KL = 0.01
BLIND_SPREAD = 1e-3
DOMINANT_LOAD = 0.95
ACTIVE_VARIANCE = 1e-3
DEAD_SHARE = 0.1
"""A mechanism with less than so much of an even share is dead."""


@dataclass(frozen=True)
class Verdict:
    """Whether a posterior has collapsed in one way, with the number and the threshold."""

    name: str
    question: str
    measure: str
    value: float
    threshold: float
    collapses_above: bool

    @property
    def is_collapsed(self) -> bool:
        if self.collapses_above:
            return self.value > self.threshold
        return self.value < self.threshold

    def __str__(self) -> str:
        side = "above" if self.collapses_above else "below"
        return f"{self.measure} is {self.value:.3g} (collapsed {side} {self.threshold:g})"


def collapse_verdicts(means: Array, kl: Array, loads: Array) -> list[Verdict]:
    """The three collapses, each judged apart.

    Parameters
    ----------
    means
        Posterior means, [L, N, K].
    kl
        KL(q || p) of each layer and token, [L, N].
    loads
        Share of tokens that run each mechanism, [L, K].

    Returns
    -------
    list of Verdict
        `prior`: mean KL below .01 nats per layer (after Lucas et al. 2019, arXiv 1911.02469).
        `token-blind`: spread of the means over tokens below .001 in every layer.
        `one mechanism`: one mechanism is the choice of over 95% of tokens in every layer.
    """
    return [
        Verdict(
            name="prior",
            question="Is q = p?",
            measure="mean KL(q||p) per layer and token, in nats,",
            value=float(kl.mean(dtype=float)),
            threshold=PRIOR_KL,
            collapses_above=False,
        ),
        Verdict(
            name="token-blind",
            question="Is q the same for every token?",
            measure="variance of posterior means over tokens, in the layer where it is widest,",
            value=float(spread(means).max()),
            threshold=BLIND_SPREAD,
            collapses_above=False,
        ),
        Verdict(
            name="one mechanism",
            question="Does one mechanism take everything?",
            measure="load of the leading mechanism, in the layer where it leads least,",
            value=float(loads.max(-1).min()),
            threshold=DOMINANT_LOAD,
            collapses_above=True,
        ),
    ]


def share_at_prior(kl: Array) -> Array:
    """P_t(KL_t < .01) by layer, [L, N] -> [L]: the (eps, delta)-collapse of Lucas et al. 2019."""
    return (kl < PRIOR_KL).mean(-1)


def kl_histogram(kl: Array, bins: int = 40) -> tuple[Array, Array]:
    """Shares of tokens by KL and layer: kl [L, N] -> edges [bins + 1], shares [L, bins].

    The last edge is the 99.5% quantile over all layers; what lies beyond counts in the last bin.
    """
    most = max(float(np.quantile(kl, 0.995)), PRIOR_KL)
    edges = np.linspace(0, most, bins + 1)
    counts = [np.histogram(np.clip(row, 0, most), edges)[0] for row in kl]
    return edges, np.array(counts) / kl.shape[1]


def active_units(means: Array) -> Mask:
    """Which components of the route react to the token: Var_t m_k > .001, [L, N, K] -> [L, K].

    After Burda et al. 2016 (arXiv 1509.00519), who take .01 for a Gaussian latent; on the simplex a
    variance is at most .25.
    """
    return means.var(-2, dtype=float) > ACTIVE_VARIANCE


def dead_mechanisms(loads: Array) -> Mask:
    """Which mechanisms run for under a tenth of an even share of tokens: [L, K] -> [L, K].

    Under a prior that knows costs, a dead mechanism may be a saving and not a fault.
    """
    return loads < DEAD_SHARE / loads.shape[-1]


def against_prior(loads: Array, prior: Array) -> Array:
    """KL(load || prior mean) in nats, [L, K] each -> [L]: how far tokens have moved the choice."""
    ratio = np.where(loads > 0, loads / np.maximum(prior, 1e-12), 1.0)
    return (loads * np.log(ratio)).sum(-1)
