"""Losses of a mechanism's own, from the layer where they arise to the objective.

A mechanism reports what it wants to be small beside the model's loss, and the model collects it
from a forward pass. Nothing is kept in modules: where nobody collects, there is no trace.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_collected: ContextVar[list[Tensor] | None] = ContextVar("penalties", default=None)


@contextmanager
def collected_penalties() -> Iterator[list[Tensor]]:
    """The penalties that are reported meanwhile, scalars in nats per token."""
    found: list[Tensor] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def are_collected() -> bool:
    """Whether a penalty would reach anybody."""
    return _collected.get() is not None


def report_penalty(penalty: Tensor) -> None:
    """Hand a scalar in nats per token to `collected_penalties`, where that is open."""
    found = _collected.get()
    if found is not None:
        found.append(penalty)
