"""The options of a run, from its config.yaml, which may come from anybody."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyro_meta.analysis.documents import read_text
from pyro_meta.terminal.consoles import printable
from pyro_meta.terminal.option_files import loads


def read(path: Path) -> dict[str, str]:
    """Options under dotted names, as they can be shown; raises `OSError` or `ValueError`."""
    found = loads(read_text(path), path.name)
    if not isinstance(found, Mapping):
        raise ValueError(f"{path.name} holds no options")
    return dict(_flat(found))


def _flat(options: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A class is its name, and its arguments are options below it."""
    for key, value in options.items():
        name = printable(f"{prefix}{key}")
        if isinstance(value, Mapping) and "class_path" in value:
            yield name, printable(str(value["class_path"]).removeprefix("pyro_meta."))
            arguments = value.get("init_args")
            yield from _flat(arguments if isinstance(arguments, Mapping) else {}, f"{name}.")
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, "none" if value is None else printable(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
