"""What is wrong with a command line, in one line: the option, what is allowed, near matches."""

import difflib
import importlib
import inspect
import re
import shlex
from collections.abc import Iterable

from jsonargparse import ArgumentParser

from pyro_meta.errors import UsageError
from pyro_meta.terminal.option_files import shown

LONGEST = 300  # characters of what is not ours


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
    if found := re.search(r'Parser key "([^"]+)":.*unrecognized arguments: --([^ =]+)', text):
        return unknown(f"--{found[1]}.{found[2]}", option_strings(parser))
    if found := re.search(r"unrecognized arguments: (.*)", text):
        return _unrecognised(found[1], parser)
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return unknown(f"--{found[1]}.{found[2]}", option_strings(parser))
    keys = re.findall(r'Parser key "([^"]+)":', text)
    if not keys:
        return _in_words(text)
    key, rest = ".".join(keys), text.rpartition(f'Parser key "{keys[-1]}":')[2].strip()
    if inner := re.search(r"Option '([^']+)' is not accepted", rest):
        return f"unknown option --{key}.{inner[1]}{near(inner[1], _init_options(rest))}"
    if inner := re.search(r"NestedArg\(key='([^']+)'", rest):
        return unknown(f"--{key}.{inner[1]}", option_strings(parser))
    if missing := re.search(r"class_path '([^']+)': the following .* are required: (\w+)", rest):
        name = missing[1].rpartition(".")[2]
        return f"option --{key}.{missing[2]}: {name} needs it; --{key}.help {name} shows what it is"
    if key in classes:
        base = classes[key]
        allowed = allowed_classes(base)
        if "to be a subclass" in rest and (wrong := re.search(r"class_path='([^']+)'", rest)):
            return f"option --{key}: {wrong[1]} is not a {base.__name__}; {allowed}"
        if given := re.search(r"(?:Got value:|path string:) (.*)$", rest):
            value = given[1].strip(" '\"")
            return (
                f"option --{key}: no class {value!r}; {allowed}{near(value, _subclass_names(base))}"
            )
    return f"option --{key}: {_plain(rest)}"


ALONE = {
    "pyro_meta.train": "; a text is named by --data.path {}",
    "pyro_meta.generate": "; a text to continue is given by --prompt {}",
    "pyro_meta.ablate": "; one STUDY.yaml is allowed",
}
"""What to type instead of a word that no option takes, by command."""


def _unrecognised(words: str, parser: ArgumentParser) -> str:
    """Of words that a parser does not know, what is wrong with the first option, else word."""
    option = re.search(r"(?:^| )(--[^ =]+)", words)
    if option is not None:
        return unknown(option[1], option_strings(parser))
    given = _shortened(shown(words))
    hint = ALONE.get(parser.prog.rpartition(" ")[2], "").format(shlex.quote(given))
    return f"{given!r} belongs to no option{hint}"


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Path": "a path",
    "NoneType": "null",
    "None": "null",
    "null": "null",
    "dict": "a mapping such as {a: 1}",
    "list": "a list such as [a,b]",
    "list[str]": "a list such as [a,b]",
    "list[int]": "a list of whole numbers such as [1,2]",
    "list[float]": "a list of numbers such as [0.5,1]",
    "list[list[float]]": "a list of lists of numbers such as [[0.5,1],[1,0]]",
}
"""Types in plain words."""


def _plain(message: str) -> str:
    """jsonargparse's message as: what is given, and what is allowed."""
    message = re.sub(r"\. Got value: Namespace\(.*$", "", shown(message))
    value = re.search(r"(?:Got value|Given value): ?(.*?)(?: - Expected a .*)?$", message)
    if of_any := re.search(r"Subtypes: \[(.*?)\] Errors:", message):
        kinds = [_kind(name) for name in _separate(of_any[1])]
        allowed = " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    elif one := re.search(r"Expected a (<class '[^']+'>|typing\.Literal\[[^\]]+\]|\S+?)(?:\.|$)",
                          message):  # fmt: skip
        allowed = _kind(one[1])
    else:
        return _in_words(message)
    given = "nothing" if value is None or not value[1] else _shortened(value[1])
    return f"{given} given; {allowed} is allowed"


def _kind(name: str) -> str:
    """A type, by the name that Python gives it, in plain words."""
    name = re.sub(r"<class '([^']+)'>", r"\1", name.strip())
    name = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", name).replace("List[", "list[")
    name = name.replace("Sequence[", "list[")
    if found := re.match(r"Literal\[(.+)\]$", name):
        return f"one of {found[1]}"
    return KINDS.get(name) or KINDS.get(name.partition("[")[0], f"a {name}")


def _separate(names: str) -> list[str]:
    """Names of types at their commas, but not at those within brackets."""
    return [
        found.strip() for found in re.findall(r"(?:[^,\[\]]|\[(?:[^\[\]]|\[[^\]]*\])*\])+", names)
    ]


def _in_words(message: str) -> str:
    """A message of a library, with types in plain words."""
    message = shown(message)
    message = re.sub(r"(\. Got value: Namespace\(.*)$", "", message)
    message = re.sub(r"typing\.Literal\[[^\]]+\]", lambda found: _kind(found[0]), message)
    return _shortened(re.sub(r"<class '[^']+'>", lambda found: _kind(found[0]), message))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def near(word: str, names: Iterable[str]) -> str:
    known = list(dict.fromkeys(names))
    parts = _last(word).split("_")
    initials = "".join(part[:1] for part in parts)  # of `learning_rate`: lr
    short = [name for name in known if len(parts) > 1 and _last(name) == initials]
    elsewhere = [name for name in known if "." in word and _last(name) == _last(word)]
    close = short or elsewhere[:2] or difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _last(option: str) -> str:
    """The last name of a dotted option, without dashes."""
    return option.rpartition(".")[2].lstrip("-")


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


def allowed_classes(base: type) -> str:
    """Which classes an option takes."""
    names = ", ".join(_subclass_names(base))
    return f"allowed are {names} and import paths such as my_file.My{base.__name__}"


def require_class(option: str, path: str, base: type) -> None:
    """Raise `UsageError` where an import path leads to something else than a class of a kind.

    What cannot be imported is left to the parser.
    """
    module, _, name = path.rpartition(".")
    if not module:
        return
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception:  # whatever a person's module raises
        return
    if isinstance(found, type) and issubclass(found, base):
        return
    what = f"is not a {base.__name__}"
    if not isinstance(found, type):
        what = f"is of type {type(found).__name__}, and no class"
    raise UsageError(f"option --{option}: {path} {what}; {allowed_classes(base)}")


def _subclass_names(base: type) -> list[str]:
    return [found.__name__ for found in shipped(base)]


def shipped(base: type) -> list[type]:
    """The classes of this package that can be named: those that it does not build on alone."""
    found = {
        one.__name__: one
        for one in _subclasses(base)
        if one.__module__.startswith("pyro_meta.") and not one.__module__.endswith(".base")
    }
    return [found[name] for name in sorted(found)]


def _subclasses(base: type) -> Iterable[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)
