"""Consoles that show what they are given: a name with brackets, colons or escapes is a name.

A notebook is no terminal, nor is a file: lines stay where they are written there, and nothing is
drawn anew. What takes long there says so on a line now and then.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape

SILENT_S = 30.0
"""After so long without a line, one is printed where nothing can be drawn anew."""
JOINERS = "\u200c\u200d\u00ad"
"""Marks within words that have no shape of their own, and do no harm."""


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console on standard output, or on standard error: `:smile:` stays what it is.

    A notebook gets lines of text, as a file does.
    """
    return Console(stderr=stderr, quiet=quiet, emoji=False, highlight=False, force_jupyter=False)


def is_live(console: Console) -> bool:
    """Whether lines can be drawn anew. FORCE_COLOR alone, which notebooks set, asks for colours."""
    return console.is_terminal and console.file.isatty()


@contextmanager
def busy(out: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Say what is being done until it is, where that can be wiped away; gives what says more.

    Elsewhere it is said on standard error, if it takes long.
    """
    if is_live(out):
        with out.status(what) as status:
            yield lambda more: status.update(escape(more))
        return
    began, said = time.monotonic(), what

    def note(more: str) -> None:
        nonlocal said
        said = more

    def line() -> str:
        return f"{printable(said)} ({time.monotonic() - began:.0f} s)"

    with breaking_silence(console(stderr=True, quiet=out.quiet), line):
        yield note


@contextmanager
def breaking_silence(console: Console, line: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Print `line()` whenever nothing was printed for `SILENT_S`; nothing on a terminal.

    Gives what is to be called when something else is printed.
    """
    if is_live(console):
        yield lambda: None
        return
    printed, is_over = time.monotonic(), threading.Event()

    def note() -> None:
        nonlocal printed
        printed = time.monotonic()

    def speak() -> None:
        while not is_over.wait(max(0.0, printed + SILENT_S - time.monotonic())):
            if time.monotonic() - printed >= SILENT_S:
                note()
                with suppress(OSError, ValueError):  # whoever read it has gone; the work has not
                    console.print(line(), markup=False, soft_wrap=True)

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield note
    finally:
        is_over.set()
        speaker.join()


def printable(text: str) -> str:
    r"""A name or a value as one line that a terminal, a page and a picture can show.

    Control characters, line ends, overrides of the direction of writing and halves of surrogate
    pairs are written as in Python: `\x1b`, `\n`, `\u202e`, `\udcff`. What is none stays as it is.
    """
    return "".join(
        char if char.isprintable() or char in JOINERS or _is_space(char) else _escaped(char)
        for char in text
    )


def _is_space(char: str) -> bool:
    """A space of some width; line and paragraph separators, and controls, are none."""
    return char.isspace() and char > "\x85" and char not in "\u2028\u2029"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
