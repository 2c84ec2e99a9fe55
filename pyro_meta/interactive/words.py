"""Options of a training run, given from Python, as the words of a command line."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyro_meta.errors import UsageError
from pyro_meta.terminal.naming import public_name
from pyro_meta.terminal.option_files import as_word
from pyro_meta.training.options import OF_THE_COMMAND, at_home
from pyro_meta.training.settings import DEFAULT_CLASSES

AS_IN_FILES = ("class_path", "init_args")
"""Levels that a file has between a class option and its arguments, and a command line has not."""


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Words of `python -m pyro_meta.train`.

    `kl__weight=0.1`, `kl={"weight": 0.1}` and `**{"kl.weight": 0.1}` are `--kl.weight 0.1`; `from_`
    is `--from`; a class stands for its name; None is an option that is not given.

    Raises
    ------
    UsageError
        An option is given twice, a class cannot be imported by others, or an object is given that
        no option can name.
    """
    found: dict[str, str] = {}
    for name, value in _flat(options):
        if name in found:
            raise UsageError(f"{name}: it is given twice; once is allowed")
        found[name] = value
    classes_first = sorted(found, key=lambda name: "." in name)
    return [f"--{name}={found[name]}" for name in classes_first]


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in options.items():
        if value is None:
            continue
        parts = [*prefix.split("."), *str(key).rstrip("_").replace("__", ".").split(".")]
        name = ".".join(part for part in parts if part and part not in AS_IN_FILES)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, _word(name, value)


def _word(name: str, value: Any) -> str:
    if isinstance(value, type):
        if value.__module__ == "__main__":
            raise UsageError(
                f"{name}: {value.__name__} is a class of this session; one that stands in a file "
                "is allowed, so that the run can be read later"
            )
        return public_name(value)
    if isinstance(value, str | Path):
        value = at_home(str(value))
        if name in (*OF_THE_COMMAND, "preset"):  # which take a value as it is spelled
            return value
    if hasattr(value, "tolist"):  # of NumPy or torch
        value = value.tolist()
    if (odd := _unsayable(value)) is not None:
        allowed = "numbers, texts and lists of them are"
        if name in DEFAULT_CLASSES:
            allowed = (
                f"a class is, or its name, with arguments beside it, as in {name}__NAME=VALUE,"
            )
        raise UsageError(f"{name}: an object of type {type(odd).__name__} given; {allowed} allowed")
    return as_word(value)


def _unsayable(value: Any) -> Any:
    """What of a value no word of a command line means; None: all of it can be said."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        return next((odd for one in value if (odd := _unsayable(one)) is not None), None)
    return None if value is None or isinstance(value, str | Path | int | float) else value
