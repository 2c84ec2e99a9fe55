"""The three pictures that a user wants first; each takes a `Reading` and returns a figure."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_meta.analysis.reading import Reading
from pyro_meta.analysis.routing import load

# Okabe and Ito's colours, told apart with every kind of colour vision.
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
LINE_WIDTH, PASSAGE_LINES, MOST_CHARACTERS = 80, 4, 8
BLANKS = {"\n": "\u23ce", "\t": "\u2192", "\r": "\u240d", "\ufffd": "\u25a1"}


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def load_by_layer(reading: Reading) -> Figure:
    """Share of tokens that choose each mechanism, by layer, with the prior's mean beside it."""
    figure = Figure(figsize=(8, 0.9 + 0.62 * len(reading.means)), layout="constrained")
    axes = figure.subplots()
    shares = load(reading.means)  # [L, K]
    prior = reading.prior_draws.mean((0, 2))  # [L, K]
    rows = np.arange(len(shares))
    for values, offset, height, alpha in ((shares, -0.14, 0.5, 1.0), (prior, 0.28, 0.16, 0.45)):
        left = np.zeros(len(shares))
        for index in range(len(reading.mechanisms)):
            width = values[:, index]
            bars = axes.barh(
                rows + offset, width, height, left=left, color=_colour(index), alpha=alpha
            )
            if alpha == 1.0:
                labels = [f"{share:.0%}" if share >= 0.06 else "" for share in width]
                axes.bar_label(bars, labels, label_type="center", color="white", fontsize=9)
            left += width
    axes.set(
        yticks=rows,
        yticklabels=[f"layer {row}" for row in rows],
        xlim=(0, 1),
        xlabel="share of tokens (wide bars: hard choices; thin bars: mean of the prior)",
    )
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    _legend(figure, reading)
    return figure


def entropy_over_training(reading: Reading) -> Figure:
    """Mean entropy of the posterior means by layer, with the schedules that act on it."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    steps, curves, weight = reading.steps, reading.entropy_by_step, reading.kl_weight
    width = max(1, len(steps) // 100)
    shades = np.linspace(0.35, 1.0, curves.shape[1])
    for layer, shade in enumerate(shades):
        smooth = _running_mean(curves[:, layer], width)
        axes.plot(steps, smooth, color=to_rgba("#0072b2", shade), label=f"layer {layer}")
    hard = _running_mean(reading.hard_share, width)
    axes.fill_between(
        steps, 0, hard, color="#e69f00", alpha=0.18, lw=0, label="share of hard tokens"
    )
    axes.plot(
        steps, weight / max(weight.max(), 1e-12), color="#555555", ls=":", lw=1.2,
        label=f"KL weight (final {weight[-1]:.3g})",
    )  # fmt: skip
    axes.set(
        xlabel="step",
        ylabel="routing entropy H(m) / log K",
        ylim=(0, 1.02),
        xlim=(0, steps[-1]),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def passage(reading: Reading) -> Figure:
    """A passage of validation text, coloured by the mechanism that each token chooses.

    One block per layer; the stronger the colour, the higher the posterior mean of the choice.
    """
    cell = min(MOST_CHARACTERS, max(len(piece) for piece in reading.text))
    columns = LINE_WIDTH // cell
    shown = min(len(reading.text), columns * PASSAGE_LINES)
    layers, lines = len(reading.means), -(-shown // columns)
    figure = Figure(figsize=(11, 0.7 + layers * (0.32 + 0.25 * lines)), layout="constrained")
    blocks = np.atleast_1d(figure.subplots(layers, 1))
    labels = ["".join(BLANKS.get(c, c) for c in piece)[:cell] for piece in reading.text[:shown]]
    for layer, axes in enumerate(blocks):
        _colour_block(axes, labels, reading.means[layer, :shown], (lines, columns))
        axes.set_title(f"layer {layer}", loc="left", fontsize=9, color="#444444")
    _legend(figure, reading)
    return figure


def _colour_block(axes: Axes, labels: list[str], means: np.ndarray, size: tuple[int, int]) -> None:
    """Fill a grid of lines and columns with tokens, each on the colour of its choice."""
    K = means.shape[-1]
    choice, certainty = means.argmax(-1), means.max(-1)
    strength = np.clip((certainty - 1 / K) / (1 - 1 / K), 0, 1) if K > 1 else np.ones(len(means))
    grid = np.ones((*size, 4))
    for index, (label, chosen, strong) in enumerate(zip(labels, choice, strength, strict=True)):
        row, column = divmod(index, size[1])
        colour = np.array(to_rgba(_colour(int(chosen))))
        grid[row, column] = 1 - (0.15 + 0.7 * strong) * (1 - colour)
        axes.text(
            column, row, label, ha="center", va="center", family="monospace", fontsize=8,
            color="#888888" if label in BLANKS.values() else "black", parse_math=False,
        )  # fmt: skip
    grid[..., 3] = 1
    axes.imshow(grid, aspect="auto", interpolation="nearest")
    axes.set_axis_off()


def _legend(figure: Figure, reading: Reading) -> None:
    patches = [Patch(color=_colour(k), label=name) for k, name in enumerate(reading.mechanisms)]
    figure.legend(
        handles=patches, loc="outside upper left", ncols=len(patches), frameon=False, fontsize=9
    )


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Means over the last `width` values, fewer at the start."""
    sums = np.cumsum(np.insert(values.astype(float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
