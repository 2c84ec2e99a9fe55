"""Which classes a run may name without being trusted: those that pyro_meta ships.

A run is data: somebody may have sent it. Its options name classes by import path, and to import a
module is to run it. So what is not ours is refused, unless the person who opens the run says
`--trust`, or sets PYRO_META_TRUST.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyro_meta.errors import UsageError
from pyro_meta.terminal.option_files import loads

VARIABLE = "PYRO_META_TRUST"
CLASS_OPTIONS = ("data", "prior", "guide", "mechanisms", "block", "depth")
"""Options whose value names a class, or a list of them."""
WAYS = {
    "run": "add --trust true (in Python: trust=True)",
    "study": "add --trust true",
    "routes": "say trust=True",
}
"""How somebody says that what is opened is trusted; `load_routes` is of Python alone."""
_PLAIN = re.compile(r"\w+")


def is_trusted_here() -> bool:
    """Whether the environment trusts every run; raises `UsageError` for another value than 0, 1."""
    given = os.environ.get(VARIABLE, "0")
    if given not in ("0", "1"):
        raise UsageError(f"environment: {VARIABLE} is {given!r}; 0 or 1 is allowed")
    return given == "1"


def require_shipped(config_yaml: str, source: Path) -> None:
    """Raise `UsageError` if options name a class that pyro_meta does not ship.

    Nothing is imported.

    Parameters
    ----------
    config_yaml
        The options of a run.
    source
        The run, to be named.
    """
    if is_trusted_here():
        return
    options = loads(config_yaml, f"{source}: config.yaml")
    if not isinstance(options, Mapping):
        raise UsageError(f"{source}: config.yaml holds no options")
    require_shipped_options([options], source, "run")


def require_shipped_options(layers: Iterable[Mapping[str, Any]], source: Path, what: str) -> None:
    """The same of layers of options, whose names may be dotted, and whose values may be lists.

    Parameters
    ----------
    layers
        Options as a file gives them.
    source
        Where they are from, to be named.
    what
        What that is: a key of `WAYS`.
    """
    if is_trusted_here():
        return
    for option, path in foreign_classes(layers):
        raise UsageError(
            f"{source}: its {option} is {path!r}, which pyro_meta does not ship, and its code "
            f"would be run: if you trust who made the {what}, {WAYS[what]}"
        )


def as_opened(folder: Path) -> str:
    """A run as words of a command that opens it, for the person who made it: --trust included."""
    return shlex.quote(str(folder)) + " --trust true" * needs_trust(folder)


def needs_trust(folder: Path) -> bool:
    """Whether the options of a run name a class that pyro_meta does not ship."""
    try:
        options = loads((folder / "config.yaml").read_text(encoding="utf-8"), str(folder))
    except (OSError, ValueError):  # what opens it will say so
        return False
    return isinstance(options, Mapping) and any(foreign_classes([options]))


def foreign_classes(layers: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Options with the import paths in them that pyro_meta does not ship."""
    for options in layers:
        for option, path in _named(options):
            if not _is_shipped(path):
                yield option, path


def _named(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every option with the import paths that it holds."""
    for option, value in options.items():
        top, *rest = (part.rstrip("+ ") for part in str(option).split("."))
        if (top in CLASS_OPTIONS and not rest) or "class_path" in rest:
            yield from ((top, path) for path in _texts(value))
        yield from ((top, path) for path in _class_paths(value))


def _texts(value: Any) -> Iterator[str]:
    """A text, or those of a list, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _class_paths(value: Any) -> Iterator[str]:
    """What stands under `class_path`, however deep."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if str(key).rpartition(".")[2] == "class_path":
                yield str(item)
            yield from _class_paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _class_paths(item)
    elif isinstance(value, str) and "class_path" in value:  # a mapping, written as a text
        yield value


def _is_shipped(path: str) -> bool:
    """Whether it is a plain name, which stands for a class of ours, or a public name of ours."""
    if _PLAIN.fullmatch(path):
        return True
    import pyro_meta

    package, _, name = path.rpartition(".")
    return package == "pyro_meta" and name in pyro_meta.NAMED_BY_FILES
