"""The one place that knows which ArviZ is installed: 0.23 (Python 3.11), or 1.x (from 3.12 on)."""

import importlib
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

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


DELTA = 0.01
"""By how much a component counts more, or less, as its sensitivity is measured."""


def psense(
    data: Any, component: str, names: Sequence[str], delta: float = DELTA
) -> dict[str, np.ndarray]:
    """Power-scaling sensitivity of posterior variables, each in its own shape.

    Sums the group `log_prior` or `log_likelihood` to a log density for each draw, weighs the draws
    by its power 1 / (1 + delta) and 1 + delta, and gives the distance that their distribution moves
    by, per doubling of the power (Kallioinen et al. 2024, arXiv 2107.14054).

    Parameters
    ----------
    data
        Groups of `from_datasets`.
    component
        `prior` or `likelihood`.
    names
        Variables of the posterior.
    delta
        Step.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # a heavy tail is told otherwise
        if IS_LEGACY:
            found = _arviz().psens(data, component=component, var_names=list(names), delta=delta)
        else:
            found = _arviz("arviz_stats").psense(
                data, group=component, var_names=list(names), alphas=(1 / (1 + delta), 1 + delta)
            )
    whole = found if isinstance(found, xr.Dataset) else found.to_dataset(name=names[0])
    return {name: np.asarray(whole[name].values) for name in names}


def from_datasets(groups: Mapping[str, xr.Dataset], attributes: Mapping[str, str]) -> Any:
    """Groups as ArviZ works on them, each with the attributes of all.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Of 0.23, or of 1.x.
    """
    told = {name: group.assign_attrs(attributes) for name, group in groups.items()}
    if IS_LEGACY:
        return _arviz().InferenceData(**told)
    return xr.DataTree.from_dict(told)
