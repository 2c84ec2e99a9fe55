"""How the router became what it is."""

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pyro_meta.analysis.diversity import Array
from pyro_meta.analysis.plots.style import BLUE, GREEN, ORANGE, PURPLE, canvas, is_narrow
from pyro_meta.analysis.reading import Reading

MOST_NAMES = 12
"""Of layers in a legend; of more, the first and the last are named."""


def entropy_over_training(reading: Reading) -> Figure:
    """Mean entropy of the posterior means by layer, and what acts on it: one below the other."""
    figure = canvas(6.4)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=[2.2, 1, 1, 1])
    steps, curves = reading.steps, reading.entropy_by_step
    window = max(1, len(steps) // 100)
    for layer, shade in enumerate(np.linspace(0.35, 1.0, curves.shape[1])):
        smooth = running_mean(curves[:, layer], window)
        is_named = curves.shape[1] <= MOST_NAMES or layer in (0, curves.shape[1] - 1)
        label = f"layer {layer}" if is_named else None
        panels[0].plot(steps, smooth, color=to_rgba(BLUE, shade), label=label)
    panels[0].set(title="routing entropy H(m), share of log K", ylim=(0, 1.02))
    hard = running_mean(reading.hard_share, window)
    panels[1].fill_between(steps, 0, hard, color=ORANGE, alpha=0.5, lw=0)
    panels[1].set(title="share of tokens that run hard", ylim=(0, 1.02))
    panels[2].plot(steps, running_mean(reading.kl_by_step, window), color=GREEN)
    panels[2].set(title="KL(q || p), nats per token", ylim=(0, None))
    panels[3].plot(steps, reading.kl_weight_by_step, color=PURPLE)
    panels[3].set(
        title=f"weight of the KL, at last {reading.kl_weight_by_step[-1]:.3g}",
        ylim=(0, None), xlabel="step", xlim=(0, max(1, steps[-1])),
    )  # fmt: skip
    for axes in panels:
        axes.title.set_horizontalalignment("left")
        axes.title.set_x(0)
    figure.legend(loc="outside upper left", ncols=2 if is_narrow() else 4)
    return figure


def running_mean(values: Array, width: int) -> Array:
    """Means over the last `width` values, fewer at the start."""
    sums = np.cumsum(np.insert(values.astype(float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
