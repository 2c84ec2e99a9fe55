"""matplotlib in a process of our own: its defaults, whatever was set up for others."""

import logging
import os


def draw_by_defaults() -> None:
    """Set aside what notebooks export and what a user's matplotlibrc says; nothing is imported.

    A process of a notebook inherits MPLBACKEND, and fails on import where that backend is not
    installed; a broken matplotlibrc, or a folder for fonts that is full, is told of at length.
    """
    os.environ["MPLBACKEND"] = "agg"
    os.environ["MATPLOTLIBRC"] = os.devnull
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
