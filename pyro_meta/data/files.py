"""Text files: which ones a path names, each once, and their text as it stands in them.

A mark of the byte order at the start of a file is no text. Line ends are kept as they are.
"""

import codecs
import glob
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyro_meta.errors import UsageError

READ_CHARACTERS = 1 << 20
MOST_PROMPT_BYTES = 1 << 26
BLANKS = " \t\r\v\f"
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
"""Marks of other encodings; that of UTF-32 begins with that of UTF-16."""


class Found(NamedTuple):
    """Files of text, and how many there were that are not among them."""

    files: list[Path]
    repeats: int
    """Further names of a file that is there already: links, or patterns that overlap."""
    others: int
    """Pipes, sockets, devices, links to folders, and links that lead nowhere."""

    def left_out(self) -> str:
        """How many were left out, and why; nothing if none was."""
        parts = []
        if self.repeats:
            parts.append(f"{self.repeats} named more than once")
        if self.others:
            parts.append(f"{self.others} no plain file (link to a folder, pipe or device)")
        return f"left out: {', '.join(parts)}" if parts else ""

    def described(self) -> list[object]:
        """What tells that files have changed, or are others."""
        return [[str(file.resolve()), *stamp(file)] for file in self.files]

    def require_unchanged(self, path: object, described: object) -> None:
        """Raise `UsageError` unless the files of a `path` are still as they were described."""
        if self.described() != described:
            raise UsageError(f"data.path: {path} was changed while it was read")


def find_files(path: str) -> Found:
    """The files that a path, a folder or a glob names, each of them once.

    Links to files are followed, links to folders inside a folder are not.

    Raises
    ------
    UsageError
        There is none, or a folder cannot be read.
    """
    try:
        given = Path(path).expanduser()
        if given.is_dir():
            named = sorted(entry for entry in _entries(given) if not _is_hidden(entry, given))
        elif os.path.lexists(given):
            named = [given]
            require_plain(given, "data.path")
        else:
            named = [Path(name) for name in sorted(set(_matches(str(given))))]
            named = [name for name in named if not name.is_dir()]
        found = _each_once(named)
    except UsageError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        named_by = getattr(error, "filename", None) or path
        raise UsageError(f"data.path: {named_by!s}: {reason}") from error
    if not found.files:
        raise UsageError(
            f"data.path: {path}: no such file, and no file in a folder or glob"
            + (f" ({found.left_out()})" if found.others else "")
        )
    return found


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, links to folders included."""
    for inside, folders, files in os.walk(folder, onerror=_refuse):
        for name in files + [name for name in folders if Path(inside, name).is_symlink()]:
            yield Path(inside, name)


def _refuse(error: OSError) -> None:
    raise error


def _matches(pattern: str) -> Iterator[str]:
    """Names that a glob matches; `**` enters no links, which may lead in circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    for start in glob.iglob(str(Path(*parts[:at]))) if at else ["."]:
        for inside, folders, _ in os.walk(start, onerror=_refuse) if Path(start).is_dir() else ():
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _matches(str(Path(glob.escape(inside), *rest)))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _each_once(named: list[Path]) -> Found:
    seen: set[tuple[int, int]] = set()
    files, repeats, others = [], 0, 0
    for name in named:
        try:
            status = name.stat()
        except OSError:  # a link that leads nowhere, or in a circle
            others += 1
            continue
        if not stat.S_ISREG(status.st_mode):
            others += 1
        elif (status.st_dev, status.st_ino) in seen:
            repeats += 1
        else:
            seen.add((status.st_dev, status.st_ino))
            files.append(name)
    return Found(files, repeats, others)


def require_plain(path: Path, option: str) -> None:
    """Raise `UsageError` unless `path` is a file that can be read more than once, and ends.

    A pipe can only be read once, and a device may go on for ever.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{option}: {path}: {reason}") from error
    if not stat.S_ISREG(mode):
        raise UsageError(f"{option}: {path} is {_kind(mode)}; a file of text is needed")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def stamp(path: str | Path) -> list[int]:
    """What tells that a file has changed: its place, size and times; nothing for no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def read_files(files: list[Path]) -> Iterator[str]:
    """Text of the files in pieces of about a megabyte.

    Pieces end at line ends, in longer lines before a blank. Between two files stands a line end.
    """
    held = ""
    for file in files:
        for number, piece in enumerate(_read(file)):
            if held:
                is_between = number == 0 and not held.endswith(("\n", "\r"))
                yield held + "\n" * is_between
            held = piece
    if held:
        yield held


def _read(file: Path) -> Iterator[str]:
    try:
        with open(file, "rb") as raw:
            _require_utf8(raw.read(4096), file)
            raw.seek(0)
            with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
                rest = ""
                while more := text.read(READ_CHARACTERS):
                    rest += more
                    if len(rest) < READ_CHARACTERS:
                        continue  # its end
                    cut = place_to_cut(rest)
                    yield rest[:cut]
                    rest = rest[cut:]
                if rest:
                    yield rest
    except UnicodeDecodeError as error:
        raise UsageError(
            f"data.path: {file} is not UTF-8 text (byte {error.object[error.start]:#04x}: "
            f"{error.reason}); name text files, for example with a glob '**/*.txt'"
        ) from error
    except OSError as error:
        raise UsageError(f"data.path: {file}: {error.strerror}") from error


def place_to_cut(text: str) -> int:
    """Where to cut: after the last line end, else before the last blank, else at the end."""
    line = text.rfind("\n") + 1
    return line or max(0, *(text.rfind(blank) for blank in BLANKS)) or len(text)


def _require_utf8(head: bytes, file: Path, option: str = "data.path") -> None:
    """Raise `UsageError` where the head of a file is that of UTF-16 or UTF-32.

    Without a mark, plain letters in them are UTF-8 as well, with a NUL beside each.
    """
    kind = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if kind is None and 3 * head.count(0) >= len(head) > 0:
        kind = "UTF-16, UTF-32 or no"
    if kind is not None:
        raise UsageError(
            f"{option}: {file} is {kind} text, not UTF-8; `iconv -t UTF-8 -f ...` can change it"
        )


def read_text(path: Path, option: str) -> str:
    """The whole text of one file, which may be a pipe.

    Raises
    ------
    UsageError
        It is not UTF-8 text, cannot be read, or is longer than 64 MiB.
    """

    def opener(name: str, flags: int) -> int:
        # a pipe that nobody writes to is empty; it is not waited for
        handle = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(handle, True)
        return handle

    try:
        mode = path.expanduser().stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise UsageError(f"{option}: {path} is {_kind(mode)}; a file of text is needed")
        with open(path.expanduser(), "rb", opener=opener) as file:
            raw = file.read(MOST_PROMPT_BYTES + 1)
        if len(raw) > MOST_PROMPT_BYTES:
            raise UsageError(
                f"{option}: {path} is longer than {MOST_PROMPT_BYTES:,} bytes; "
                "a shorter text is needed"
            )
        _require_utf8(raw[:4096], path, option)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{option}: {path} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UsageError(f"{option}: {path}: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{option}: {str(path)!r}: {error}") from error
