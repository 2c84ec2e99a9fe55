"""What ArviZ draws of a run: the shares of mechanisms in its draws, and what they predict.

A figure of a draw is one number, so that ArviZ's plots apply as they are: forest, prior against
posterior, predictive check and LOO-PIT.
"""

from typing import Any

import numpy as np
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from pyro_meta.analysis import arviz_versions
from pyro_meta.analysis.arviz_groups import of_predictions, of_shares, shares_by_draw
from pyro_meta.analysis.plots.style import INK, is_narrow, short, width
from pyro_meta.analysis.reading import MOST_ROWS, Reading

MOST_COMPARED = 6
"""Layers (and groups) whose prior and posterior are drawn."""


def shares_of_draws(reading: Reading) -> Figure:
    """Shares of mechanisms in draws of the posterior, by layer and mechanism."""
    rows, K = reading.rows[: MOST_ROWS // 2], len(reading.mechanisms)
    data = of_shares(reading, rows, range(K), short)
    size = (width(), 0.8 + 0.26 * len(rows) * K)
    return _inked(arviz_versions.plot_forest(data, "share", size))


def compared_rows(reading: Reading) -> list[int]:
    """Layers (and groups) in which the share of the first mechanism varies, before and after."""
    both = shares_by_draw(reading)[..., 0], reading.prior_draw_shares[..., 0]
    varies = np.all([np.ptp(one, axis=0) > 1e-6 for one in both], axis=0)
    return [row for row in reading.rows if varies[row]][:MOST_COMPARED]


def prior_and_posterior(reading: Reading) -> Figure:
    """The share of the first mechanism in draws of the prior and of the posterior, by layer."""
    rows = compared_rows(reading)
    data = of_shares(reading, rows, [0], short)
    size = (width(), 0.4 + 1.3 * len(rows))
    return _inked(arviz_versions.plot_prior_posterior(data, "share", size, only_both=is_narrow()))


def predictive_check(reading: Reading) -> Figure:
    """How often tokens come, of the commonest first: in the text and in predictive draws."""
    data = of_predictions(reading)
    return _inked(arviz_versions.plot_predictive_check(data, "rank", (width(), 3.2)))


def pit(reading: Reading) -> Figure:
    """LOO-PIT of the next token."""
    return _inked(arviz_versions.plot_pit(of_predictions(reading), "rank", (width(), 3.2)))


def pit_values(reading: Reading) -> np.ndarray:
    """Share of the predictive draws that lie below what came, [M]."""
    y, y_hat = arviz_versions.pit_arguments(of_predictions(reading), "rank")
    return (y_hat <= y[:, None]).mean(1)


def _inked(figure: Figure) -> Figure:
    """The figure with all that is black in our ink, which follows the reader's light or dark."""

    artists: list[Any] = figure.findobj(Line2D) + figure.findobj(Text)
    for artist in artists:
        if same_color(artist.get_color(), arviz_versions.INK):
            artist.set_color(INK)
    return figure
