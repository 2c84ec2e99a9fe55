"""What a person at the terminal meets: one error line, help at once, exit codes."""

import io
import itertools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from pyro_meta import __version__
from pyro_meta.errors import UsageError
from pyro_meta.terminal.help import HelpFormatter, reword
from pyro_meta.terminal.mistakes import explain, option_strings, unknown

# The docstring below an option of a dataclass is its help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

VERSION = f"pyro-meta {__version__}"
USAGE_ERROR = 2
INTERRUPTED = 130


def run_command(command: Callable[[list[str]], int | None]) -> None:
    """Run an entry point and exit; a `UsageError` becomes one line and code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show must not stop us
            stream.reconfigure(errors="replace")
    try:
        code = command(sys.argv[1:]) or 0
    except UsageError as error:
        if is_first_process():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        code = 0
    sys.exit(code)


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes, known before any launch."""
    is_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return int(os.environ.get("RANK" if is_torchrun else "LOCAL_RANK", "0")) == 0


class CommandParser(ArgumentParser):
    """A parser with our help; jsonargparse makes the parser of a class's arguments another one."""

    def __init__(self, *args: Any, formatter_class: type = HelpFormatter, **options: Any) -> None:
        super().__init__(*args, formatter_class=formatter_class, **options)


def command_parser(module: str, description: str, **options: Any) -> ArgumentParser:
    """The parser of `python -m pyro_meta.MODULE`; options are never abbreviated."""
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
    reword(parser, {"--help": "Show this help and exit."})
    return parser


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
    """Parse `argv`; whatever is wrong with it becomes a `UsageError` that names the option.

    `classes` gives the base class of each option whose value is a class.
    """
    try:
        return parser.parse_args(with_values(argv, parser))
    except UsageError:
        raise
    except Exception as error:  # jsonargparse raises many kinds for bad input
        raise UsageError(explain(error, parser, classes or {})) from error


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
        is_alone = word in switches and after.lower() not in ("true", "false")
        words.append(f"{word}=true" if is_alone else word)
    return words
