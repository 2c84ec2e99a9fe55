"""Three collapses of a router, told apart, and the numbers behind them.

q = p: the guide says what the prior says. Token-blind: every token is told the same. One mechanism:
nothing is left to choose. Each is asked of every layer and group by itself, so that one layer that
routes does not speak for the others. L layers, N tokens, K mechanisms; KL in nats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_meta.analysis.diversity import Array, Choices, Mask, spread
from pyro_meta.analysis.estimates import CONFIDENCE, RESAMPLES, Estimate, State

PRIOR_KL = 0.01
BLIND_SPREAD = 1e-3
DOMINANT_SHARE = 0.95
ACTIVE_VARIANCE = 1e-3
DEAD_SHARE = 0.1
"""A mechanism with less than so much of an even share is dead."""

Figure = Callable[[dict[str, Array]], Array]
"""Of sums by name."""


@dataclass(frozen=True)
class Check:
    """What a layer that routes does, asked of every layer; yes is good."""

    question: str
    why: str
    """What it means where the answer is no."""
    measure: str
    threshold: float
    is_least: bool
    """Whether the threshold is the least that is wanted, or the most."""
    estimates: list[Estimate]
    """By layer, with intervals for other sequences."""

    @property
    def states(self) -> list[State]:
        """By layer."""
        return [
            one.at_least(self.threshold) if self.is_least else one.at_most(self.threshold)
            for one in self.estimates
        ]


def checks(means: Array, kl: Array, choice: Choices, runs: Mask, sequence: Choices) -> list[Check]:
    """The three collapses, each asked of every layer.

    Parameters
    ----------
    means
        Posterior means, [L, N, K].
    kl
        KL(q || p) of each layer and token, [L, N].
    choice
        What runs, [L, N]; -1 where a mixture does.
    runs
        Which tokens run the layer, [L, N]; shares are of these.
    sequence
        Which sequence a token is of, [N], one after the other.
    """
    shares = means if (choice < 0).any() else np.eye(means.shape[-1])[choice]
    among = runs | ~runs.any(1, keepdims=True)  # a layer that nobody runs: all
    texts = _Sums.over(
        sequence, kl=kl, first=means, second=means.astype(float) ** 2,
        share=shares * among[..., None], among=among,
    )  # fmt: skip
    leader = texts.whole["share"].argmax(-1)  # [L]
    return [
        Check(
            "Does it say more than its prior?",
            "a guide that only repeats its prior has learned nothing",
            "mean KL(q||p), nats per token", PRIOR_KL, True,
            list(texts.estimates(lambda sums: sums["kl"] / sums["count"])),
        ),
        Check(
            "Does it tell tokens apart?",
            "a router that tells every token the same could be a constant",
            "variance of posterior means over tokens", BLIND_SPREAD, True,
            list(texts.estimates(_spread_of)),
        ),
        Check(
            "Is more than one mechanism in use?",
            "where one runs for all tokens there is nothing to route",
            "share of tokens that run the leading mechanism", DOMINANT_SHARE, False,
            list(texts.estimates(lambda sums: _share_of(sums, leader))),
        ),
    ]  # fmt: skip


def _spread_of(sums: dict[str, Array]) -> Array:
    """Variance over tokens, summed over mechanisms, [.., L]."""
    count = sums["count"][..., None]
    variance: Array = (sums["second"] / count - (sums["first"] / count) ** 2).sum(-1)
    return np.maximum(variance, 0.0)


def _share_of(sums: dict[str, Array], leader: Choices) -> Array:
    """Share of tokens that run the leading mechanism, [.., L]."""
    of_leader = sums["share"][..., np.arange(len(leader)), leader]
    found: Array = of_leader / np.maximum(sums["among"], 1)
    return found


@dataclass(frozen=True)
class _Sums:
    """Sums over tokens, and those of sequences drawn again and again."""

    whole: dict[str, Array]
    drawn: dict[str, Array] | None
    """Each with a dimension of draws in front; None: there is a single sequence."""

    @classmethod
    def over(cls, sequence: Choices, **values: NDArray[Any]) -> "_Sums":
        """Of values [L, N, ..], and of how many tokens there are, `count`."""
        starts = np.concatenate([[0], np.flatnonzero(np.diff(sequence)) + 1])
        texts = len(starts)
        sums = {
            name: np.moveaxis(np.add.reduceat(x, starts, 1, dtype=float), 1, 0)  # [B, L, ..]
            for name, x in values.items()
        }
        sums["count"] = np.diff([*starts, len(sequence)]).astype(float)[:, None]  # [B, 1]
        whole = {name: x.sum(0) for name, x in sums.items()}
        if texts < 2:
            return cls(whole, None)
        counts = np.random.default_rng(0).multinomial(texts, np.full(texts, 1 / texts), RESAMPLES)
        times = counts.astype(float)
        drawn = {
            name: (times @ x.reshape(texts, -1)).reshape(RESAMPLES, *x.shape[1:])
            for name, x in sums.items()
        }
        return cls(whole, drawn)

    def estimates(self, figure: Figure) -> Iterator[Estimate]:
        """A figure of sums, by layer, with intervals for other sequences."""
        values = np.atleast_1d(figure(self.whole))
        if self.drawn is None:
            yield from (Estimate(float(value), (-np.inf, np.inf)) for value in values)
            return
        tail = (1 - CONFIDENCE) / 2
        ends = np.quantile(figure(self.drawn), [tail, 1 - tail], axis=0).T
        for value, (low, high) in zip(values, ends, strict=True):
            yield Estimate(float(value), (float(low), float(high)))


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


def collapse_verdicts(means: Array, kl: Array, shares: Array) -> list[Verdict]:
    """The three collapses of a whole router: only where no layer is spared is it collapsed.

    By layer they are asked in `checks`.

    Parameters
    ----------
    means
        Posterior means, [L, N, K].
    kl
        KL(q || p) of each layer and token, [L, N].
    shares
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
            measure="share of tokens that run the leading mechanism, where it leads least,",
            value=float(shares.max(-1).min()),
            threshold=DOMINANT_SHARE,
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


def dead_mechanisms(shares: Array) -> Mask:
    """Which mechanisms run for under a tenth of an even share of tokens: [L, K] -> [L, K].

    Under a prior that knows costs, a dead mechanism may be a saving and not a fault.
    """
    return shares < DEAD_SHARE / shares.shape[-1]


def split(kl: Array, information: Array) -> Array:
    """The marginal part of a KL: E_t KL(q_t || p_t) - I, [L] each.

    E_t KL(q_t || p) = I(token; z) + KL(mean q || p) (Hoffman & Johnson 2016, "ELBO surgery"): what
    a token pays to be told apart from others, and what all pay alike for leaving the prior. Of
    choices, and where the prior moves with the position, the second is E_t E_q_t[log mean q / p_t].
    Of weights I of the choices alone is known, which is at most that of the weights.
    """
    return kl - information


def against_prior(shares: Array, prior: Array) -> Array:
    """KL(shares || prior mean), nats, [L, K] each -> [L]: how far tokens have moved the choice."""
    ratio = np.where(shares > 0, shares / np.maximum(prior, 1e-12), 1.0)
    return (shares * np.log(ratio)).sum(-1)
