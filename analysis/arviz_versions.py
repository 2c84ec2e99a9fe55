"""The one place that knows which ArviZ is installed: 0.23 (Python 3.11), or 1.x (from 3.12 on)."""

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
    with _quiet(), np.errstate(invalid="ignore"):  # of what does not vary
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


Size = tuple[float, float]
"""Width and height of a picture in inches."""
INK = "#000000"
"""What ArviZ writes and draws in, on white; pictures may take another."""
TEXT_SIZE = 10
MOST_PREDICTED = 50
"""Predictive draws that a picture shows."""


def plot_forest(data: Any, name: str, size: Size) -> Figure:
    """Medians, quartiles and 90% intervals of a posterior variable, element by element."""
    if not IS_LEGACY:
        options = {"combined": True, "ci_probs": (0.5, 0.9), "point_estimate": "median"}
        return _figure("plot_forest", data, size, var_names=[name], **options)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    _draw("plot_forest", data, var_names=[name], combined=True, hdi_prob=0.9, ax=axes)
    axes.set_title("")
    return figure


def plot_prior_posterior(data: Any, name: str, size: Size, only_both: bool = False) -> Figure:
    """Prior and posterior of each element of a variable, beside and on one another.

    `only_both` leaves out the panels that have one of them, where there is no room.
    """
    if not IS_LEGACY:
        return _figure("plot_prior_posterior", data, size, var_names=[name])
    figure = Figure(figsize=size, layout="constrained")
    rows = int(np.prod(data["posterior"][name].shape[2:]))
    ratios = [0.001, 0.001, 1] if only_both else [1, 1, 1]
    axes = figure.subplots(rows, 3, squeeze=False, width_ratios=ratios)
    _draw("plot_dist_comparison", data, var_names=[name], ax=axes)
    for panel in axes.flat:
        panel.tick_params(labelsize=0.8 * TEXT_SIZE)
        panel.xaxis.set_major_locator(MaxNLocator(3))
    for left_out in axes[:, :2].flat if only_both else ():
        figure.delaxes(left_out)
    return figure


def plot_predictive_check(data: Any, name: str, size: Size) -> Figure:
    """Cumulative distribution of what came, among those of at most 50 predictive draws."""
    predicted = data["posterior_predictive"][name]
    shown = min(MOST_PREDICTED, predicted.sizes["chain"] * predicted.sizes["draw"])
    if not IS_LEGACY:
        kind = {"kind": "ecdf", "num_samples": shown}
        return _figure("plot_ppc_dist", data, size, var_names=[name], **kind)
    figure = Figure(figsize=size, layout="constrained")
    options = {"kind": "cumulative", "num_pp_samples": shown, "random_seed": 0}
    _draw("plot_ppc", data, var_names=[name], ax=figure.subplots(), **options)
    return figure


def plot_pit(data: Any, name: str, size: Size) -> Figure:
    """Ranks of what came among predictive draws that have not seen it: level if they are right.

    LOO-PIT with equal weights: of draws that did not know an observation none need be left out.
    """
    if not IS_LEGACY:
        bare = {"p_value_text": False, "suspicious_points": False}  # their test wants no ties
        return _figure("plot_ppc_pit", data, size, var_names=[name], method="prit_c", visuals=bare)
    figure = Figure(figsize=size, layout="constrained")
    y, y_hat = pit_arguments(data, name)
    equal = np.full(y_hat.shape, -np.log(y_hat.shape[-1]))
    options = {"y": y, "y_hat": y_hat, "log_weights": equal, "ecdf": True}
    axes = figure.subplots()
    _draw("plot_loo_pit", ax=axes, **options)
    axes.set(title="", xlabel="LOO-PIT")  # not all that came
    return figure


def pit_arguments(data: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What came, [M], and its predictions, [M, S]."""
    predicted = data["posterior_predictive"][name].stack(sample=("chain", "draw"))
    return data["observed_data"][name].values, predicted.transpose(..., "sample").values


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices that ArviZ's plots give of matplotlib's and numpy's coming changes."""
    with warnings.catch_warnings():
        for kind in (UserWarning, FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category=kind)
        yield


def _draw(plot: str, *data: Any, **options: Any) -> None:
    """A plot of ArviZ 0.23, on axes that are given."""
    with _quiet():
        getattr(_arviz(), plot)(*data, textsize=TEXT_SIZE, show=False, **options)


def _figure(plot: str, data: Any, size: Size, **options: Any) -> Figure:
    """A plot of ArviZ 1.x, whose figure pyplot forgets."""
    if "matplotlib.pyplot" not in sys.modules:
        mpl.use("agg")  # no window
    from matplotlib import pyplot

    on_white: Any = {
        "figure.facecolor": "white",
        "axes.facecolor": "white",
    }  # it chooses its ink by it
    with _quiet(), mpl.rc_context(on_white):
        draw = getattr(_arviz("arviz_plots"), plot)
        made = draw(data, backend="matplotlib", figure_kwargs={"figsize": size}, **options)
    figure: Figure = made.viz["figure"].item()
    pyplot.close(figure)
    figure.set_layout_engine("constrained")
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor("none")
    return figure
