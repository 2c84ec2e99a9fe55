"""An argument that the chosen class does not take: what to write instead, in one line."""

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_meta.terminal.mistakes import near, shipped

SHOWN = 3  # classes that take it


def arguments_of(found: Any) -> dict[str, inspect.Parameter] | None:
    """The arguments of a class or function by name; None where it takes any, or does not say."""
    try:
        parameters = dict(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        return None
    kinds = {one.kind for one in parameters.values()}
    return None if inspect.Parameter.VAR_KEYWORD in kinds else parameters


def misplaced(
    option: str,
    argument: str,
    value: str,
    found: Any,
    source: Path | None,
    default: str,
    bases: Mapping[str, type],
) -> str:
    """Why `--option.argument value` is none of the class that `option` means, and what is.

    Parameters
    ----------
    option, argument, value
        As they were given.
    found
        The class that is meant.
    source
        The preset or file that names it, if one does.
    default
        The class that the option means by itself.
    bases
        The options whose value is a class, and what it derives from.
    """
    said = f"unknown option --{option}.{argument}"
    own = list(arguments_of(found) or ())
    if hint := near(argument, own):
        return f"{said}{hint}"
    name = getattr(found, "__name__", str(found))
    by = "" if source is None else f" by {_of_source(source)}{_summary(found)}"
    about = f"{option} is {name}{by}"
    if takers := _takers(bases[option], argument):
        takers.sort(key=lambda taker: taker != default.rpartition(".")[2])
        listed = ", ".join(takers[:SHOWN]) + ", ..." * (len(takers) > SHOWN)
        written = f"--{option} {takers[0]} --{option}.{argument} {shlex.quote(value)}"
        return f"{said}: {about}; {listed} {'takes' if len(takers) == 1 else 'take'} it: {written}"
    others = [
        f"--{other}.{argument}"
        for other, base in bases.items()
        if other != option and _takers(base, argument)
    ]
    if others:
        return f"{said}; did you mean {' or '.join(others)}?"
    return f"{said}: {about}; --{option}.help {name} lists what it takes"


def _takers(base: type, argument: str) -> list[str]:
    return [one.__name__ for one in shipped(base) if argument in (arguments_of(one) or ())]


def _of_source(source: Path) -> str:
    is_preset = source.parent == Path(__file__).parent / "presets"
    return f"--preset {source.stem}" if is_preset else str(source)


def _summary(found: Any) -> str:
    """The first line of a docstring, in brackets."""
    first = (inspect.getdoc(found) or "").partition("\n")[0].rstrip(".").replace("`", "")
    return f" ({first[:1].lower()}{first[1:]})" if first else ""
