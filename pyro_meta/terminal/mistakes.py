"""What is wrong with a command line, in one line: the option, what is allowed, near matches."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

from jsonargparse import ArgumentParser

from pyro_meta.errors import UsageError


def unknown(option: str, known: Iterable[str]) -> str:
    return f"unknown option {option}{near(option, known)}"


def explain(error: BaseException, parser: ArgumentParser, classes: dict[str, type]) -> str:
    """One line for a parsing error: the option, what is wrong with it, and near matches."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    if found := re.search(r"unrecognized arguments: ([^\s=]+)", text):
        return unknown(found[1], option_strings(parser))
    keys = re.findall(r'Parser key "([^"]+)":', text)
    if not keys:
        return text
    key, rest = ".".join(keys), text.rpartition(f'Parser key "{keys[-1]}":')[2].strip()
    if inner := re.search(r"Option '([^']+)' is not accepted", rest):
        return f"unknown option --{key}.{inner[1]}{near(inner[1], _init_options(rest))}"
    if key in classes:
        base = classes[key]
        names = _subclass_names(base)
        allowed = (
            f"allowed are {', '.join(names)} and import paths such as my_file.My{base.__name__}"
        )
        if "to be a subclass" in rest and (wrong := re.search(r"class_path='([^']+)'", rest)):
            return f"option --{key}: {wrong[1]} is not a {base.__name__}; {allowed}"
        if given := re.search(r"(?:Got value:|path string:) (.*)$", rest):
            value = given[1].strip(" '\"")
            return f"option --{key}: no class {value!r}; {allowed}{near(value, names)}"
    return f"option --{key}: {_plain(rest)}"


def _plain(message: str) -> str:
    """jsonargparse's message without Python's names of types."""
    message = re.sub(r"(\. Got value: Namespace\(.*)$", "", message)
    message = message.replace("Expected a <class 'list'>", "expected a list such as [a,b]")
    message = re.sub(r"Expected a <class '([^']+)'>", r"expected \1", message)
    message = re.sub(r"Expected a typing\.Literal\[([^\]]+)\]", r"expected one of \1", message)
    return re.sub(r"\. Got value: ", "; given: ", message)


def near(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(dict.fromkeys(names)), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def option_strings(parser: ArgumentParser) -> list[str]:
    """The names of a parser's options, with their dashes."""
    return [name for action in parser._actions for name in action.option_strings]


def _init_options(message: str) -> list[str]:
    """Names of the arguments of the class that a message is about."""
    path = re.search(r"class_path='([^']+)'", message)
    if not path:
        return []
    module, _, name = path[1].rpartition(".")
    chosen = getattr(importlib.import_module(module), name)
    return list(inspect.signature(chosen).parameters)


def _subclass_names(base: type) -> list[str]:
    """The classes of this package that can be named: those that it does not build on alone."""
    names = {
        found.__name__
        for found in _subclasses(base)
        if found.__module__.startswith("pyro_meta.") and not found.__module__.endswith(".base")
    }
    return sorted(names)


def _subclasses(base: type) -> Iterable[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)
