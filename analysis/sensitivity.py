"""What shares of mechanisms react to: power-scaling of prior and likelihood, without training anew.

How would the posterior move if its prior, or its likelihood, counted a little more? Draws are
weighed by p(alpha)^(a - 1), or by p(y | alpha)^((a - 1) / w), for a beside 1, and the distance that
the distribution of a figure moves by is taken per doubling of a (Kallioinen et al. 2024, Stat
Comput 34, 57; ArviZ's `psense`). Above .05 a figure reacts. Draws of the guide stand for p_w, as
everywhere.

Text by text, since texts are independent given the loads of the prior: of the shares that
mechanisms have of a layer's tokens in the text, and of its cost. A hundred draws move a little
under any weights. So the same is done with figures that chance has dealt to the draws anew, and
what reacts no more than they do is not told apart from chance.

Shapes: S draws, B texts, L layers (and groups), K mechanisms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_meta.analysis import arviz_versions
from pyro_meta.analysis.arviz_groups import dataset
from pyro_meta.analysis.diversity import Array, Choices
from pyro_meta.analysis.reading import MOST_ROWS, Reading

COMPONENTS = ("prior", "likelihood")
SENSITIVE = 0.05
"""From where on a figure reacts (Kallioinen et al. 2024)."""
MOST_TEXTS = 6
LEAST_DRAWS = 20
SHUFFLES = 10
"""Times that chance deals the figures to the draws anew."""
MOST_MOVED = 0.1
"""Standard deviation of the log weights, at most: a small step, so that few draws carry it all."""


@dataclass(frozen=True)
class Reaction:
    """How figures react to one component, by text."""

    share: Array
    """Distance per doubling, of the mechanism that moves most, [B, L]; NaN where none varies."""
    chance: Array
    """The same of figures dealt anew: what 95% of them stay below, averaged over texts, [L]."""
    cost: Array
    """Distance per doubling of the cost, [B]."""
    cost_chance: float

    @property
    def by_layer(self) -> Array:
        """Mean over texts, [L]."""
        return _mean(self.share)

    @property
    def reacts(self) -> list[bool | None]:
        """By layer whether its shares react; None where that is not told apart from chance."""
        return [_state(*pair) for pair in zip(self.by_layer, self.chance, strict=True)]

    def to_json(self) -> dict[str, Any]:
        return {
            "load_by_layer": self.by_layer.tolist(),
            "chance_by_layer": self.chance.tolist(),
            "reacts_by_layer": self.reacts,
            "cost": float(_mean(self.cost)),
            "cost_chance": self.cost_chance,
        }


@dataclass(frozen=True)
class Sensitivity:
    """How shares and cost react to prior and likelihood."""

    rows: list[int]
    """Layers (and groups) that are looked at."""
    texts: int
    of: Mapping[str, Reaction]
    """By component."""

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "texts": self.texts,
            **{component: reaction.to_json() for component, reaction in self.of.items()},
        }


def power_scaled(reading: Reading) -> Sensitivity | None:
    """How shares react in the first texts; of many layers, in those with the most mixed routes.

    None where nothing varies, the guide has no density, or draws are too few.
    """
    S, texts = reading.log_prior.shape
    if S < LEAST_DRAWS or not np.isfinite(reading.log_prior).all():
        return None
    rows = sorted(reading.rows[:MOST_ROWS])
    drawn = reading.sequence[: reading.draws.shape[2]]
    rng = np.random.default_rng(0)
    found: dict[str, list[Any]] = {component: [] for component in COMPONENTS}
    for text in range(min(texts, MOST_TEXTS)):
        tokens = drawn == text
        routes = reading.draws[:, rows][:, :, tokens].astype(float)  # [S, L, T, K]
        share = routes.mean(2)
        cost = (routes * reading.costs[tokens]).sum(-1).mean((1, 2))
        if not np.ptp(share, axis=0).any():
            continue
        order = [rng.permutation(S) for _ in range(SHUFFLES)]
        densities = {
            "prior": reading.log_prior[:, text],
            "likelihood": reading.log_likelihood[:, text] / reading.kl_weight,
        }
        for component, density in densities.items():
            found[component].append(_react(component, density, share, cost, order))
    if not found["prior"]:
        return None
    return Sensitivity(
        rows, len(found["prior"]), {name: _joined(parts) for name, parts in found.items()}
    )


def step(density: Array) -> float:
    """By how much more a component counts, given its log density [S], nats."""
    return min(arviz_versions.DELTA, MOST_MOVED / max(float(np.std(density)), 1e-12))


def _react(
    component: str, density: Array, share: Array, cost: Array, order: Sequence[Choices]
) -> tuple[Array, Array, float, Array]:
    """Distances of share [S, L, K] and cost [S] -> [L], chance [n, L], scalar, chance [n]."""
    dealt = np.stack([share[one] for one in order], 1)  # [S, n, L, K]
    costs = np.stack([cost[one] for one in order], 1)
    figures = {"share": share, "cost": cost, "dealt": dealt, "costs": costs}
    dims = {
        "share": ("layer", "mechanism"),
        "dealt": ("shuffle", "layer", "mechanism"),
        "costs": ("shuffle",),
    }
    groups = {
        "posterior": dataset(figures, dims),
        f"log_{component}": dataset({"joint": density}, {}),
    }
    data = arviz_versions.from_datasets(groups, {})
    moved = arviz_versions.psense(data, component, list(figures), step(density))
    return (
        _most(moved["share"], share),
        _most(moved["dealt"], share),
        float(moved["cost"]) if np.ptp(cost) else float("nan"),
        moved["costs"],
    )


def _most(moved: Array, share: Array) -> Array:
    """The greatest distance over mechanisms, [.., L, K] -> [.., L]; NaN where no share varies."""
    varies = np.ptp(share, axis=0) > 0  # [L, K]
    most = np.where(varies, moved, -np.inf).max(-1)
    return np.where(varies.any(-1), most, np.nan)


def _joined(parts: list[tuple[Array, Array, float, Array]]) -> Reaction:
    share, dealt, cost, costs = (np.array(part) for part in zip(*parts, strict=True))
    chance = np.quantile(_mean(dealt), 0.95, axis=0)  # of means over texts, [n, L]
    return Reaction(share, chance, cost, float(np.quantile(_mean(costs), 0.95)))


def _mean(by_text: Array) -> Array:
    """Mean over texts of what is known, [B, ..] -> [..]; NaN where nothing is."""
    known = np.isfinite(by_text)
    total = np.where(known, by_text, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _state(moved: float, chance: float) -> bool | None:
    if not np.isfinite(moved):
        return None
    if moved < SENSITIVE:
        return False
    return True if moved > chance else None


def verdict(found: Sensitivity | None) -> tuple[str, bool | None, str]:
    """Answer, whether it is good, and reason: does the text, not the prior alone, decide shares?

    Yes: the likelihood moves the shares of every layer where any moves. No: in some layer the prior
    does and the likelihood does not. Undecided: chance would do the same.
    """
    nothing = "does not apply", None, "no share varies, or there is no density to scale"
    if found is None:
        return nothing
    prior, likelihood = (found.of[component] for component in COMPONENTS)
    if not np.isfinite(prior.by_layer + likelihood.by_layer).any():
        return nothing
    pairs = list(zip(prior.reacts, likelihood.reacts, strict=True))
    told = [sum(one is True for one in reaction.reacts) for reaction in (prior, likelihood)]
    moved = [
        f"the {name} moves the shares by {_mean(one.by_layer):.3g} (chance up to "
        f"{_mean(one.chance):.3g}), beyond chance in {layers}"
        for name, one, layers in zip(COMPONENTS, (prior, likelihood), told, strict=True)
    ]
    reason = (
        f"per doubling {moved[1]} of {len(pairs)} layers, {moved[0]} (distances of distributions, "
        f"means over layers; from {SENSITIVE} on shares react; {found.texts} texts)"
    )
    if any(pair == (True, False) for pair in pairs):
        return "no", False, reason
    moving = [ours for theirs, ours in pairs if (theirs, ours) != (False, False)]
    if moving and all(ours is True for ours in moving):
        return "yes", True, reason
    return "undecided", None, reason
