"""What the scripts here share: their options are read, and what goes wrong is one line.

    parser = Parser(__doc__)
    parser.add_argument("--json", type=a_file_to_write, required=True)
    ...
    if __name__ == "__main__":
        run_script(main)

What may be refused is refused while the words are read, before anything is measured. The exit code
is then 2, as that of the package's commands; `--debug` shows the traceback before the line.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import INTERRUPTED, USAGE_ERROR, as_line
from pyro_meta.terminal.measured import write_measured
from pyro_meta.terminal.mistakes import unknown


class Parser(argparse.ArgumentParser):
    """A parser of a script's words, that raises `UsageError`.

    Parameters
    ----------
    doc
        The script's docstring; its first line is the description.
    """

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=(doc or "").partition("\n")[0], allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="Show the traceback of an error.")

    def parse_args(self, *words: Any, **more: Any) -> Any:
        """As argparse's; folders of files to write are made, since nothing is refused any more."""
        options = super().parse_args(*words, **more)
        self.make_folders(options)
        return options

    def make_folders(self, options: argparse.Namespace) -> None:
        """Make the folders of files to write."""
        for action in self._actions:
            path = getattr(options, action.dest, None)
            if action.type is a_file_to_write and path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`: the option, what is given and what is allowed."""
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            if not found[1].startswith("-"):
                raise UsageError(f"{found[1]!r} belongs to no option")
            raise UsageError(unknown(found[1].partition("=")[0], self._option_string_actions))
        if found := re.match(r"the following arguments are required: ([^,]+)", message):
            kind = "option " * found[1].startswith("-")
            raise UsageError(f"{kind}{found[1]}: it is missing; --help shows what is needed")
        if found := re.match(r"argument ([^:]+): (.*)", message, re.DOTALL):
            raise UsageError(f"{'option ' * found[1].startswith('-')}{found[1]}: {found[2]}")
        raise UsageError(message)


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script and exit; whatever goes wrong becomes one line and code 2.

    No signal is handled: some scripts have children that handle their own.
    """
    code = 0
    try:
        code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(f"error: {stop.code}", file=sys.stderr)
            code = USAGE_ERROR
        else:
            code = stop.code or 0
    except BrokenPipeError:  # whoever read it has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {_line(error)}", file=sys.stderr)
        code = USAGE_ERROR
    sys.exit(code)


def _line(error: Exception) -> str:
    """What went wrong, of a command that failed in its own words, if it has any."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    last = said.strip().rpartition("\n")[2] if isinstance(said, str) else ""
    return last.removeprefix("error: ") or as_line(error)


def give(path: Path | None, found: Mapping[str, Any]) -> None:
    """Write what was measured, with its entry where there is an index; without a path print it."""
    if path is None:
        print(json.dumps(found, indent=1))
    else:
        write_measured(path, found)


# -- what an option takes --------------------------------------------------------------------------


def a_whole(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def a_count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ArgumentTypeError(
            f"{text} given; a whole number of at least {least} is allowed"
        ) from None
    return number


def positive(text: str) -> float:
    """A number above 0."""
    return _between(text, float("inf"), "a number above 0")


def a_share(text: str) -> float:
    """A number above 0, of at most 1."""
    return _between(text, 1.0, "a number above 0, at most 1,")


def _between(text: str, most: float, allowed: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number <= most or number == float("inf"):
        raise ArgumentTypeError(f"{text} given; {allowed} is allowed")
    return number


def a_run(text: str) -> str:
    """The folder of a run."""
    if not (Path(text) / "config.yaml").is_file():
        raise ArgumentTypeError(f"{text} is not a run: it has no config.yaml")
    return text


def a_text(text: str) -> str:
    """A file, a folder or a glob of texts."""
    from pyro_meta.data.files import find_files

    try:
        find_files(text)
    except UsageError as error:
        raise ArgumentTypeError(str(error).removeprefix("data.path: ")) from error
    return text


def a_folder(text: str) -> Path:
    """A folder that is there, and not empty."""
    path = Path(text)
    if not path.is_dir() or not any(path.iterdir()):
        what = "is empty" if path.is_dir() else "is no folder"
        raise ArgumentTypeError(f"{text} {what}; a folder with files in it is needed")
    return path


def a_file(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise ArgumentTypeError(f"{text} is no file; one that is there is needed")
    return Path(text)


def a_file_to_write(text: str) -> Path:
    """A file that can be written; its folder is made once all words are read."""
    path = Path(text)
    if not text or path.is_dir():
        raise ArgumentTypeError(f"{text!r} is no name of a file")
    _require_place(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise ArgumentTypeError(f"{path} cannot be written")
    return path


def a_folder_to_write(text: str) -> Path:
    """A folder that files can be written to; it need not be there yet."""
    if not text:
        raise ArgumentTypeError(f"{text!r} is no name of a folder")
    _require_place(Path(text))
    return Path(text)


def _require_place(folder: Path) -> None:
    """Refuse a folder that is not there and cannot be made, or cannot be written to."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ArgumentTypeError(f"{there} is no folder that can be written to")
