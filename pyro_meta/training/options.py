"""From the words of a command line to settled options: presets, files, and which class is meant.

jsonargparse carries the arguments of one class over to another of the same argument names; here the
last class that is named takes only what was meant for it.
"""

import importlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pyro_meta.errors import UsageError

Options = dict[str, Any]
"""Options of a run by name, nested or dotted, as a file gives them."""

PRESETS = Path(__file__).parent / "presets"


def settle(argv: Sequence[str], defaults: Mapping[str, str]) -> list[str]:
    """Words in which files are read and each class option names its class, then its arguments.

    Parameters
    ----------
    argv
        The words of a command line.
    defaults
        Class options, and the import path of the class that each means by default.

    Raises
    ------
    UsageError
        An unknown preset, an unreadable file, or arguments given before another class is named.
    """
    choices = {name: _Choice(name, default) for name, default in defaults.items()}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        option, has_value, value = word.removeprefix("--").partition("=")
        name, _, argument = option.partition(".")
        is_file = option in ("config", "preset")
        if not word.startswith("--") or not (is_file or name in defaults):
            rest.append(word)
            continue
        if argument == "help":
            is_named = has_value or (words and not words[0].startswith("-"))
            rest.append(word if is_named else f"{word}={defaults[name]}")
            continue
        if not has_value:
            if not words:
                raise UsageError(f"option --{option}: a value is missing")
            value = words.pop(0)
        if is_file:
            options = read_file(Path(value) if option == "config" else preset(value))
            for chosen in choices.keys() & options.keys():
                choices[chosen].read(options.pop(chosen))
            rest.append(f"--config={yaml.safe_dump(options)}")
        elif argument:
            choices[name].type_argument(argument, value)
        else:
            choices[name].type_class(value)
    return [word for choice in choices.values() for word in choice.words()] + rest


def layered(layers: Iterable[Mapping[str, Any]], defaults: Mapping[str, str]) -> list[str]:
    """Words for layers of options, each as a file would give them; a later layer wins.

    Names may be dotted, and a null means the default. Another class drops the arguments of the
    one before.
    """
    choices = {name: _Choice(name, default) for name, default in defaults.items()}
    rest: dict[str, Any] = {}
    for layer in layers:
        for option, value in layer.items():
            name, _, argument = option.partition(".")
            if name not in choices:
                rest |= flatten({option: value})
            elif value is None and not argument:
                choices[name] = _Choice(name, defaults[name])
            else:
                choices[name].read({argument: value} if argument else value)
    return [word for choice in choices.values() for word in choice.words()] + [
        f"--{name}={as_word(value)}" for name, value in rest.items() if value is not None
    ]


def as_word(value: Any) -> str:
    """A value of a file as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted names; a class option is its class, then its arguments.

    A class of this package goes by its plain name.
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping) and "class_path" in value:
            path = str(value["class_path"])
            is_own = path.startswith("pyro_meta.")
            flat[prefix + name] = path.rpartition(".")[2] if is_own else path
            flat |= flatten(value.get("init_args") or {}, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


class _Choice:
    """The class that one option means so far, and its arguments; what comes later wins."""

    def __init__(self, option: str, chosen: str) -> None:
        self.option, self.chosen = option, chosen
        self.arguments: dict[str, str] = {}
        self.typed: list[str] = []  # names of arguments from the keyboard

    def type_argument(self, argument: str, value: str) -> None:
        # No shell expands the tilde of --data.path=~/text, and alone it would mean null in YAML.
        is_home = value == "~" or value.startswith("~/")
        self.arguments[argument] = os.path.expanduser(value) if is_home else value
        self.typed.append(argument)

    def type_class(self, chosen: str) -> None:
        if self.typed and not self._is_same(chosen):
            raise UsageError(
                f"option --{self.option}.{self.typed[0]} is given before --{self.option} {chosen}; "
                "name the class first"
            )
        self._name_class(chosen)

    def read(self, value: Any) -> None:
        """Take a class option of a file: a name, arguments, or class_path and init_args."""
        given: Any = value
        if isinstance(value, str):
            self._name_class(value)
            given = {}
        elif isinstance(value, dict) and "class_path" in value:
            if unknown := value.keys() - {"class_path", "init_args"}:
                raise UsageError(
                    f"option --{self.option}: a file has {sorted(unknown)[0]!r} beside class_path; "
                    "arguments belong under init_args"
                )
            self._name_class(str(value["class_path"]))
            given = value.get("init_args") or {}
        if not isinstance(given, dict):
            raise UsageError(
                f"option --{self.option}: a file has {given!r}; a class or a mapping is allowed"
            )
        for key, item in given.items():
            self.arguments[key] = as_word(item)

    def words(self) -> list[str]:
        return [
            f"--{self.option}={self.chosen}",
            *(f"--{self.option}.{key}={value}" for key, value in self.arguments.items()),
        ]

    def _name_class(self, chosen: str) -> None:
        if not chosen:
            raise UsageError(f"option --{self.option}: it is empty; the name of a class is needed")
        if reason := _why_not_imported(chosen):
            raise UsageError(f"option --{self.option}: cannot import {chosen!r}: {reason}")
        if not self._is_same(chosen):
            self.arguments, self.typed = {}, []
        self.chosen = chosen

    def _is_same(self, chosen: str) -> bool:
        """Whether `chosen` is the class meant so far; a plain name is one of this package's."""
        found, current = (_import(path) or path for path in (chosen, self.chosen))
        if isinstance(found, type) and isinstance(current, type):
            return found is current
        names = {getattr(one, "__name__", one) for one in (found, current)}
        modules = (getattr(one, "__module__", "pyro_meta.") for one in (found, current))
        return len(names) == 1 and all(module.startswith("pyro_meta.") for module in modules)


def _import(path: str) -> object | None:
    """What the import path module.Class names; None for a plain name or a failed import."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name) if module else None
    except Exception:  # reported by `_why_not_imported`
        return None


def _why_not_imported(path: str) -> str | None:
    """What is wrong with the import path module.Class; None if nothing, or for a plain name."""
    module, _, name = path.rpartition(".")
    try:
        if module:
            getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a person's module raises
        return f"{type(error).__name__}: {error}"
    return None


def read_file(path: Path) -> dict[str, Any]:
    """The options of a YAML file; raises `UsageError` if it holds none."""
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"option --config: cannot read {path}: {error}") from error
    if not isinstance(options, dict):
        raise UsageError(f"option --config: {path} holds no mapping of options")
    options = {name: value for name, value in options.items() if value is not None}  # defaults
    if misplaced := options.keys() & {"preset", "resume", "config"}:
        raise UsageError(f"option --config: {path} has {misplaced.pop()!r}, which no file may set")
    return options


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset(name: str) -> Path:
    """The file of a preset; raises `UsageError` if there is none of that name."""
    if name not in preset_names():
        names = ", ".join(preset_names())
        raise UsageError(f"option --preset: {name!r} given; {names} are allowed")
    return PRESETS / f"{name}.yaml"
