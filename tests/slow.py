"""Parameters that the default suite leaves to `make long`."""

from collections.abc import Iterable
from typing import Any

import pytest


def long(*values: Any) -> list[Any]:
    """Each value as a parameter of a test that is run by `make long` alone; tuples are several."""
    several = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*one, marks=pytest.mark.long) for one in several]


def all_but(every_day: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """All values, in their order; those that are not for every day are marked as long."""
    often = list(every_day)
    return [value if value in often else long(value)[0] for value in values]
