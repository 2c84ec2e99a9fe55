"""How far text is prepared: told to a command's status line, if there is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TELL: ContextVar[Callable[[str], object]] = ContextVar("tell", default=lambda what: None)


@contextmanager
def telling(told: Callable[[str], object]) -> Iterator[None]:
    """Let `told` be called with what is done, in a few words, whenever there is something new."""
    before = _TELL.set(told)
    try:
        yield
    finally:
        _TELL.reset(before)


def tell(what: str) -> None:
    """Say what is done."""
    _TELL.get()(what)
