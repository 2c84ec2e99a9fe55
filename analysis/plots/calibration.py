"""What uncertainty is good for."""

import numpy as np
from matplotlib.figure import Figure

from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.plots.style import BLUE, FAINT, INK, VERMILION, canvas

COLOURS = (BLUE, VERMILION)


def harm_by_uncertainty(findings: Findings) -> Figure:
    """Loss of hard routes over soft ones, in tenths of the tokens by uncertainty of the route."""
    found = findings.hardening()
    figure = canvas(3.0)
    axes = figure.subplots()
    places = np.arange(1, len(found.difference) + 1)
    axes.axhline(0, color=FAINT, lw=1)
    axes.errorbar(
        places, found.difference, 1.96 * found.error, fmt="o", color=COLOURS[0], capsize=3
    )
    axes.set(
        xticks=places,
        xlabel="tenth of the tokens, from the most certain route to the least",
        ylabel="hard - soft loss, nats",
    )
    return figure


def risk_coverage(findings: Findings) -> Figure:
    """Error rate among the tokens that are kept, the surest first."""
    figure = canvas(3.2)
    axes = figure.subplots()
    curves = findings.selective()
    for (name, curve), tint in zip(curves.items(), COLOURS, strict=True):
        axes.plot(
            curve.coverage, curve.risk, color=tint, label=f"by {name} (area {curve.area:.3f})"
        )
    overall = next(iter(curves.values())).risk[-1]
    axes.axhline(overall, color=INK, ls=":", lw=1, label=f"kept at random ({overall:.3f})")
    axes.set(
        xlabel="coverage: share of tokens that are kept",
        ylabel="risk: share of wrong predictions",
        xlim=(0, 1), ylim=(0, None),
    )  # fmt: skip
    axes.legend(loc="best")
    return figure


def calibration(findings: Findings) -> Figure:
    """How often the likeliest token came, against the probability that it was given."""
    figure = canvas(4.2, 5.2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, lw=1)
    for (name, found), tint in zip(findings.calibrated().items(), COLOURS, strict=True):
        error = np.sqrt(np.maximum(found.observed * (1 - found.observed), 1e-4) / found.count)
        axes.errorbar(
            found.stated, found.observed, 1.96 * error, fmt="o-", ms=4, lw=1, color=tint,
            label=f"{name} (error {found.error:.3f})",
        )  # fmt: skip
    axes.set(
        xlabel="probability of the likeliest token", ylabel="how often it came",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    axes.legend(loc="best")
    return figure
