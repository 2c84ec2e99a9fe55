"""The one place that knows which ArviZ is installed.

ArviZ 0.23 (Python 3.11) keeps groups in an `InferenceData`, ArviZ 1.x (Python 3.12 and later) in an
`xarray.DataTree`. Files are the same: one netCDF group each.
"""

import importlib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

ENGINE = "h5netcdf"
LEAST_TAIL = 5  # weights that a Pareto tail is fitted to
IS_LEGACY = int(version("arviz").split(".")[0]) < 1


def _arviz() -> Any:
    """The arviz module, without the notice of its rewrite that importing 0.23 gives."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
        return importlib.import_module("arviz")


def load(path: Path) -> dict[str, xr.Dataset]:
    """The groups of a netCDF file, such as posterior.nc or what either ArviZ writes."""
    if IS_LEGACY:
        data = _arviz().from_netcdf(str(path), engine=ENGINE)
        return {name: data[name] for name in data.groups()}
    tree = xr.open_datatree(str(path), engine=ENGINE)
    return {name: child.to_dataset() for name, child in tree.children.items()}


def pareto_k(log_weights: np.ndarray) -> float:
    """k-hat of log weights [S]: the shape of the generalised Pareto fit to the largest ones.

    Infinite where they are too few to fit, as ArviZ 0.23 says it; 1.x fails there.
    """
    S = len(log_weights)
    if min(S / 5, 3 * S**0.5) <= LEAST_TAIL - 1:
        return float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # a high k-hat is what we look for
        if IS_LEGACY:
            return float(_arviz().psislw(log_weights)[1])
        smooth = importlib.import_module("arviz_stats.base").array_stats.psislw
        return float(smooth(-log_weights)[1])  # 1.x takes log likelihoods: weights inverted
