"""Which class a name stands for: one of ours, or the import path of a person's own."""

import difflib
import importlib
from collections.abc import Mapping
from typing import TypeVar

import pyro_meta
from pyro_meta.errors import UsageError

Kind = TypeVar("Kind")


def public_name(found: type) -> str:
    """What files call a class by: `pyro_meta.NAME` of a public one, else its import path.

    A public name stays when its module moves.
    """
    name = found.__qualname__
    is_public = getattr(pyro_meta, name, None) is found
    return f"pyro_meta.{name}" if is_public else f"{found.__module__}.{name}"


def public_path(path: str) -> str:
    """The `public_name` of the class at an import path."""
    module, _, name = path.rpartition(".")
    return public_name(getattr(importlib.import_module(module), name))


class NoSuchClass(LookupError):
    """There is no class of that name; the message says what is allowed."""


def reason_of(error: Exception, module: str) -> str:
    """Why `module` could not be imported; where there is no such file, also where it is sought."""
    said = f"{type(error).__name__}: {error}"
    top = module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        said += f"; {top}.py is sought in the folder that you are in, and in those of PYTHONPATH"
    return said


def find_class(name: str, known: Mapping[str, type], example: str) -> type:
    """The class of a name in `known`, or of an import path `module.Class` such as `example`.

    Raises
    ------
    NoSuchClass
        There is none; near matches are given.
    """
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise NoSuchClass(
            f"no class {name!r}; allowed are {', '.join(known)} and import paths such as "
            f"{example}{hint}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a person's module raises
        raise NoSuchClass(f"cannot import {name!r}: {reason_of(error, module)}") from error
    if not isinstance(found, type):
        raise NoSuchClass(f"{name!r} is no class, but of type {type(found).__name__}")
    return found


def find_kind(
    name: str, known: Mapping[str, type[Kind]], base: type[Kind], option: str
) -> type[Kind]:
    """The subclass of `base` that `name` stands for: one of `known`, or an import path.

    `option` is where the name was given; errors begin with it.

    Raises
    ------
    UsageError
        No such name (near matches are given), or the class is of another kind.
    """
    kind = base.__name__
    try:
        found = find_class(name, known, f"my_file.My{kind}")
    except NoSuchClass as error:
        raise UsageError(f"{option}: {error}") from error
    if not issubclass(found, base):
        raise UsageError(
            f"{option}: {name!r} is not a {kind.lower()}; a subclass of "
            f"{base.__module__.rpartition('.')[0]}.{kind} is allowed"
        )
    return found
