"""Being asked to stop: by Ctrl-C, by a scheduler, by a terminal that closes."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SAME_PRESS = 1.0
"""Seconds in which a second SIGINT is the first one again: a terminal sends it to all processes of
a command, and a launcher among them forwards it."""


class Stopped(BaseException):
    """Asked to stop while nothing was held back; no `except Exception` may swallow it."""


class _Stops:
    """What was asked so far, and whether the answer is held back.

    However often one is asked, it is once: schedulers repeat themselves, and launchers forward what
    they get. Only a second Ctrl-C stops at once what is held back.
    """

    def __init__(self) -> None:
        self.asked = False
        self.held_back = 0
        self._first_interrupt: float | None = None

    def note(self, signum: int, frame: FrameType | None) -> None:
        was_asked, self.asked = self.asked, True
        if signum == signal.SIGINT:
            now = time.monotonic()
            if self._first_interrupt is None:
                self._first_interrupt = now
            elif now - self._first_interrupt >= SAME_PRESS:
                raise KeyboardInterrupt
        if not was_asked and not self.held_back:
            raise Stopped


_current: _Stops | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` at the first signal that asks to stop; later ones change nothing.

    Signals that are ignored, as by nohup, stay so. Outside the main thread nothing is changed:
    Python lets nobody handle signals there.
    """
    with _handling():
        yield


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the signals that ask to stop into a question that a loop asks when it can.

    A second SIGINT raises `KeyboardInterrupt` at once.
    """
    with _handling() as stops:
        stops.held_back += 1
        try:
            yield lambda: stops.asked
        finally:
            stops.held_back -= 1


@contextmanager
def _handling() -> Iterator[_Stops]:
    """The handlers of this process, which those within share."""
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or _Stops()
        return
    stops = _current = _Stops()
    previous = {
        kind: handler
        for kind in KINDS
        if (handler := signal.getsignal(kind)) not in (signal.SIG_IGN, None)
    }
    try:
        for kind in previous:
            signal.signal(kind, stops.note)
        yield stops
    finally:
        _current = None
        for kind, handler in previous.items():
            signal.signal(kind, handler)
