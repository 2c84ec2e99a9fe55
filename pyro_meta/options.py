"""From the words of a command line to settled options: presets, files, and which class is meant.

jsonargparse carries the arguments of one class over to another of the same argument names; here the
last class that is named takes only what was meant for it.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pyro_meta.errors import UsageError

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
        if not word.startswith("--") or name not in (*defaults, "config", "preset"):
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
        if option in ("config", "preset"):
            options = read_file(Path(value) if option == "config" else preset(value))
            for chosen in choices.keys() & options.keys():
                choices[chosen].read(options.pop(chosen))
            rest.append(f"--config={yaml.safe_dump(options)}")
        elif argument:
            choices[name].typed[argument] = value
        else:
            choices[name].name_class(value)
    return [word for choice in choices.values() for word in choice.words()] + rest


class _Choice:
    """The class that one option means so far, with arguments from files and from the keyboard."""

    def __init__(self, option: str, chosen: str) -> None:
        self.option, self.chosen = option, chosen
        self.filed: dict[str, str] = {}
        self.typed: dict[str, str] = {}

    def name_class(self, chosen: str) -> None:
        if not chosen:
            raise UsageError(f"option --{self.option}: it is empty; the name of a class is needed")
        if reason := _why_not_imported(chosen):
            raise UsageError(f"option --{self.option}: cannot import {chosen!r}: {reason}")
        if chosen.rpartition(".")[2] != self.chosen.rpartition(".")[2]:
            if self.typed:
                argument = next(iter(self.typed))
                raise UsageError(
                    f"option --{self.option}.{argument} is given before --{self.option} {chosen}; "
                    "name the class first"
                )
            self.filed = {}
        self.chosen = chosen

    def read(self, value: Any) -> None:
        """Take a class option of a file: a name, arguments, or class_path and init_args."""
        given: Any = {}
        if isinstance(value, str):
            self.name_class(value)
        elif isinstance(value, dict) and "class_path" in value:
            if unknown := value.keys() - {"class_path", "init_args"}:
                raise UsageError(
                    f"option --{self.option}: a file has {sorted(unknown)[0]!r} beside class_path; "
                    "arguments belong under init_args"
                )
            self.name_class(str(value["class_path"]))
            given = value.get("init_args") or {}
        else:
            given = value
        if not isinstance(given, dict):
            raise UsageError(
                f"option --{self.option}: a file has {given!r}; a class or a mapping is allowed"
            )
        for key, item in given.items():
            self.filed[key] = item if isinstance(item, str) else json.dumps(item)

    def words(self) -> list[str]:
        arguments = (self.filed | self.typed).items()
        return [
            f"--{self.option}={self.chosen}",
            *(f"--{self.option}.{key}={value}" for key, value in arguments),
        ]


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
    if misplaced := options.keys() & {"preset", "resume", "config"}:
        raise UsageError(f"option --config: {path} has {misplaced.pop()!r}, which no file may set")
    return _without_nulls(options)


def _without_nulls(options: dict[str, Any]) -> dict[str, Any]:
    """A null in a file means the default."""
    return {
        name: _without_nulls(value) if isinstance(value, dict) else value
        for name, value in options.items()
        if value is not None
    }


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset(name: str) -> Path:
    """The file of a preset; raises `UsageError` if there is none of that name."""
    if name not in preset_names():
        names = ", ".join(preset_names())
        raise UsageError(f"option --preset: {name!r} given; {names} are allowed")
    return PRESETS / f"{name}.yaml"
