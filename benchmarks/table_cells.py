"""Cells and rows of the tables in the docs: numbers with leading zeros, Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """`0.033`; empty where nothing was measured."""
    if value is None:
        return ""
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """`98.6%`; a whole number of percent without its point."""
    if value is None:
        return ""
    written = f"{100 * value:.{digits}f}"
    return f"{written.rstrip('0').rstrip('.') if '.' in written else written}%"


def spread(figure: dict[str, Any] | None, digits: int = 3) -> str:
    """Mean and standard deviation over seeds; the deviation only of several seeds."""
    if figure is None:
        return ""
    if figure["seeds"] < 2:
        return number(figure["mean"], digits)
    return plus_minus(figure["mean"], figure["deviation"], digits)


def plus_minus(value: float, spread: float, digits: int = 3) -> str:
    """In one piece: a cell is not broken at its spaces."""
    return f"{value:.{digits}f}\u00a0±\u00a0{spread:.{digits}f}"


def times(value: float) -> str:
    """How many times: two digits that count."""
    return f"{value:.1f}" if abs(value) >= 9.95 else f"{value:.2f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, without a line end."""
    lines = [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]
    return "\n".join(lines)


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
