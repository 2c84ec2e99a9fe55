"""Marked blocks of a page, which code fills.

<!-- table: NAME -->
...
<!-- end -->
"""

import re
from collections.abc import Callable

BLOCK = re.compile(r"(<!-- table: (?P<name>\S+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
OPENING = re.compile(r"<!-- table:")


class BlockError(ValueError):
    """A mark that is not closed, or names no table."""


def filled(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """The page with every marked block made anew.

    Raises
    ------
    BlockError
        If a mark is open, or names a table that nobody makes.
    """

    def anew(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in tables:
            raise BlockError(f"table: {name}; there are {', '.join(sorted(tables))}")
        return f"{found[1]}\n{tables[name]()}\n\n{found[4]}"

    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise BlockError("a mark `<!-- table: NAME -->` has no `<!-- end -->`")
    return BLOCK.sub(anew, text)


def named(text: str) -> set[str]:
    """Tables that a page asks for."""
    return {found["name"] for found in BLOCK.finditer(text)}
