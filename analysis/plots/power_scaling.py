"""What shares of mechanisms react to: the prior, the likelihood, or chance."""

import numpy as np
from matplotlib.figure import Figure

from pyro_meta.analysis.plots.style import BLUE, INK, ORANGE, canvas, rule
from pyro_meta.analysis.reading import Reading
from pyro_meta.analysis.sensitivity import COMPONENTS, SENSITIVE, Sensitivity

COLOURS = dict(zip(COMPONENTS, (ORANGE, BLUE), strict=True))
LEAST = 1e-3
"""Distances below it are drawn at it."""


def power_scaling(reading: Reading, found: Sensitivity) -> Figure:
    """Distance that the shares of each layer move by, per doubling of prior and of likelihood."""
    figure = canvas(1.0 + 0.34 * len(found.rows))
    axes = figure.subplots()
    most = SENSITIVE
    for shift, component in zip((-0.16, 0.16), COMPONENTS, strict=True):
        reaction = found.of[component]
        moved = np.maximum(np.nan_to_num(reaction.by_layer), LEAST)
        at = np.arange(len(moved)) + shift
        axes.plot(moved, at, "o", color=COLOURS[component], ms=7, label=component)
        chance = np.maximum(np.nan_to_num(reaction.chance), LEAST)
        most = max(most, float(moved.max()), float(chance.max()))
        axes.plot(chance, at, "|", color=INK, ms=10, mew=1.5)
    names = [reading.layer_names[row] for row in found.rows]
    axes.set(yticks=range(len(names)), yticklabels=names, xscale="log")
    axes.set(
        xlabel="distance per doubling (| : what chance would do)", xlim=(0.8 * LEAST, 2 * most)
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(left=False)
    rule(axes, SENSITIVE, "reacts")
    figure.legend(loc="outside upper left", ncols=2)
    return figure
