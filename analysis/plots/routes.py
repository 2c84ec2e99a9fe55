"""Where tokens go, and how sure the router is of it."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb, to_rgba
from matplotlib.figure import Figure

from pyro_meta.analysis.diversity import Array, Choices
from pyro_meta.analysis.plots.style import (
    BLUE,
    FAINT,
    INK,
    MONO,
    canvas,
    colour,
    families,
    ink_on,
    is_narrow,
    key,
    legible,
    short,
    width,
)
from pyro_meta.analysis.reading import MOST_ROWS, Reading
from pyro_meta.analysis.visible import SIGNS, visible

LINE_WIDTH, PASSAGE_LINES, MOST_CHARACTERS = 80, 4, 8
LEAST_INCHES, MOST_INCHES = 5, 11  # width of a figure of text
MOST_BLOCKS = 8
"""Of a passage, where layers and groups are very many."""
CLOUD = 1500
"""Draws that a simplex shows."""


def strength(reading: Reading, shown: slice) -> Array:
    """Certainty of each choice in [0, 1]: its posterior mean m between 1/K and 1, [L, n]."""
    means, choice = reading.means[:, shown], reading.choice[:, shown]
    return certainty(means, np.where(choice < 0, means.argmax(-1), choice))


def certainty(means: Array, chosen: Choices) -> Array:
    """Of means [.., K] that of the chosen one [..]: 0 at 1/K or below, 1 at 1."""
    K = means.shape[-1]
    m = np.take_along_axis(means, chosen[..., None].astype(int), -1)[..., 0]
    return np.clip((m - 1 / K) / (1 - 1 / K), 0, 1) if K > 1 else np.ones_like(m)


def load_by_layer(reading: Reading) -> Figure:
    """Share of tokens that run each mechanism, by layer, with the prior's mean beside it."""
    shares, prior = reading.shares, reading.prior_shares  # [L, K] each
    figure = canvas(0.9 + 0.55 * len(shares))
    axes = figure.subplots()
    rows = np.arange(len(shares))
    for values, offset, height, alpha in ((shares, -0.14, 0.5, 1.0), (prior, 0.28, 0.16, 0.5)):
        left = np.zeros(len(shares))
        for index in range(len(reading.mechanisms)):
            wide = values[:, index]
            bars = axes.barh(
                rows + offset, wide, height, left=left, color=colour(index), alpha=alpha
            )
            if alpha == 1.0:
                labels = [f"{share:.0%}" if share >= 0.06 else "" for share in wide]
                axes.bar_label(bars, labels, label_type="center", color=ink_on(index), fontsize=9)
            left += wide
    axes.set(
        yticks=rows,
        yticklabels=reading.layer_names,
        xlim=(0, 1),
        xlabel="share of tokens (wide: what runs; thin: mean of the prior)",
    )
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["left"]].set_visible(False)
    axes.tick_params(left=False)
    key(figure, reading.mechanisms)
    return figure


