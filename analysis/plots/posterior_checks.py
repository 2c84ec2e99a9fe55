"""Whether the posterior is one: KL, importance weights, and the truth where it is known."""

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pyro_meta.analysis.collapse import PRIOR_KL, kl_histogram
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.importance_weights import GOOD, USABLE
from pyro_meta.analysis.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    canvas,
    colour,
    key,
    rule,
    wrapped,
)
from pyro_meta.analysis.reading import Reading


def kl_by_layer(reading: Reading) -> Figure:
    """Histograms of KL(q || p) over tokens, one line a layer."""
    figure = canvas(3.0)
    axes = figure.subplots()
    edges, shares = kl_histogram(reading.kl)
    shades = np.linspace(0.35, 1.0, len(shares))
    names: list[str | None] = list(reading.layer_names)
    if reading.has_many_rows:  # the first and the last are named, and lie between light and dark
        names[1:-1] = [None] * (len(names) - 2)
    for name, shade, share in zip(names, shades, shares, strict=True):
        axes.stairs(share, edges, color=to_rgba(BLUE, shade), label=name)
    rule(axes, PRIOR_KL, "q = p")
    axes.set(xlabel="KL(q || p) of a token, nats", ylabel="share of tokens", xlim=(0, edges[-1]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="best")
    return figure


def k_hats(findings: Findings) -> Figure:
    """Distribution of k-hat by length of block and target, each block a dot."""
    rows = findings.targets()
    figure = canvas(0.9 + 0.55 * len(rows))
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for row, (_, found) in enumerate(rows):
        k = np.clip(found.k_hat, -0.5, 3.0)
        y = row + rng.uniform(-0.22, 0.22, len(k))
        axes.scatter(k, y, s=12, color=BLUE, alpha=0.55, lw=0)
        axes.plot(np.median(k), row, "|", color=INK, ms=18, mew=2)
    axes.axvspan(-0.5, GOOD, color=GREEN, alpha=0.14, lw=0)
    axes.axvspan(GOOD, USABLE, color=ORANGE, alpha=0.16, lw=0)
    axes.set(
        yticks=range(len(rows)),
        yticklabels=[
            f"{wrapped(name, 19)}\n{found.usable:.0%} below {USABLE}" for name, found in rows
        ],
        xlim=(-0.55, 3.05),
        xlabel="k-hat (3: 3 or more)",
    )
    axes.invert_yaxis()
    axes.tick_params(left=False)
    return figure


def beside_truth(findings: Findings) -> Figure:
    """Mean and deviation of the routes of a handful of tokens: the guide's, and the truth's."""
    found = findings.belief["beside_truth"][0]
    moments = {name: np.array(values) for name, values in found["moments"].items()}  # [L, n, K]
    L, n, K = moments["truth_mean"].shape
    figure = canvas(0.9 + 0.42 * L * n)
    axes = figure.subplots()
    for row in range(L * n):
        layer, token = divmod(row, n)
        for k in range(K):
            y = row + (k - (K - 1) / 2) * 0.24
            for who, marker, face in (("guide", "o", colour(k)), ("truth", "D", "none")):
                mean = moments[f"{who}_mean"][layer, token, k]
                spread = moments[f"{who}_deviation"][layer, token, k]
                ends = np.clip([mean - spread, mean + spread], 0, 1)
                shift = y + (0.05 if who == "truth" else -0.05)
                axes.plot(
                    ends, [shift] * 2, color=colour(k), lw=1, ls="-" if who == "guide" else ":"
                )
                axes.plot(mean, shift, marker, ms=5, mec=colour(k), mfc=face)
    axes.set(
        yticks=range(L * n),
        yticklabels=[f"layer {row // n}, token {row % n - n}" for row in range(L * n)],
        xlim=(-0.02, 1.02),
        xlabel=f"route: mean and deviation (filled: guide; open, dotted: {found['method']})",
    )
    axes.invert_yaxis()
    axes.tick_params(left=False)
    key(figure, findings.reading.mechanisms)
    return figure
