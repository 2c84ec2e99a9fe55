"""Where files are kept, and how one is written whole."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where prepared corpora are kept: $PYRO_META_CACHE, else the user's cache folder."""
    if named := os.environ.get("PYRO_META_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro-meta"


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it: it is never there in part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.replace(path)


def flush(path: Path) -> None:
    """Have the disk hold what was written, so that a rename never outruns its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
