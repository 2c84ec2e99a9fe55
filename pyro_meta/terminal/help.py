"""How `--help` shows an option: what to write for its value, what it does, its default."""

from argparse import SUPPRESS, Action
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

PLACEHOLDERS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
"""What stands for a value of a type; of any other, the option's own name does."""


class HelpFormatter(DefaultHelpFormatter):
    """Help without Python's names of types, and with defaults as a person would write them."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        is_plain = action.option_strings and action.nargs != 0 and "default" not in text
        if not is_plain or action.default is None or action.default == SUPPRESS:
            return text
        return f"{text.removesuffix('.')} (default: {as_written(action.default)})."

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kind: Any = getattr(action, "_typehint", action.type)
        if get_origin(kind) in (Union, UnionType):
            kind = next((one for one in get_args(kind) if one in PLACEHOLDERS), kind)
        return PLACEHOLDERS.get(kind) or super()._get_default_metavar_for_optional(action)


def reword(
    parser: ArgumentParser, words: Mapping[str, str], placeholder: str | None = None
) -> None:
    """Give options that jsonargparse adds by itself a help, and a placeholder, of our own."""
    for action in parser._actions:
        for name in action.option_strings:
            if name in words:
                action.help = words[name]
                action.metavar = action.metavar if placeholder is None else placeholder


def as_written(value: Any) -> str:
    """A value as the command line takes it: false, 0.005, [full,window]."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_written, value))}]"
    if isinstance(value, (str, Path)):
        return str(value)
    return str(yaml.safe_dump(value)).partition("\n")[0]
