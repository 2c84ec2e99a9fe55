"""How every picture looks: colours that all eyes tell apart, and ink that follows light and dark.

Pictures are drawn once, in SVG and in PNG. The page shows the SVG, in which every colour of `DARK`
is turned into its counterpart where the reader prefers dark.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_meta.folders import replacing

# Okabe and Ito's colours, told apart with every kind of colour vision.
VERMILION, BLUE, GREEN, PURPLE = "#d55e00", "#0072b2", "#009e73", "#cc79a7"
ORANGE, SKY, YELLOW, GREY = "#e69f00", "#56b4e9", "#f0e442", "#7f7f7f"
PALETTE = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, YELLOW, GREY)
"""Of mechanisms, in their order; of runs and of whatever else is counted."""
INK, FAINT, GRID, PAPER = "#1f2328", "#8a939d", "#eeeeee", "#fdfdfd"
DARK = {INK: "#e6e8eb", GRID: "#2b3036", PAPER: "#16191d", BLUE: "#4ba3dc"}
"""Colour on paper -> colour on black."""
WIDTH = 7.2
DPI = 150

RC: Any = {
    "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.titlecolor": INK, "axes.facecolor": "none",
    "figure.facecolor": "none", "savefig.facecolor": "none", "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 10, "axes.titlesize": 10, "legend.frameon": False,
    "legend.fontsize": 9, "svg.hashsalt": "pyro-meta",
}  # fmt: skip


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def key(figure: Figure, names: Sequence[str]) -> None:
    """Which colour is which mechanism, above the picture."""
    patches = [Patch(color=colour(k), label=name) for k, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside upper left", ncols=min(5, len(patches)))


def rule(axes: Axes, value: float, text: str) -> None:
    """A vertical threshold with its name."""
    axes.axvline(value, color=INK, ls=":", lw=1)
    axes.annotate(
        text, (value, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
        textcoords="offset points", va="top", fontsize=8, color=INK,
    )  # fmt: skip


def save_png(figure: Figure, path: Path) -> None:
    """On white paper, for documents."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, facecolor="white")


def as_data_uri(figure: Figure) -> str:
    """The figure as an SVG that needs nothing else and follows the reader's light or dark."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    drawn = out.getvalue()
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    head, tag, rest = drawn.partition("<defs>")
    styled = f"{head}<style>@media (prefers-color-scheme:dark){{{rules}}}</style>{tag}{rest}"
    return "data:image/svg+xml;base64," + base64.b64encode(styled.encode()).decode()


def styled() -> Any:
    """Context in which figures are drawn and saved."""
    return mpl.rc_context(RC)
