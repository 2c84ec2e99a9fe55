"""The guide beside the exact posterior of single tokens, layer by layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.one_token import gap_of
from pyro_meta.analysis.plots.style import BLUE, FAINT, GREEN, INK, canvas, is_narrow
from pyro_meta.analysis.reading import MOST_ROWS


def shown(findings: Findings) -> list[tuple[str, Mapping[str, Any]]]:
    """Layers and groups by name; of many, those with the widest gaps."""
    sites = findings.belief["one_token"]["by_site"]
    names = findings.reading.layer_names
    rows = list(zip(names, sites, strict=len(names) == len(sites)))
    if len(rows) <= MOST_ROWS:
        return rows
    return sorted(rows, key=lambda row: -row[1]["gap"]["value"])[:MOST_ROWS]


def by_layer(findings: Findings) -> Figure:
    """Effective share of draws and the gap of each layer and group."""
    rows = shown(findings)
    height = 0.9 + 0.34 * len(rows)
    if is_narrow():
        left, right = (figure := canvas(2 * height)).subplots(2, 1, sharey=True)
    else:
        left, right = (figure := canvas(height)).subplots(1, 2, sharey=True)
    for row, (_, site) in enumerate(rows):
        left.barh(row, site["efficiency_median"], 0.55, color=GREEN)
        gap = gap_of(site)
        right.barh(row, gap.value, 0.55, color=BLUE)
        if np.isfinite(gap.interval).all():
            right.plot(gap.interval, [row, row], color=INK, lw=1.4)
    left.set(
        xlim=(0, 1), xlabel="effective share of draws, median",
        yticks=range(len(rows)), yticklabels=[name for name, _ in rows],
    )  # fmt: skip
    right.set(xlabel="gap, nats per token")
    right.axvline(0, color=FAINT, lw=0.8)
    left.invert_yaxis()
    for axes in (left, right):
        axes.tick_params(left=False)
    return figure
