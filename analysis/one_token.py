"""What belief.json says of single tokens: checked, judged, and put into rows for the page.

See `pyro_meta.posterior.token_figures`, which measures it. S layers and groups.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_meta.analysis import documents
from pyro_meta.analysis.estimates import Estimate

EFFICIENT = 0.5
"""Effective share of draws that is wanted, in the median token."""
MOST_GAP = 0.01
"""Gap that is wanted at most, as a share of the loss."""
NUMBERS = (
    "kl_weight", "texts", "tokens", "loss", "judged", "choices", "efficiency_median", "kl_mean",
    "rank_mean", "first_share", "efficiency_median_given_targets",
    "best_efficiency_median_given_targets",
)  # fmt: skip
OF_SITE = ("layer", "group", "efficiency_median", "kl_mean", "at_stake_mean")
UNITS = ("whole routes", "choices of one layer and group")


def require_whole(found: Any, name: str) -> None:
    """Raise `ValueError` unless the section `one_token` of belief.json can be one."""
    if not isinstance(found, dict):
        raise ValueError(f"{name}: one_token holds no object")
    for key in NUMBERS:
        documents.number(found, key, name)
    if found["loss"] <= 0 or found.get("of") not in UNITS:
        raise ValueError(f"{name}: one_token is of {found.get('of')!r:.40}")
    _gap(found["gap"], name)
    _gap(found["conditioning"], name)
    for key in ("efficiency_interval", "indifference_interval"):
        _interval(found, key, name)
    _or_none(found, "indifference", name)
    if not isinstance(found["by_site"], list) or not found["by_site"]:
        raise ValueError(f"{name}: one_token has no layers")
    for site in found["by_site"]:
        for key in OF_SITE:
            documents.number(site, key, name)
        _gap(site["gap"], name)
        _or_none(site, "indifference", name)


def estimate(found: Mapping[str, Any], value: str, interval: str) -> Estimate:
    """A value and its interval, which is infinite where the file has none."""
    low, high = found[interval]
    number = float("nan") if found[value] is None else float(found[value])
    return Estimate(number, (-np.inf if low is None else low, np.inf if high is None else high))


def gap_of(found: Mapping[str, Any], of: str = "gap") -> Estimate:
    """A gap in nats per token."""
    return estimate(found[of], "value", "interval")


def as_share(gap: Estimate, loss: float) -> Estimate:
    """The same as a share of the loss."""
    low, high = gap.interval
    return Estimate(gap.value / loss, (low / loss, high / loss))


def judged(found: Mapping[str, Any]) -> str:
    """What efficiency, KL and rank are of, with how many choices there are."""
    of, choices, places = found["of"], int(found["choices"]), len(found["by_site"])
    if of == UNITS[0]:
        of = f"tokens, {choices} whole routes of each (one choice in each of {places} places)"
    return f"{int(found['judged'])} {of}"


def _gap(gap: Any, name: str) -> None:
    documents.number(gap, "value", name)
    documents.number(gap, "share_of_loss", name)
    _interval(gap, "interval", name)


def _interval(found: Mapping[str, Any], key: str, name: str) -> None:
    ends = found.get(key)
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"{name} has no interval for {key}")
    for end in ends:
        _or_none({key: end}, key, name)


def _or_none(found: Mapping[str, Any], key: str, name: str) -> None:
    """A number, or None where nothing could be said."""
    if found[key] is not None:
        documents.number(found, key, name)
