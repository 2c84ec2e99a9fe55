"""Which layers tokens skip, and which tokens do."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_meta.analysis.depth_gates import Depth
from pyro_meta.analysis.plots.style import (
    BLUE,
    FAINT,
    INK,
    MONO,
    canvas,
    families,
    is_narrow,
    legible,
)
from pyro_meta.analysis.reading import Reading
from pyro_meta.analysis.visible import visible

THIN = 0.45


def skipped(reading: Reading) -> Figure:
    """Share of tokens that skip each layer, beside the prior; and the tokens at both ends."""
    depth = reading.depth
    assert depth is not None
    listed = depth.by_piece(reading.text)
    pieces = [*listed["most"], *listed["least"][::-1]]
    heights = [0.5 * len(depth.mean), 0.2 * len(pieces)]
    if is_narrow():
        figure = canvas(1.8 + sum(heights))
        left, right = figure.subplots(2, 1, height_ratios=heights)
    else:
        figure = canvas(0.9 + max(heights))
        left, right = figure.subplots(1, 2)
    _by_layer(left, depth)
    names = [legible(visible(piece.text, spaces=True)) for piece in pieces]
    rows = np.arange(len(pieces))
    right.barh(rows, [piece.mean for piece in pieces], 0.7, color=BLUE)
    right.axhline(len(listed["most"]) - 0.5, color=FAINT, lw=1)
    right.set_yticks(rows)
    for label in right.set_yticklabels(names, family=families(MONO), fontsize=8):
        label.set_parse_math(False)
    right.set(xlim=(0, 1), xlabel="share of gated layers skipped")
    _finish(right)
    return figure


def _by_layer(axes: Axes, depth: Depth) -> None:
    found = depth.by_layer()
    rows = np.arange(len(found))
    shares = [row["skipped"] for row in found]
    bars = axes.barh(rows - 0.14, shares, 0.5, color=BLUE)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=9, color=INK)
    prior = [row["skipped_prior"] for row in found]
    axes.barh(rows + 0.28, prior, 0.16, color=BLUE, alpha=THIN)
    axes.set(
        yticks=rows,
        yticklabels=[f"layer {row}" for row in rows],
        xlim=(0, 1),
        xlabel="share of tokens that skip (thin: the prior)",
    )
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["left"]].set_visible(False)
    axes.tick_params(left=False)