def heads(reading: Reading) -> Figure:
    """Share of tokens that run each mechanism but the last, a square for each layer and group."""
    groups = int(reading.facts["groups"])
    shares = reading.shares.reshape(-1, groups, len(reading.mechanisms))  # [L, G, K]
    layers, shown = len(shares), reading.mechanisms[:-1]
    side = width() / (layers + 4)
    figure = canvas(len(shown) * (0.95 + groups * side))
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for index, (axes, name) in enumerate(zip(panels, shown, strict=True)):
        paint = [(*to_rgb(colour(index)), alpha) for alpha in (0.03, 1.0)]
        scale = LinearSegmentedColormap.from_list(name, paint)
        squares = axes.pcolormesh(
            shares[:, :, index].T, cmap=scale, vmin=0, vmax=1, edgecolor=FAINT, linewidth=0.3
        )
        axes.set(
            xticks=np.arange(0, layers, max(1, layers // 10)) + 0.5,
            xticklabels=range(0, layers, max(1, layers // 10)),
            yticks=np.arange(groups) + 0.5,
            yticklabels=[f"heads {group}" for group in range(groups)],
            xlabel="layer",
            aspect="equal",
        )
        axes.invert_yaxis()
        axes.tick_params(left=False, bottom=False)
        bar = figure.colorbar(squares, ax=axes, orientation="horizontal", aspect=40, pad=0.02)
        bar.set_label(f"share of tokens that run {short(name)}")
        bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return figure


def forest(reading: Reading) -> Figure:
    """Posterior means of all tokens by layer and mechanism: median, 50% and 90% of tokens.

    Of very many layers and groups, those with the most mixed routes.
    """
    rows, K = reading.rows[:MOST_ROWS], len(reading.mechanisms)
    figure = canvas(0.9 + 0.22 * len(rows) * K)
    axes = figure.subplots()
    at = np.quantile(reading.means, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)  # [5, L, K]
    for place, layer in enumerate(rows):
        for k in range(K):
            y = place * (K + 0.8) + k
            low, first, middle, third, high = at[:, layer, k]
            axes.plot([low, high], [y, y], color=colour(k), lw=1.2)
            axes.plot([first, third], [y, y], color=colour(k), lw=4, solid_capstyle="butt")
            axes.plot(middle, y, "o", color=colour(k), ms=5)
            axes.plot(reading.prior_shares[layer, k], y, "|", color=INK, ms=9, mew=1.3)
    axes.set(
        yticks=[place * (K + 0.8) + (K - 1) / 2 for place in range(len(rows))],
        yticklabels=[reading.layer_names[layer] for layer in rows],
        xlim=(-0.01, 1.01),
        ylim=(-1, len(rows) * (K + 0.8)),
        xlabel="posterior mean of the mechanism (| : mean of the prior)",
    )
    axes.invert_yaxis()
    axes.tick_params(left=False)
    key(figure, reading.mechanisms)
    return figure


def simplex(reading: Reading) -> Figure:
    """Draws of the routes of random tokens on the simplex, one triangle a layer.

    Draws of choices all lie in the corners; there it is the posterior means of tokens.
    With two mechanisms a histogram of the first; with more than three those three that run most,
    taken as shares of their sum.
    """
    L, K = len(reading.means), len(reading.mechanisms)
    columns = min(2 if is_narrow() else 4, L)
    rows = -(-L // columns)
    figure = canvas(0.5 + (1.7 if is_narrow() else 2.1) * rows)
    drawn = reading.draws.transpose(1, 0, 2, 3).reshape(L, -1, K)
    clouds = reading.means if reading.is_of_choices else drawn
    if K < 3:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for layer, axes in enumerate(grid[:L]):
            axes.hist(clouds[layer][:, 0], 40, color=colour(0))
            axes.set_title(reading.layer_names[layer])
            axes.set(xlabel=short(reading.mechanisms[0]), yticks=[])
        for axes in grid[L:]:
            axes.set_axis_off()
        return figure
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mpltern tells of matplotlib's coming changes
        import mpltern  # noqa: F401 -- makes the projection known

        leading = np.sort(np.argsort(-reading.shares.mean(0), kind="stable")[:3])
        rng = np.random.default_rng(0)
        for layer in range(L):
            axes = figure.add_subplot(rows, columns, layer + 1, projection="ternary")
            some = clouds[layer, rng.integers(clouds.shape[1], size=CLOUD)][:, leading]
            some = some / np.maximum(some.sum(-1, keepdims=True), 1e-12)
            top, left, right = some.T
            draw: Any = axes.scatter  # of three coordinates
            draw(top, left, right, s=4, color=BLUE, alpha=0.25, lw=0, rasterized=True)
            _corners(axes, [short(reading.mechanisms[k]) for k in leading], leading)
            axes.set_title(reading.layer_names[layer], pad=14)
    return figure


def _corners(axes: Axes, names: list[str], indices: Choices) -> None:
    """Name the corners of a triangle in the colours of their mechanisms, and drop the scales."""
    for setter, side, name, index in zip(
        ("set_tlabel", "set_llabel", "set_rlabel"), "tlr", names, indices, strict=True
    ):
        getattr(axes, setter)(name, color=colour(int(index)), fontsize=9, weight="bold")
        getattr(axes, f"{side}axis").set_label_position("corner")
        getattr(axes, f"{side}axis").set_label_rotation_mode("horizontal")
        getattr(axes, f"{side}axis").set_ticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def passage(reading: Reading) -> Figure:
    """A passage of validation text, coloured by the mechanism that each token runs.

    One block per layer; of very many, those with the most mixed routes. The stronger the colour,
    the higher the posterior mean of the choice. Who skips the layer has none.
    """
    cell = min(MOST_CHARACTERS, max(len(piece) for piece in reading.text[:400]))
    columns = LINE_WIDTH // max(1, cell)
    shown = min(len(reading.text), columns * PASSAGE_LINES)
    rows = reading.rows[:MOST_BLOCKS] if reading.has_many_rows else reading.rows
    choice = reading.choice[rows, :shown]
    return coloured(
        reading.text[:shown],
        [reading.layer_names[row] for row in rows],
        np.where(choice < 0, reading.means[rows, :shown].argmax(-1), choice),
        (0.15 + 0.7 * strength(reading, slice(shown))[rows]) * reading.runs[rows, :shown],
        reading.mechanisms,
        cell,
        np.flatnonzero(np.diff(reading.sequence[:shown])) + 1,
    )


def coloured(
    pieces: Sequence[str],
    names: Sequence[str],
    chosen: Choices,
    strong: Array,
    mechanisms: Sequence[str],
    cell: int | None = None,
    starts: Sequence[int] | Choices = (),
) -> Figure:
    """Pieces of text on the colours of their choices, a block for each row.

    A short text is a narrow figure, in which the names of the mechanisms still have room.

    Parameters
    ----------
    pieces
        The text of each token, [n].
    names
        Of the rows, [R].
    chosen, strong
        Which mechanism, and how strong its colour is from 0 to 1, [R, n] each.
    mechanisms
        Their names.
    cell
        Characters that are shown of a piece (default: those of the longest, up to a bound).
    starts
        Where a sequence begins that does not see what is before: it is divided off.
    """
    if cell is None:
        cell = min(MOST_CHARACTERS, max(map(len, pieces)))
    most = LINE_WIDTH // max(1, cell)
    columns = min(most, max(len(pieces), -(-most * LEAST_INCHES // MOST_INCHES)))
    lines, rows = -(-len(pieces) // columns), len(names)
    size = MOST_INCHES * columns / most, 0.7 + rows * (0.32 + 0.25 * lines)
    figure = Figure(figsize=size, layout="constrained")
    labels = [_cell(piece, cell) for piece in pieces]
    for row, axes in enumerate(np.atleast_1d(figure.subplots(rows, 1))):
        _colour_block(axes, labels, chosen[row], strong[row], (lines, columns))
        _divide(axes, starts, columns)
        axes.set_title(names[row], loc="left", fontsize=9)
    key(figure, mechanisms)
    return figure


def _divide(axes: Axes, starts: Sequence[int] | Choices, columns: int) -> None:
    """Draw a line before each of the tokens `starts`."""
    for start in starts:
        line, column = divmod(int(start), columns)
        axes.plot([column - 0.5] * 2, [line - 0.5, line + 0.5], color=INK, lw=2, clip_on=False)


def _cell(piece: str, width: int) -> str:
    """The first characters of a piece, each of them one character wide."""
    signs = (visible(char) for char in piece[:width])
    return legible("".join(sign if len(sign) == 1 else "?" for sign in signs), missing="?")


def _colour_block(
    axes: Axes, labels: list[str], choice: Choices, strong: Array, size: tuple[int, int]
) -> None:
    """Fill a grid of lines and columns with tokens, each on the colour of its choice."""
    grid = np.ones((*size, 4))
    for index, label in enumerate(labels):
        row, column = divmod(index, size[1])
        tint = np.array(to_rgba(colour(int(choice[index]))))
        grid[row, column] = 1 - strong[index] * (1 - tint)
        axes.text(
            column, row, label, ha="center", va="center", family=families(MONO), fontsize=8,
            color="#888888" if label in SIGNS.values() else "black",
        )  # fmt: skip
    grid[..., 3] = 1
    axes.imshow(grid, aspect="auto", interpolation="nearest")
    axes.set_axis_off()
