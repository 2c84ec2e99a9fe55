"""Standard output that may be closed, full, or read by somebody who has gone."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Outlet(io.TextIOBase):
    """A text stream that remembers why it could not be written to.

    Parameters
    ----------
    stream
        Where text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.must_last = False
        """Drop what can no longer be shown, instead of raising: the work matters more."""

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        return self._stream.buffer

    def _try(self, act: Any) -> None:
        if self.failure is not None and self.must_last:
            return
        try:
            act()
        except OSError as error:
            self.failure = error
            if not self.must_last:
                raise


@contextmanager
def outlet() -> Iterator[Outlet]:
    """Let standard output be an `Outlet`, and what is closed lead nowhere."""
    _fill_closed()
    before, error_before = sys.stdout, sys.stderr
    sys.stdout = before or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- to the end
    sys.stderr = error_before or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show must not stop us
            stream.reconfigure(errors="replace")
    out, errors = Outlet(sys.stdout), Outlet(sys.stderr)
    errors.must_last = True  # there is nowhere left to say so
    sys.stdout, sys.stderr = out, errors
    try:
        yield out
    finally:
        for one in (out, errors):
            if one.failure is not None:  # Python would try again at its end, and say so
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), one.fileno())
        sys.stdout, sys.stderr = before, error_before


@contextmanager
def keep_going() -> Iterator[None]:
    """Work that matters more than being seen: what can no longer be shown is dropped."""
    out = sys.stdout
    if not isinstance(out, Outlet):
        yield
        return
    out.must_last = True
    try:
        yield
    finally:
        out.must_last = False


def _fill_closed() -> None:
    """Open /dev/null where a standard stream is closed: else the next file takes its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
