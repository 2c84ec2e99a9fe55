"""The one place that knows which ArviZ is installed: 0.23 (Python 3.11), or 1.x (from 3.12 on)."""

import importlib
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray

from pyro_meta.errors import UsageError

LEAST_TAIL = 5  # weights that a Pareto tail is fitted to
IS_LEGACY = int(version("arviz").split(".")[0]) < 1


def _arviz(module: str = "arviz") -> Any:
    """A module of ArviZ, without the notice of its rewrite that importing 0.23 gives.

    Raises
    ------
    UsageError
        It does not start: it reads an arvizrc, also one of the current folder.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
        try:
            return importlib.import_module(module)
        except (OSError, ValueError, LookupError) as error:
            raise UsageError(f"ArviZ does not start, as of a broken arvizrc: {error}") from error


def from_groups(groups: Mapping[str, xarray.Dataset]) -> Any:
    """What ArviZ reads: an `InferenceData` of 0.23, or the `xarray.DataTree` of 1.x."""
    if IS_LEGACY:
        return _arviz().InferenceData(**groups)
    return xarray.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})


def pareto_k(log_weights: np.ndarray) -> float:
    """k-hat of log weights [S]: the shape of the generalised Pareto fit to the largest ones.

    Infinite where they are too few to fit, as ArviZ 0.23 says it; 1.x fails there.
    """
    S = len(log_weights)
    if min(S / 5, 3 * S**0.5) <= LEAST_TAIL - 1:
        return float("inf")
    with warnings.catch_warnings(), np.errstate(over="ignore"):  # of a tail without a mean
        warnings.simplefilter("ignore", category=UserWarning)  # a high k-hat is what we look for
        if IS_LEGACY:
            return float(_arviz().psislw(log_weights)[1])
        smooth = _arviz("arviz_stats.base").array_stats.psislw
        return float(smooth(-log_weights)[1])  # 1.x takes log likelihoods: weights inverted
