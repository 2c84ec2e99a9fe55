"""How the router became what it is."""

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pyro_meta.analysis.diversity import Array
from pyro_meta.analysis.plots.style import BLUE, FAINT, INK, ORANGE, canvas
from pyro_meta.analysis.reading import Reading

MOST_NAMES = 12
"""Of layers in a legend; of more, the first and the last are named."""


def entropy_over_training(reading: Reading) -> Figure:
    """Mean entropy of the posterior means by layer, with the schedules that act on it."""
    figure = canvas(3.6)
    axes = figure.subplots()
    steps, curves, weight = reading.steps, reading.entropy_by_step, reading.kl_weight_by_step
    width = max(1, len(steps) // 100)
    for layer, shade in enumerate(np.linspace(0.35, 1.0, curves.shape[1])):
        smooth = running_mean(curves[:, layer], width)
        is_named = curves.shape[1] <= MOST_NAMES or layer in (0, curves.shape[1] - 1)
        label = f"layer {layer}" if is_named else None
        axes.plot(steps, smooth, color=to_rgba(BLUE, shade), label=label)
    hard = running_mean(reading.hard_share, width)
    axes.fill_between(steps, 0, hard, color=ORANGE, alpha=0.22, lw=0, label="share of hard tokens")
    axes.plot(
        steps, weight / max(weight.max(), 1e-12), color=INK, ls=":", lw=1.2,
        label=f"KL weight (final {weight[-1]:.3g})",
    )  # fmt: skip
    kl = running_mean(reading.kl_by_step, width)
    most = max(float(kl.max()), 1e-9)
    axes.plot(steps, kl / most, color=FAINT, lw=1.2, label=f"KL(q||p) (1 is {most:.2g} nats)")
    axes.set(
        xlabel="step",
        ylabel="routing entropy H(m) / log K",
        ylim=(0, 1.02),
        xlim=(0, max(1, steps[-1])),
    )
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def running_mean(values: Array, width: int) -> Array:
    """Means over the last `width` values, fewer at the start."""
    sums = np.cumsum(np.insert(values.astype(float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
