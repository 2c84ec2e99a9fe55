"""How every picture looks: colours that all eyes tell apart, and ink that follows light and dark.

Pictures are drawn once, in SVG and in PNG. The page shows the SVG, in which every colour of `DARK`
is turned into its counterpart where the reader prefers dark.
"""

import base64
import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_meta.folders import replacing
from pyro_meta.terminal.consoles import printable

# Okabe and Ito's colours, told apart with every kind of colour vision.
VERMILION, BLUE, GREEN, PURPLE = "#d55e00", "#0072b2", "#009e73", "#cc79a7"
ORANGE, SKY, YELLOW, GREY = "#e69f00", "#56b4e9", "#f0e442", "#7f7f7f"
PALETTE = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, YELLOW, GREY)
"""Of mechanisms, in their order; of runs and of whatever else is counted."""
INK, FAINT, GRID, PAPER = "#1f2328", "#8a939d", "#eeeeee", "#fdfdfd"
ON_DEEP, ON_PALE = "#fffffe", "#101418"
"""Of letters on a colour of the palette."""
DARK = {ON_DEEP: ON_PALE, INK: "#e6e8eb", GRID: "#2b3036", PAPER: "#16191d", BLUE: "#4ba3dc"}
"""Colour on paper -> colour on black."""
WIDTH, NARROW = 7.2, 3.7
"""Of a picture in inches; the second fits a phone, and a column beside others."""
DPI = 150
LETTERS_OF_A_LINE = 36
"""Of a label on a phone."""
_narrow = ContextVar("_narrow", default=False)

RC: Any = {
    "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.titlecolor": INK, "axes.facecolor": "none",
    "figure.facecolor": "none", "savefig.facecolor": "none", "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 10, "axes.titlesize": 10, "legend.frameon": False,
    "legend.fontsize": 9, "svg.hashsalt": "pyro-meta",
    "text.parse_math": False,  # a dollar sign in a name is one
}  # fmt: skip
SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # they come with matplotlib
WIDER = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback",
    "IPAexGothic", "IPAGothic", "NanumGothic", "Unifont", "Arial Unicode MS", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "SimHei", "MS Gothic", "Malgun Gothic",
)  # fmt: skip
"""Fonts with Chinese, Japanese or Korean characters, where one is installed."""
MOST_LETTERS = 40
"""Of a name in a picture."""


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def ink_on(index: int) -> str:
    """Of letters that are read on `colour(index)`, in light and in dark."""
    return ON_DEEP if colour(index) in (VERMILION, BLUE, GREEN, GREY) else ON_PALE


def is_narrow() -> bool:
    """Whether pictures are drawn for a phone."""
    return _narrow.get()


def width(wide: float = WIDTH) -> float:
    """Of a picture in inches, which is `wide` where there is room."""
    return min(wide, NARROW) if is_narrow() else wide


def wrapped(text: str, letters: int = LETTERS_OF_A_LINE) -> str:
    """A label in lines that a phone has room for, where it is drawn for one."""
    return textwrap.fill(text, letters) if is_narrow() else text


def wrap_labels(figure: Figure) -> None:
    """Apply `wrapped` to the names of all axes."""
    for axes in figure.axes:
        axes.set_xlabel(wrapped(axes.get_xlabel()))
        axes.set_ylabel(wrapped(axes.get_ylabel()))


def canvas(height: float, wide: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width(wide), height), layout="constrained")


@cache
def families(first: str = SANS) -> list[str]:
    """A font, and those to look in for characters that it has not."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return list(dict.fromkeys([first, SANS, *(name for name in WIDER if name in installed)]))


@cache
def _is_drawable(char: str) -> bool:
    fonts = (font_manager.get_font(font_manager.findfont(name)) for name in families())
    return any(font.get_char_index(ord(char)) for font in fonts)


def legible(text: str, missing: str | None = None) -> str:
    r"""Text that can be drawn: what no font has is written as `\u4e2d`, or as `missing`."""
    return "".join(
        char if _is_drawable(char) else missing or char.encode("unicode_escape").decode("ascii")
        for char in printable(text)
    )


def short(name: str) -> str:
    """A name as a label in a picture: its two ends, where it is long."""
    label, half = legible(name), MOST_LETTERS // 2
    return label if len(label) <= MOST_LETTERS else f"{label[:half]}\u2026{label[1 - half :]}"


def key(figure: Figure, names: Sequence[str]) -> None:
    """Which colour is which mechanism, above the picture."""
    patches = [Patch(color=colour(k)) for k in range(len(names))]
    labels = [short(name) for name in names]
    most = 3 if is_narrow() else 5
    figure.legend(patches, labels, loc="outside upper left", ncols=min(most, len(patches)))


def rule(axes: Axes, value: float, text: str) -> None:
    """A vertical threshold with its name."""
    axes.axvline(value, color=INK, ls=":", lw=1)
    axes.annotate(
        text, (value, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
        textcoords="offset points", va="top", fontsize=8, color=INK,
    )  # fmt: skip


def as_png(figure: Figure) -> bytes:
    """On white paper, for documents."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor="white")
    return out.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write `as_png` whole."""
    write_png(as_png(figure), path)


def write_png(drawn: bytes, path: Path) -> None:
    with replacing(path) as partial:
        partial.write_bytes(drawn)


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


@contextmanager
def styled() -> Iterator[None]:
    """Context in which figures are drawn and saved: a user's own settings are set aside."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"font.family": families()})
        yield


@contextmanager
def narrow() -> Iterator[None]:
    """Context in which figures are drawn for a phone, within `styled`."""
    token = _narrow.set(True)
    try:
        with mpl.rc_context({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8}):
            yield
    finally:
        _narrow.reset(token)
