"""What a person at the terminal meets: one error line, help at once, exit codes."""

import errno
import itertools
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from pyro_meta import __version__
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import blame
from pyro_meta.terminal.consoles import printable
from pyro_meta.terminal.extras import missing
from pyro_meta.terminal.help import HelpFormatter, reword
from pyro_meta.terminal.mistakes import explain, option_strings, unknown
from pyro_meta.terminal.option_files import bare, harmless, is_null, lenient, require_finite
from pyro_meta.terminal.pictures import draw_by_defaults
from pyro_meta.terminal.signals import Stopped, stoppable
from pyro_meta.terminal.streams import Outlet, outlet

# The docstring below an option of a dataclass is its help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

VERSION = f"pyro-meta {__version__}"
USAGE_ERROR = 2
INTERRUPTED = 130
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Errors that no class is to blame for, whosever write they meet."""
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc|Unable to allocate")
"""What torch, C++ and NumPy say where memory ends: torch raises a plain RuntimeError."""


def run_command(command: Callable[[list[str]], int | None]) -> None:
    """Run an entry point and exit; whatever goes wrong becomes one line and code 2.

    With `--debug` the traceback comes before the line.
    """
    draw_by_defaults()
    with outlet() as out, _plain_warnings(), stoppable():
        code = _outcome(command, out)
    sys.exit(code)


def _outcome(command: Callable[[list[str]], int | None], out: Outlet) -> int:
    try:
        code = command(sys.argv[1:]) or 0
        out.flush()
    except (Stopped, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if (blamed := blame(_inside(stop))) is not None:
            return refuse(blamed)
        code = stop.code if isinstance(stop.code, int) else USAGE_ERROR
    except BrokenPipeError:
        if out.failure is None:  # some other pipe
            return refuse("a process that was talked to has gone")
        return 0
    except Exception as error:
        if "--debug" in sys.argv or "--debug=true" in sys.argv:
            traceback.print_exc()
        return refuse("standard output: " * (out.failure is error) + as_line(_inside(error)))
    if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
        return refuse(f"standard output: {as_line(out.failure)}")
    return code


def _inside(error: BaseException) -> BaseException:
    """An error as the command met it: a script whose `main` is run here is no class of its own."""
    trace = error.__traceback__
    return error.with_traceback(trace and trace.tb_next)


def refuse(line: str) -> int:
    """Say why a command does not run; its exit code."""
    print(f"error: {line}", file=sys.stderr)
    return USAGE_ERROR


def as_line(error: BaseException) -> str:
    """What went wrong in one line that names the file or the option, where one is known."""
    if isinstance(error, UsageError):
        text = str(error)
    elif type(error).__name__ == "OutOfMemoryError":  # of torch, which may not be loaded
        text = f"the device's memory is not enough: {error}"
    elif isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        text = "memory is not enough: lower --batch, --context, --width or --max_tokens"
    elif isinstance(error, OSError) and error.errno in OF_THE_DISK:
        text = _of_file(error)
    elif (blamed := blame(error)) is not None:
        text = blamed
    elif (needed := missing(error)) is not None:
        text = needed
    elif isinstance(error, OSError):
        text = _of_file(error)
    else:
        text = f"{type(error).__name__}: {error} (--debug shows where)"
    return printable(" ".join(text.split()))


def _of_file(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*names[:1], error.strerror or str(error)])


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line of what they say, without the line of code that gave them."""

    def plain(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        return f"warning: {printable(' '.join(str(message).split()))}\n"

    before = warnings.formatwarning
    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


class CommandParser(ArgumentParser):
    """A parser with our help; jsonargparse makes the parser of a class's arguments another one."""

    def __init__(self, *args: Any, formatter_class: type = HelpFormatter, **options: Any) -> None:
        super().__init__(*args, formatter_class=formatter_class, **options)


def command_parser(
    module: str, description: str, has_own_debug: bool = False, **options: Any
) -> ArgumentParser:
    """The parser of `python -m pyro_meta.MODULE`; options are never abbreviated.

    `has_own_debug`: `--debug` means more there than to show a traceback.
    """
    parser = CommandParser(
        prog=f"python -m pyro_meta.{module}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        **options,
    )
    parser.add_argument(
        "--version", action="version", version=VERSION, help="Show the version and exit."
    )
    if not has_own_debug:
        parser.add_argument(
            "--debug", type=bool, default=False, help="Show the traceback of an error."
        )
    reword(parser, {"--help": "Show this help and exit."})
    return parser


TRUST_HELP = (
    "Let the run import classes that pyro_meta does not ship: their code is run (default: false)."
)
"""Of the option --trust, which every command that opens a run has."""


def answer(
    parser: ArgumentParser, argv: Sequence[str], classes: Collection[str] = (), *more: str
) -> None:
    """Answer --help, --version and a mistyped option, before a command imports what it needs.

    Parameters
    ----------
    parser
        A parser of the command's options; their values are not looked at.
    argv
        The words of the command line.
    classes
        Options whose value is a class: its arguments are options that are not known.
    more
        Options besides those of `parser`.

    Raises
    ------
    SystemExit
        With code 0: the help or the version is shown.
    UsageError
        There is no such option; near matches are given.
    """
    words = list(itertools.takewhile(lambda word: word != "--", argv))
    if not {"-h", "--help"}.isdisjoint(words):
        parser.print_help()
        sys.exit(0)
    if "--version" in words:
        print(VERSION)
        sys.exit(0)
    known = [*option_strings(parser), *(f"--{name}.help" for name in classes), *more]
    for word in words:
        name = word.partition("=")[0]
        is_option = name.startswith("--") and " " not in name  # else a value of the option before
        if is_option and name not in known and not _is_argument(name, classes):
            raise UsageError(unknown(name, known))


def _is_argument(option: str, classes: Collection[str]) -> bool:
    """Whether an option is an argument of a class, such as --prior.rate."""
    return any(option.startswith(f"--{name}.") for name in classes)


def parse(
    parser: ArgumentParser, argv: Sequence[str], classes: dict[str, type] | None = None
) -> Namespace:
    """Parse the words of a person; whatever is wrong becomes a `UsageError` that names the option.

    A null means the default, except where text is asked for. `classes` gives the base class of each
    option whose value is a class.
    """
    words = without_nulls([_harmless(word) for word in with_values(argv, parser)], parser)
    parsed: Namespace = bare(parse_exactly(parser, words, classes))
    return parsed


def parse_exactly(
    parser: ArgumentParser, words: Sequence[str], classes: dict[str, type] | None = None
) -> Namespace:
    """As `parse`, of words that YAML can read or that are exact (`option_files.exact`); so is text
    of the result, for `option_files.bare`."""
    _require_paths(parser, words)
    try:
        try:
            parsed = parser.parse_args(list(words))
        except Exception:
            again = [lenient(word) for word in words]
            if again == list(words):
                raise
            parsed = parser.parse_args(again)
    except UsageError:
        raise
    except Exception as error:  # jsonargparse raises many kinds for bad input
        raise UsageError(explain(error, parser, classes or {})) from error
    require_finite(parsed)
    return parsed


def _require_paths(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Refuse the empty path, which would be the current folder."""
    of_paths = {
        name
        for action in parser._actions
        if getattr(action, "_typehint", None) in (Path, Path | None)
        for name in action.option_strings
    }
    for word, after in itertools.pairwise([*words, "--"]):
        name, sign, value = word.partition("=")
        if name in of_paths and not (value if sign else after):
            raise UsageError(f"option {name}: it is empty; a path is needed")


def _harmless(word: str) -> str:
    option, sign, value = word.partition("=")
    return option + sign + harmless(value) if word.startswith("--") else harmless(word)


@contextmanager
def unread_docstrings() -> Iterator[None]:
    """Leave the docstrings of attributes unread, which only a help shows: half a second for ours.

    They stand in the source, and jsonargparse reads that of all bases of a class: torch's too.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    try:
        yield
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)


def with_values(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """A switch without a value, such as `--debug`, means true."""
    switches = {
        name
        for action in parser._actions
        if getattr(action, "_typehint", None) is bool
        for name in action.option_strings
    }
    words = []
    for word, after in zip(argv, [*argv, ""][1:], strict=True):
        is_alone = word in switches and after.lower() not in ("true", "false", "null")
        words.append(f"{word}=true" if is_alone else word)
    return words


def without_nulls(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Leave out options whose value is null, except those that take text."""
    by_default = {
        name
        for action in parser._actions
        if getattr(action, "_typehint", None) not in (None, str)
        for name in action.option_strings
    }
    kept: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, sign, value = word.partition("=")
        if name in by_default and is_null(value if sign else left[0] if left else ""):
            left = left if sign else left[1:]
        else:
            kept.append(word)
    return kept
