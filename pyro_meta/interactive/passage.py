"""A text coloured by the mechanism that each token runs: a figure, or a page for a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_meta.analysis.plots.routes import certainty, coloured
from pyro_meta.analysis.plots.style import as_png, colour, styled
from pyro_meta.analysis.visible import visible

TEMPLATES = Path(__file__).parent / "templates"
TINT = 0.4
"""Opacity of the strongest colour: text on it is legible on white and on black."""
LINES = ("solid", "dashed", "dotted", "double")
"""Below the words, by mechanism: what tells them apart without colours."""
MOST_ROWS = 8
"""Layers and groups that a figure shows; the page has all."""


@dataclass(frozen=True, repr=False)
class Passage:
    """What the tokens of a text run, layer by layer; R layers and groups, T tokens.

    A notebook shows it as a page; `figure()` draws it, and `html()` is the page as text.
    """

    pieces: Sequence[str]
    """The text of each token, [T]."""
    rows: Sequence[str]
    """Names of layers and groups, [R]."""
    mechanisms: Sequence[str]
    """[K]."""
    means: NDArray[np.float32]
    """Posterior means, [R, T, K]."""
    executed: NDArray[np.float32]
    """What runs once each token is hard, as weights [R, T, K]; zeros where it skips the layer."""

    @property
    def choice(self) -> NDArray[np.int64]:
        """The mechanism that runs, of a mixture the likeliest, [R, T]."""
        found: NDArray[np.int64] = np.where(self.runs, self.executed.argmax(-1), -1)
        return np.where(found < 0, self.means.argmax(-1), found)

    @property
    def runs(self) -> NDArray[np.bool_]:
        """Which tokens run the layer, [R, T]."""
        return np.asarray(self.executed.sum(-1) > 0)

    @property
    def strength(self) -> NDArray[np.float32]:
        """How sure each choice is, from 0 (all mechanisms alike) to 1, [R, T]."""
        return certainty(self.means, self.choice)

    @property
    def shares(self) -> NDArray[np.float32]:
        """Share of the tokens of a row that run each mechanism, [R, K]."""
        return np.asarray(self.executed.mean(1))

    def figure(self) -> Figure:
        """The text once for each layer, on the colour of what runs; at most eight rows.

        Of more, those whose tokens run the most unlike.
        """
        shown = self._most_mixed()
        pieces = [visible(piece) for piece in self.pieces]
        with styled():
            return coloured(
                pieces,
                [self.rows[row] for row in shown],
                self.choice[shown],
                (0.15 + 0.7 * self.strength[shown]) * self.runs[shown],
                self.mechanisms,
            )

    def html(self) -> str:
        """The page: it needs nothing else, and takes paper and ink of where it stands."""
        return _template().render(
            mechanisms=list(zip(self.mechanisms, _paints(len(self.mechanisms)), strict=True)),
            rows=[self._row(row) for row in range(len(self.rows))],
            tint=TINT,
        )

    def __repr__(self) -> str:
        return (
            f"Passage: {len(self.pieces)} tokens, {', '.join(self.rows)}; of "
            f"{', '.join(self.mechanisms)}; .figure() draws it"
        )

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_png_(self) -> bytes:
        with styled():
            return as_png(self.figure())

    def _most_mixed(self) -> list[int]:
        if len(self.rows) <= MOST_ROWS:
            return list(range(len(self.rows)))
        shares = self.shares
        mixed = (shares * np.log(np.maximum(shares, 1e-12))).sum(-1)
        return sorted(int(row) for row in np.argsort(mixed, kind="stable")[:MOST_ROWS])

    def _row(self, row: int) -> dict[str, object]:
        choice, strength, runs = self.choice[row], self.strength[row], self.runs[row]
        tokens = []
        for at, piece in enumerate(self.pieces):
            name, mean = self.mechanisms[choice[at]], self.means[row, at, choice[at]]
            says = f"token {at}: {name}, {mean:.2f}" if runs[at] else f"token {at}: skips the layer"
            tokens.append(
                {
                    "text": visible(piece),
                    "ends": piece.endswith("\n"),
                    "mechanism": int(choice[at]) if runs[at] else None,
                    "strength": f"{strength[at]:.2f}",
                    "says": says,
                }
            )
        shares = zip(self.mechanisms, self.shares[row], strict=True)
        says = ", ".join(f"{name} {share:.0%}" for name, share in shares)
        return {"name": self.rows[row], "says": says, "tokens": tokens}


def _paints(count: int) -> list[dict[str, str]]:
    """Red, green and blue of each mechanism, and the line below its words."""
    found = []
    for index in range(count):
        red, green, blue = (round(255 * part) for part in to_rgb(colour(index)))
        found.append({"rgb": f"{red} {green} {blue}", "line": LINES[index % len(LINES)]})
    return found


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("passage.html")
