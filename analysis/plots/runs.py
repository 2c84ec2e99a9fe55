"""Several runs side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pyro_meta.analysis.comparison import pareto_front
from pyro_meta.analysis.plots.style import FAINT, INK, canvas, colour
from pyro_meta.analysis.together import Pair, position


def pareto(names: Sequence[str], costs: Sequence[float], losses: Sequence[float]) -> Figure:
    """Loss along hard routes against what they cost; runs that no other beats are filled."""
    figure = canvas(3.4)
    axes = figure.subplots()
    front = pareto_front(costs, losses)
    order = [int(i) for i in np.argsort(costs) if front[i]]
    axes.step(
        [costs[i] for i in order], [losses[i] for i in order], where="post", color=FAINT, lw=1
    )
    for index, (name, cost, loss) in enumerate(zip(names, costs, losses, strict=True)):
        tint = colour(index)
        axes.plot(cost, loss, "o", ms=8, mec=tint, mfc=tint if front[index] else "none")
        axes.annotate(
            name, (cost, loss), xytext=(7, 5), textcoords="offset points", fontsize=9,
            parse_math=False,
        )  # fmt: skip
    axes.set(xlabel="cost: MACs of attention, full = 1", ylabel="loss, hard routes, nats per token")
    axes.set_xlim(0, max(1.05 * max(costs), 0.1) * 1.15)
    axes.margins(y=0.2)
    return figure


def differences(pairs: Sequence[Pair]) -> Figure:
    """Paired differences of losses by sequence, with 95% intervals."""
    figure = canvas(0.8 + 0.45 * len(pairs))
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, lw=1)
    for row, pair in enumerate(pairs):
        tint = "#0072b2" if position(pair) != "no clear difference" else INK
        axes.plot(pair.interval, [row, row], color=tint, lw=2)
        axes.plot(pair.mean, row, "o", color=tint)
    axes.set(
        yticks=range(len(pairs)),
        xlabel="difference of the loss, hard routes, nats per token (left: the first is better)",
    )
    axes.set_yticklabels([f"{p.ours} - {p.theirs}" for p in pairs], parse_math=False)
    axes.invert_yaxis()
    axes.tick_params(left=False)
    return figure
