"""SHA256SUMS: what the files of a folder were when they were written.

The format is that of sha256sum, so that `sha256sum -c SHA256SUMS` checks a run without pyro_meta.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_meta.folders import write_whole

NAME = "SHA256SUMS"
OF_A_RUN = (
    "config.yaml", "vocabulary.json", "metrics.jsonl", "sequences.json", "posterior.nc",
    "summary.json",
)  # fmt: skip
"""Files of a finished run that decide its results."""
MOST_BYTES = 1 << 16
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")


def sha256(path: Path) -> str:
    """The hash of a plain file.

    Raises
    ------
    OSError
        It cannot be read, or is none: a device or a pipe would never end, and a link leads away.
    """
    require_plain(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_plain(path: Path) -> int:
    """The size of a plain file in bytes; raises `OSError` for anything else, a link too."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no plain file")
    return status.st_size


def seal(folder: Path, contents: Mapping[str, bytes] | None = None) -> None:
    """Write the checksums of a run's files, and of `contents` that are about to be written.

    Raises
    ------
    OSError
        A file is missing.
    """
    coming = {name: hashlib.sha256(data).hexdigest() for name, data in (contents or {}).items()}
    known = {name: coming.get(name) or sha256(folder / name) for name in OF_A_RUN}
    _write(folder, known)


def renew(folder: Path, *names: str) -> None:
    """Write the checksums of files anew that were made again on purpose."""
    _write(folder, _read(folder) | {name: sha256(folder / name) for name in names})


def damage(folder: Path) -> str | None:
    """What is not as it was written in a finished run, in one line; None if all is."""
    try:
        known = _read(folder)
        for name in OF_A_RUN:
            if sha256(folder / name) != known[name]:
                return f"{name} is not what was written: {NAME} has another hash"
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error)
    except ValueError as error:
        return str(error)
    return None


def _read(folder: Path) -> dict[str, str]:
    """Names and hashes; raises `ValueError` unless every file of a run is among them."""
    path = folder / NAME
    if require_plain(path) > MOST_BYTES:
        raise ValueError(f"{NAME} is damaged")
    text = path.read_text(encoding="utf-8", errors="replace")
    found = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    known = {match[2]: match[1] for match in found if match}
    if len(known) != len(found) or set(known) != set(OF_A_RUN) or not text.endswith("\n"):
        raise ValueError(f"{NAME} is damaged")
    return known


def _write(folder: Path, known: Mapping[str, str]) -> None:
    write_whole(folder / NAME, "".join(f"{known[name]}  {name}\n" for name in OF_A_RUN))


def sealed(content: Mapping[str, Any]) -> str:
    """JSON that carries its own hash under `sha256`, so that `unsealed` sees any change."""
    return json.dumps({**content, "sha256": _hash_of(content)}) + "\n"


def unsealed(path: Path, most_bytes: int = 1 << 24) -> dict[str, Any]:
    """The content of a plain file that `sealed` made.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is not as it was written.
    """
    if require_plain(path) > most_bytes:
        raise ValueError(f"{path.name} is too long")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deep") from error
    if not isinstance(content, dict) or content.pop("sha256", None) != _hash_of(content):
        raise ValueError(f"{path.name} is not what was written")
    return content


def _hash_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
