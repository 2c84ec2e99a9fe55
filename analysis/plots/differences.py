"""Paired differences of several runs."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from pyro_meta.analysis.plots.style import BLUE, FAINT, INK, canvas, is_narrow, short
from pyro_meta.analysis.runs_in_pairs import Pair, position


def differences(pairs: Sequence[Pair]) -> Figure:
    """Paired differences of losses by sequence, with 95% intervals."""
    figure = canvas(0.8 + 0.45 * len(pairs))
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, lw=1)
    for row, pair in enumerate(pairs):
        tint = BLUE if position(pair) != "no clear difference" else INK
        axes.plot(pair.interval, [row, row], color=tint, lw=2)
        axes.plot(pair.mean, row, "o", color=tint)
    axes.set(
        yticks=range(len(pairs)),
        xlabel="difference of the loss, hard routes, nats per token (left: the first is better)",
    )
    between = "\n\u2212 " if is_narrow() else " \u2212 "
    axes.set_yticklabels([f"{short(p.ours)}{between}{short(p.theirs)}" for p in pairs])
    axes.invert_yaxis()
    axes.tick_params(left=False)
    return figure
