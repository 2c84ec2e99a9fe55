"""Pictures of routed.json: time against length, and against the share of full attention."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from pyro_meta.analysis.plots.style import BLUE, GREEN, GRID, INK, VERMILION

Result = dict[str, Any]

ALONE = {"full": VERMILION, "window": BLUE, "linear": GREEN}
TITLES = {
    "attention": "attention alone",
    "prefill": "whole model, prefill",
    "training": "whole model, training step",
    "decoding": "whole model, decoding",
}


def time_by_length(result: Result) -> Figure:
    """Seconds against tokens, both on log scales: one mechanism alone, and routed by share."""
    figure, panels = _panels(result)
    for part, axes in panels.items():
        for route, colour in ALONE.items():
            points = _points(result, part, route=route)
            axes.plot(*_columns(points, "length", "seconds"), color=colour, lw=3, label=route)
        shares = _values(result, part, "share_of_full")
        for share, shade in zip(shares, _shades(len(shares)), strict=True):
            points = _points(result, part, share=share)
            axes.plot(
                *_columns(points, "length", "seconds"),
                color=shade, lw=1.3, marker="o", ms=3.5, label=f"routed, {share:.0%} full",
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="tokens")
        _length_ticks(axes, _values(result, part, "length"))
        _second_ticks(axes)
    _finish(figure, panels, "seconds")
    return figure


def time_by_share(result: Result) -> Figure:
    """Time over that of full attention, against the share of full, with the break-even line."""
    figure, panels = _panels(result)
    for part, axes in panels.items():
        lengths = _values(result, part, "length")
        for length, shade in zip(lengths, _shades(len(lengths)), strict=True):
            points = _points(result, part, length=length)
            shares, ratios = _columns(points, "share_of_full", "ratio_to_full")
            axes.plot(
                shares,
                ratios,
                color=shade,
                lw=1.5,
                marker="o",
                ms=3.5,
                label=f"{_short(length)} tokens",
            )
        axes.axhline(1, color=ALONE["full"], lw=1.6, ls="--", zorder=1, label="break-even")
        top = max(p["ratio_to_full"] for p in result["points"] if p["route"].startswith("routed"))
        axes.set(xlabel="share of tokens that run full attention", ylim=(0, max(1.2, 1.08 * top)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _finish(figure, panels, "time over that of full attention, same tokens")
    return figure


PICTURES: dict[str, Callable[[Result], Figure]] = {
    "routed_by_length.png": time_by_length,
    "routed_by_share.png": time_by_share,
}
"""By file name, of the content of routed.json."""


def _panels(result: Result) -> tuple[Figure, dict[str, Axes]]:
    parts = list(dict.fromkeys(point["part"] for point in result["points"]))
    columns = min(2, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(parts) :]:
        axes.remove()
    grid = grid[: len(parts)]
    for part, axes in zip(parts, grid, strict=True):
        axes.set_title(TITLES.get(part, part), loc="left", fontsize=10, color=INK)
    return figure, dict(zip(parts, grid, strict=True))


def _points(
    result: Result,
    part: str,
    route: str | None = None,
    share: float | None = None,
    length: int | None = None,
) -> list[dict[str, Any]]:
    """The points of a part: of one route alone, or routed with a share or at a length."""
    return [
        point
        for point in result["points"]
        if point["part"] == part
        and (point["route"] == route if route else point["route"].startswith("routed"))
        and share in (None, point["share_of_full"])
        and length in (None, point["length"])
    ]


def _values(result: Result, part: str, key: str) -> list[Any]:
    """The distinct values of the routed points, in order."""
    return sorted({point[key] for point in _points(result, part)})


def _columns(points: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    ordered = sorted(points, key=lambda point: point[x])
    return [point[x] for point in ordered], [point[y] for point in ordered]


def _shades(count: int) -> list[tuple[float, float, float]]:
    """From light to dark, of one hue."""
    light, dark = np.array([0.85, 0.72, 0.83]), np.array([0.28, 0.08, 0.27])
    return [tuple(light + (dark - light) * s) for s in np.linspace(0, 1, count)]


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)


def _length_ticks(axes: Axes, lengths: list[int]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: _short(round(value)))


def _second_ticks(axes: Axes) -> None:
    """Plain numbers; between powers of ten where there are few of those."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _finish(figure: Figure, panels: dict[str, Axes], ylabel: str) -> None:
    first, *_ = panels.values()
    first.set_ylabel(ylabel)
    for axes in panels.values():
        axes.grid(color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
