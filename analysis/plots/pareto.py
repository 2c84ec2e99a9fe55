"""Loss against cost of several settings or runs: what no other beats, and how seeds scatter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from pyro_meta.analysis.comparison import Array, pareto_front
from pyro_meta.analysis.plots.style import (
    BLUE,
    DPI,
    FAINT,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    is_narrow,
    legible,
    wrapped,
)

LOOKS = {
    "variant": ("o", BLUE, "routed"),
    "mechanism": ("s", INK, "one mechanism alone"),
    "fixed": ("D", ORANGE, "fixed mixture, learned loads"),
    "random": ("X", PURPLE, "random, learned loads"),
    "prior": ("v", GREEN, "routes from the prior"),
    "point": ("^", VERMILION, "router without a prior"),
    "split": ("*", VERMILION, "learned static split"),
    "periodic": ("h", GREEN, "periodic layers"),
    "also": ("P", SKY, "other"),
}
"""Marker, colour and name of each kind."""
POINT = DPI / 72  # pixels
EM = DPI / 10  # pixels, about the height of a label
FAR = 2.0  # settings above a gap of so many times the spread below it are drawn at the edge


@dataclass(frozen=True)
class Setting:
    """One setting: a cost and a loss for each seed."""

    label: str
    kind: str
    costs: list[float]
    losses: list[float]

    @property
    def cost(self) -> float:
        return float(np.mean(self.costs))

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def pareto(
    settings: Sequence[Setting], cost_name: str, size: tuple[float, float] = (9, 6)
) -> Figure:
    """Validation loss, hard, against cost: means with standard deviations, seeds as faint points.

    Where some settings lie far above the others, they stand in an upper panel with a scale of its
    own.
    """
    layout = ConstrainedLayoutEngine(h_pad=0.02, hspace=0.0)
    figure = Figure(figsize=size, dpi=DPI, layout=layout)
    canvas = FigureCanvasAgg(figure)
    limit = _limit([setting.loss for setting in settings])
    far = [setting for setting in settings if setting.loss > limit]
    near = [setting for setting in settings if setting.loss <= limit]
    if far:
        panels = list(figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.6]))
    else:
        panels = [figure.subplots()]
    for axes, shown in zip(panels, [far, near] if far else [near], strict=True):
        _set_limits(axes, settings, shown)
        _draw_front(axes, settings)
        for setting in sorted(shown, key=lambda one: one.kind == "variant"):
            _draw(axes, setting)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GRID, lw=0.8)
        axes.set_axisbelow(True)
    if far:
        _break(*panels)
    panels[-1].set_xlabel(wrapped(f"cost: {cost_name}"))
    panels[-1].set_ylabel(wrapped("validation loss, hard routes (nats per token)"))
    _legend(figure, settings)
    figure.draw_without_rendering()  # sizes of texts are known from here on
    figure.set_layout_engine("none")
    for axes, shown in zip(panels, [far, near] if far else [near], strict=True):
        _label(axes, shown, canvas.get_renderer())
    return figure


def _draw(axes: Axes, setting: Setting) -> None:
    marker, colour, _ = LOOKS[setting.kind]
    if len(setting.losses) > 1:
        axes.scatter(setting.costs, setting.losses, s=16, marker=marker, color=colour, alpha=0.3,
                     lw=0, zorder=2)  # fmt: skip
        axes.errorbar(setting.cost, setting.loss, xerr=_deviation(setting.costs),
                      yerr=_deviation(setting.losses), color=colour, lw=1.1, alpha=0.7,
                      zorder=3)  # fmt: skip
    axes.scatter(setting.cost, setting.loss, s=64 if setting.kind == "variant" else 48,
                 marker=marker, color=colour, edgecolor=PAPER, lw=0.8, zorder=4)  # fmt: skip


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _limit(losses: Sequence[float]) -> float:
    """Largest loss of the lower panel: below the first wide gap in the upper half."""
    ordered = np.sort(losses)
    for index in range(max(2, (len(ordered) + 1) // 2), len(ordered)):
        below = ordered[index - 1] - ordered[0]
        if ordered[index] - ordered[index - 1] > FAR * max(below, 1e-3):
            return float(ordered[index - 1])
    return float(ordered[-1])


def _set_limits(axes: Axes, settings: Sequence[Setting], shown: Sequence[Setting]) -> None:
    losses = np.concatenate([setting.losses for setting in shown])
    costs = np.concatenate([setting.costs for setting in settings])
    height = max(float(np.ptp(losses)), 0.01 * abs(float(losses.mean())))
    width = max(float(np.ptp(costs)), 1e-2)
    middle = (losses.max() + losses.min()) / 2
    axes.set_ylim(middle - 0.64 * height, middle + 0.64 * height)
    axes.set_xlim(max(0.0, costs.min() - 0.1 * width), costs.max() + 0.1 * width)


def _break(upper: Axes, lower: Axes) -> None:
    """Show that the scale is interrupted between two panels."""
    upper.spines["bottom"].set_visible(False)
    upper.tick_params(bottom=False, labelbottom=False)
    for axes, height in ((upper, 0), (lower, 1)):
        axes.plot([0], [height], ls="", marker=[(-1, -0.6), (1, 0.6)], markersize=9,
                  color=INK, mew=1.0, transform=axes.transAxes, clip_on=False)  # fmt: skip


def _draw_front(axes: Axes, settings: Sequence[Setting]) -> None:
    """Steps through the settings that none beats: what a cost can buy."""
    is_best = pareto_front([one.cost for one in settings], [one.loss for one in settings])
    best = sorted((one.cost, one.loss) for one, best in zip(settings, is_best, strict=True) if best)
    costs, losses = zip(*best, strict=True)
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    axes.step([costs[0], *costs, right], [max(top, losses[0]), *losses, losses[-1]], where="post",
              color=FAINT, lw=1.3, ls=(0, (4, 2)), zorder=1)  # fmt: skip


def _legend(figure: Figure, settings: Sequence[Setting]) -> None:
    present = [kind for kind in LOOKS if any(setting.kind == kind for setting in settings)]
    handles = [
        Line2D([], [], ls="", marker=LOOKS[kind][0], color=LOOKS[kind][1], label=LOOKS[kind][2])
        for kind in (present if len(present) > 1 else [])
    ]
    front = Line2D([], [], color=FAINT, lw=1.4, ls=(0, (4, 2)), label="no setting beats it")
    figure.legend(handles=[*handles, front], loc="outside upper left", frameon=False,
                  ncols=2 if is_narrow() else 4, fontsize=9, handletextpad=0.4,
                  columnspacing=1.4)  # fmt: skip


# -- labels that keep out of each other's way --------------------------------------------------


def _label(axes: Axes, settings: Sequence[Setting], renderer: RendererBase) -> None:
    """Write each label where it covers least: near its mark, off other labels, marks and bars.

    Boxes are rows of left, bottom, right, top in pixels.
    """
    points = axes.transData.transform([(setting.cost, setting.loss) for setting in settings])
    marks = _squares(points, 0.6 * EM)
    seeds = np.concatenate([np.column_stack([one.costs, one.losses]) for one in settings])
    crossed = np.concatenate(
        [_squares(axes.transData.transform(seeds), 0.2 * EM), _bars(axes, settings)]
    )
    frame = np.array(axes.get_window_extent(renderer).padded(-0.3 * EM).extents)
    placed = np.empty((0, 4))
    neighbours = [sum(np.hypot(*(points - point).T) < 8 * EM) for point in points]
    for index in np.argsort(neighbours, kind="stable"):
        setting = settings[index]
        text = axes.annotate(
            legible(setting.label.replace(" loads of ", ": ")), (setting.cost, setting.loss),
            xytext=(0, 0), textcoords="offset points", fontsize=8.5, color=INK, parse_math=False,
            va="center", zorder=5, path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )  # fmt: skip
        box = np.array(text.get_window_extent(renderer).extents)
        shifts = _candidates(box[2] - box[0], box[3] - box[1])
        boxes = box + np.tile(shifts, 2)
        covered = np.concatenate([np.delete(marks, index, 0), placed])
        away = np.hypot(*(points[index] - _nearest(boxes, points[index])).T)
        best = int(np.argmin(away + _crowding(boxes, covered, crossed, frame)))
        text.set_position(tuple(shifts[best] / POINT))
        placed = np.concatenate([placed, boxes[best : best + 1]])
        if away[best] > 1.4 * EM:
            _leader(axes, points[index], _nearest(boxes[best : best + 1], points[index])[0])


def _squares(points: Array, half: float) -> Array:
    return np.concatenate([points - half, points + half], 1)


def _bars(axes: Axes, settings: Sequence[Setting]) -> Array:
    """Where error bars run."""
    boxes = []
    for setting in settings:
        middle = np.array([setting.cost, setting.loss])
        x, y = _deviation(setting.costs), _deviation(setting.losses)
        for half in ((x, 0.0), (0.0, y)):
            low, high = axes.transData.transform([middle - half, middle + half])
            boxes.append(np.concatenate([low - 2, high + 2]))
    return np.array(boxes)


def _candidates(width: float, height: float) -> Array:
    """Shifts of a label's left centre from its mark: beside, askew, above and below it."""
    shifts: list[tuple[float, float]] = []
    for away in EM * np.array([1.1, 1.8, 2.8, 4, 5.4, 7, 9, 11.2]):
        for rise in (0.0, 0.5, -0.5):
            aside = away * np.sqrt(1 - rise**2)
            up = rise * (away + height / 2)
            shifts += [(aside, up), (-aside - width, up)]
        for up in (away + height / 2, -away - height / 2):
            shifts += [(-width / 2, up), (0.0, up), (-width, up)]
    return np.array(shifts)


def _crowding(boxes: Array, covered: Array, crossed: Array, frame: Array) -> Array:
    """How bad places are: what they cover and cross, and what of them leaves the frame."""
    grown = boxes + 0.2 * EM * np.array([-1, -1, 1, 1])
    hidden, struck = (_overlap(grown, others).sum(1) for others in (covered, crossed))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    outside = area - _overlap(boxes, frame[None])[:, 0]
    return (20 * hidden + 3 * struck + 40 * outside) / EM


def _overlap(ones: Array, others: Array) -> Array:
    """Areas that each of `ones` shares with each of `others`."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def _nearest(boxes: Array, point: Array) -> Array:
    """The point of each box that is nearest to `point`."""
    return np.clip(point, boxes[:, :2], boxes[:, 2:])


def _leader(axes: Axes, point: Array, end: Array) -> None:
    """A thin line from a mark to its far label."""
    ends = axes.transData.inverted().transform([point, end])
    axes.plot(*ends.T, color=FAINT, lw=0.6, zorder=1.5, clip_on=False, scalex=False, scaley=False)
