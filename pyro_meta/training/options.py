"""From the words of a command line to settled options: presets, files, and which class is meant.

jsonargparse carries the arguments of one class over to another of the same argument names; here the
last class that is named takes only what was meant for it.
"""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyro_meta
from pyro_meta.errors import UsageError
from pyro_meta.terminal.mistakes import near, require_class
from pyro_meta.terminal.naming import reason_of
from pyro_meta.terminal.option_files import (
    as_word,
    exact,
    harmless,
    is_null,
    loads,
    read_mapping,
    text_of,
)
from pyro_meta.training.misplaced import arguments_of, misplaced

Options = dict[str, Any]
"""Options of a run by name, nested or dotted, as a file gives them."""

PRESETS = Path(__file__).parent / "presets"
OF_THE_COMMAND = ("config", "resume", "from", "trust", "logger")
"""Options that no file may set."""
NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.\w+)*")
"""The name of an option in a message."""
TEXT = (str, str | None, Path, Path | None)
"""Types of options that take every value as it is spelled."""


@dataclass(frozen=True)
class Known:
    """What options there are besides arguments of classes."""

    kinds: Mapping[str, Any]
    """Dotted names and their types."""

    def takes_text(self, option: str) -> bool:
        return self.kinds.get(option) in TEXT

    @property
    def groups(self) -> set[str]:
        return {name.partition(".")[0] for name in self.kinds if "." in name}

    def of_group(self, group: str) -> list[str]:
        """Last names of the options of a group."""
        return [name.partition(".")[2] for name in self.kinds if name.startswith(f"{group}.")]


class Settled:
    """Options settled so far, a later one over an earlier.

    Parameters
    ----------
    defaults
        Class options, and the import path of the class that each means by default.
    """

    def __init__(self, defaults: Mapping[str, str]) -> None:
        self._defaults = dict(defaults)
        self._choices = {name: _Choice(name, default) for name, default in defaults.items()}
        self._plain: dict[str, str] = {}
        self._nulls: dict[str, None] = {}  # options that are to be their default again
        self._others: list[str] = []
        self._sources: dict[str, Path | None] = {}

    def take(self, options: Mapping[str, Any], source: Path | None = None) -> None:
        """Options of a file or a layer; a null means the default."""
        for option, value in options.items():
            name, _, argument = option.partition(".")
            with naming(lambda _: source):
                if name not in self._choices:
                    self._take_plain(option, value, source)
                elif value is None and not argument:
                    self._choices[name] = _Choice(name, self._defaults[name])
                else:
                    if argument:
                        self._choices[name].require_argument(argument)
                    given = {argument: value} if argument else value
                    is_preset = source is not None and source.parent == PRESETS
                    taken = self._choices[name].read(given, is_preset)
                    self._note([name, *(f"{name}.{one}" for one in taken)], source)

    def type_option(self, option: str, value: str) -> None:
        """An option from the keyboard."""
        name, _, argument = option.partition(".")
        self._sources[option] = None
        if name not in self._choices:
            self._drop(option)
            if not is_null(value):
                self._plain[option] = at_home(value)
        elif argument:
            self._choices[name].type_argument(argument, at_home(value))
        elif is_null(value):
            self._choices[name] = _Choice(name, self._defaults[name])
        else:
            self._choices[name].type_class(value)

    def type_other(self, *words: str) -> None:
        """Words that a parser has to judge."""
        self._others += words

    def drop_preset(self, group: str, unless: str) -> None:
        """Forget what a preset says of a group that does nothing without another option."""
        if unless not in self._plain:
            for name in [*self._plain]:
                source = self._sources.get(name)
                is_preset = source is not None and source.parent == PRESETS
                if name.startswith(f"{group}.") and is_preset:
                    del self._plain[name]

    def chosen(self, option: str) -> str:
        """The class that a class option means so far: a name, or an import path."""
        return self._choices[option].chosen

    def require_taken(self, bases: Mapping[str, type]) -> None:
        """Raise `UsageError` for what is no class of its option, or an argument it does not take.

        Parameters
        ----------
        bases
            The class options, and what their classes derive from.
        """
        for name, choice in self._choices.items():
            if choice.is_named:
                require_class(name, choice.chosen, bases[name])
            if (refused := choice.not_taken()) is not None:
                found, argument, value = refused
                source, default = self._sources.get(name), self._defaults[name]
                line = misplaced(name, argument, value, found, source, default, bases)
                origin = self.source_of(f"{name}.{argument}")
                raise UsageError(line if origin is None else f"{origin}: {line}")

    def words(self, with_defaults: bool = False, with_nulls: bool = False) -> list[str]:
        """A word for each option, as `settle` reads it.

        `with_defaults` also for classes that nobody has named; `with_nulls` also for options that
        are to be their default again, whatever stands before these words.
        """
        chosen = (
            word
            for choice in self._choices.values()
            for word in choice.words()
            if choice.is_named or with_defaults or word[0] != choice.option
        )
        nulls = ((name, "null") for name in self._nulls if with_nulls)
        return [f"--{name}={value}" for name, value in (*nulls, *chosen, *self._plain.items())]

    def parser_words(self, known: Known) -> list[str]:
        """A word for each option as a parser reads it, and the others."""
        of_text = {name for name in self._plain if known.takes_text(name)}
        of_text |= {name for choice in self._choices.values() for name in choice.of_text()}
        words = (word.removeprefix("--").partition("=") for word in self.words(True))
        return [
            f"--{name}={_for_parser(value, name in of_text)}" for name, _, value in words
        ] + self._others

    def source_of(self, option: str) -> Path | None:
        """The file that an option is from, or, of what is no option, what it belongs to."""
        while option and option not in self._sources:
            option = option.rpartition(".")[0]
        return self._sources.get(option)

    def _take_plain(self, option: str, value: Any, source: Path | None) -> None:
        self._drop(option, with_its_own=value is None)
        if value is None:
            self._nulls[option] = None
        for name, item in flatten({option: value}).items():
            self._drop(name)
            if item is not None:
                self._plain[name] = as_word(item)
            self._note([name], source)

    def _drop(self, option: str, with_its_own: bool = False) -> None:
        """Forget an option, and of a group all that are its own: they are their defaults again."""
        for name in [*self._plain]:
            if name == option or (with_its_own and name.startswith(f"{option}.")):
                del self._plain[name]

    def _note(self, options: Iterable[str], source: Path | None) -> None:
        self._sources |= dict.fromkeys(options, source)


def settle(argv: Sequence[str], defaults: Mapping[str, str], known: Known) -> Settled:
    """What the words of a command line ask for: files are read, class options name their class.

    Parameters
    ----------
    argv
        The words of a command line.
    defaults
        Class options, and the import path of the class that each means by default.
    known
        The other options.

    Raises
    ------
    UsageError
        An unknown preset, a file that cannot be read or that names what is no option, or arguments
        given before another class is named.
    """
    settled = Settled(defaults)
    words = list(argv)
    while words:
        word = words.pop(0)
        option, has_value, value = word.removeprefix("--").partition("=")
        name, _, argument = option.partition(".")
        is_file, is_group = option in ("config", "preset"), option in known.groups
        is_known = is_file or is_group or name in defaults or option in known.kinds
        if not word.startswith("--") or not is_known:
            settled.type_other(harmless(word) if not word.startswith("--") else word)
            continue
        if argument == "help":
            is_named = has_value or (words and not words[0].startswith("-"))
            settled.type_other(word if is_named else f"{word}={defaults[name]}")
            continue
        if not has_value and known.kinds.get(option) is bool:
            is_alone = not words or words[0].lower() not in ("true", "false", "null")
            has_value, value = "=", "true" if is_alone else words.pop(0)
        if not has_value:
            if not words or words[0].startswith("--"):
                raise UsageError(f"option --{option}: a value is missing")
            value = words.pop(0)
        if (is_file or is_group) and not value:
            raise UsageError(f"option --{option}: it is empty; a value is needed")
        if is_file:
            source = preset(value) if option == "preset" else Path(value)
            for one, options in layers_of(source, f"option --{option}", defaults, known):
                settled.take(options, one)
        elif is_group:
            settled.take({option: _group(option, value, f"option --{option}", known)})
        else:
            settled.type_option(option, value)
    return settled


def layers_of(
    path: Path, option: str, defaults: Collection[str], known: Known
) -> Iterator[tuple[Path, Options]]:
    """The options of a file, after those of the preset that it names.

    Raises
    ------
    UsageError
        The file cannot be read, or names what is no option; near matches are given.
    """
    options = read_file(path, option)
    named = options.pop("preset", None)
    if named is not None:
        with naming(lambda _: path):
            source = preset(str(named))
        yield from layers_of(source, option, defaults, known)
    require_known(options, str(path), defaults, known)
    with naming(lambda _: path):
        for group in known.groups & options.keys():
            options[group] = _group(group, options[group], group, known)
    yield path, options


def require_known(
    options: Mapping[str, Any], source: str, defaults: Collection[str], known: Known
) -> None:
    """Raise `UsageError` for a name that is no option; near matches are given."""
    tops = [*defaults, "preset", *(name.partition(".")[0] for name in known.kinds)]
    for option, value in options.items():
        name = option.partition(".")[0]
        if option in known.kinds and isinstance(value, Mapping):
            raise UsageError(f"{source}: {option}: a mapping given; a value or a list is allowed")
        if name in defaults or option in known.kinds:
            continue
        if option not in known.groups:
            if name in known.groups:
                raise UsageError(
                    f"{source}: {_no_option_of(name, option.partition('.')[2], known)}"
                )
            raise UsageError(f"{source}: no option is named {option!r}{near(option, tops)}")
        for inner, item in value.items() if isinstance(value, Mapping) else ():
            if isinstance(item, Mapping):
                raise UsageError(
                    f"{source}: {option}.{inner}: a mapping given; a value or a list is allowed"
                )
            if inner not in known.of_group(option):
                raise UsageError(f"{source}: {_no_option_of(option, inner, known)}")
            if f"{option}.{inner}" in options:
                raise UsageError(f"{source}: {option}.{inner} is given twice; once is allowed")


def _no_option_of(group: str, given: str, known: Known) -> str:
    allowed = known.of_group(group)
    listed = ", ".join(allowed)
    return f"{group}: no option is named {given!r}; {listed} are allowed{near(given, allowed)}"


def _group(group: str, value: Any, option: str, known: Known) -> dict[str, Any] | None:
    """Options of a group: a mapping as such, a file that holds one, or null."""
    if value is None or (isinstance(value, str) and is_null(value)):
        return None
    given, source = value, option
    if isinstance(value, str):
        is_inline = value.lstrip().startswith("{")
        given = loads(value, option) if is_inline else read_mapping(Path(value), option)
        source = option if is_inline else value
    if not isinstance(given, dict):
        raise UsageError(f"{option}: {as_word(value)} given; a YAML file of options is allowed")
    require_known({group: given}, source, (), known)
    return given


@contextmanager
def naming(source_of: Callable[[str], Path | None]) -> Iterator[None]:
    """Put before an error the file that its option is from; `source_of` tells it."""
    try:
        yield
    except UsageError as error:
        head = str(error).partition(":")[0]
        named = (source_of(name) for text in (head, str(error)) for name in NAME.findall(text))
        source = next((found for found in named if found is not None), None)
        if source is None or str(error).startswith(str(source)):
            raise
        raise UsageError(f"{source}: {error}") from error


def at_home(value: str) -> str:
    # no shell expands the tilde of --data.path=~/text, and alone it would mean null in YAML
    is_home = value == "~" or value.startswith("~/")
    return os.path.expanduser(value) if is_home else value


def _for_parser(word: str, is_text: bool) -> str:
    text = text_of(word)
    if text is None and is_null(word):
        return word
    if text is None:
        return exact(word) if is_text else harmless(word)
    return exact(text)


def layered(layers: Iterable[Mapping[str, Any]], defaults: Mapping[str, str]) -> list[str]:
    """Words for layers of options, each as a file would give them; a later layer wins.

    Names may be dotted, and a null means the default. Another class drops the arguments of the
    one before.
    """
    settled = Settled(defaults)
    for layer in layers:
        settled.take(layer)
    return settled.words(with_nulls=True)


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
            arguments = value.get("init_args") or {}
            flat |= {f"{prefix}{name}.{key}": item for key, item in arguments.items()}
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


class _Choice:
    """The class that one option means so far, and its arguments; what comes later wins."""

    def __init__(self, option: str, chosen: str) -> None:
        self.option, self.chosen = option, chosen
        self.is_named = False
        self.arguments: dict[str, str] = {}
        self.typed: list[str] = []  # names of arguments from the keyboard
        self.preset: set[str] = set()  # of those that a preset gave, for classes that take them

    def type_argument(self, argument: str, value: str) -> None:
        self.require_argument(argument)
        self.preset.discard(argument)
        self.arguments[argument] = value
        self.typed.append(argument)

    def type_class(self, chosen: str) -> None:
        if self.typed and not self._is_same(chosen):
            raise UsageError(
                f"option --{self.option}.{self.typed[0]} is given before --{self.option} {chosen}; "
                "name the class first"
            )
        self._name_class(chosen)

    def read(self, value: Any, is_preset: bool = False) -> list[str]:
        """Take a class option of a file: a name, arguments, or class_path and init_args.

        Arguments of a preset, of no class that it names, are for whichever class takes them.

        Returns
        -------
        list of str
            The arguments that it gives.
        """
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
                f"option --{self.option}: a file has {as_word(given)}; a class or a mapping is "
                "allowed"
            )
        for key, item in given.items():
            self.require_argument(key)
            self.arguments[key] = as_word(item)
        is_for_any = is_preset and not self.is_named
        self.preset = self.preset | set(given) if is_for_any else self.preset - set(given)
        return list(given)

    def words(self) -> list[tuple[str, str]]:
        """Names of options and their words; a null is left out where it means the default."""
        kinds = self._kinds()
        arguments = [
            (f"{self.option}.{key}", value)
            for key, value in self.arguments.items()
            if not is_null(value) or _may_be_none(kinds.get(key))
            if key not in self.preset or not kinds or key in kinds
        ]
        return [(self.option, self._path()), *arguments]

    def _path(self) -> str:
        """Its class; ours by its path, since a person's own may have the same name."""
        is_ours = self.chosen in pyro_meta.NAMED_BY_FILES
        return f"pyro_meta.{self.chosen}" if is_ours else self.chosen

    def of_text(self) -> list[str]:
        """Names of the options that its class takes text for."""
        return [f"{self.option}.{name}" for name, kind in self._kinds().items() if kind in TEXT]

    def not_taken(self) -> tuple[Any, str, str] | None:
        """Its class, an argument that it does not take, and its value; None if there is none."""
        try:
            found = self._found()
        except Exception:  # whatever a person's module raises; it is told where it is made
            return None
        if (taken := arguments_of(found)) is None:
            return None
        for argument, value in self.arguments.items():
            top = argument.partition(".")[0]
            is_given = not is_null(value) and argument not in self.preset
            if is_given and top not in taken:
                return found, top, text_of(value) or value
        return None

    def _found(self) -> Any:
        found = _imported(self.chosen)
        return getattr(pyro_meta, self.chosen) if found is None else found

    def _kinds(self) -> dict[str, Any]:
        """Types of the arguments of its class, as far as it says them."""
        try:
            found = self._found()
            made_by = inspect.getattr_static(found, "__init__")
            unsaid = dict.fromkeys(inspect.signature(made_by).parameters, Any)
            return unsaid | get_type_hints(made_by)
        except Exception:  # of a class that is not there, or of a person's own
            return {}

    def require_argument(self, argument: str) -> None:
        if not all(part.isidentifier() for part in argument.split(".")):
            raise UsageError(f"option --{self.option}: it has no argument {argument!r}")
        if argument.partition(".")[0] in ("class_path", "init_args", "dict_kwargs"):
            raise UsageError(
                f"unknown option --{self.option}.{argument}; --{self.option} CLASS names a class, "
                f"and --{self.option}.NAME its arguments"
            )

    def _name_class(self, chosen: str) -> None:
        if not chosen:
            raise UsageError(f"option --{self.option}: it is empty; the name of a class is needed")
        reason = _why_not_imported(chosen)
        if (reason or not chosen.isidentifier() or chosen not in pyro_meta.NAMED_BY_FILES) and (
            advice := _instead(self.option, chosen)
        ):
            raise UsageError(advice)
        if reason:
            raise UsageError(f"option --{self.option}: cannot import {chosen!r}: {reason}")
        if not self._is_same(chosen):
            self.arguments, self.typed = {}, []
        self.chosen, self.is_named = chosen, True

    def _is_same(self, chosen: str) -> bool:
        """Whether `chosen` is the class meant so far; a plain name is one of this package's."""
        found, current = (_import(path) for path in (chosen, self.chosen))
        if isinstance(found, type) and isinstance(current, type):
            return found is current
        pairs = ((found, chosen), (current, self.chosen))
        return len({_public_name(*pair) or object() for pair in pairs}) == 1


def _public_name(found: object, path: str) -> str | None:
    """The name of a class of this package, of what its path leads to; None of anything else."""
    if found is None:
        return path
    is_ours = isinstance(found, type) and found.__module__.startswith("pyro_meta.")
    return path.rpartition(".")[2] if is_ours else None


def _may_be_none(kind: Any) -> bool:
    """Whether an argument of this type may be None, which then is no word for its default."""
    return kind is Any or type(None) in get_args(kind)


def _instead(option: str, given: str) -> str | None:
    """What to write where a path is given for a class."""
    is_path = "/" in given or given.startswith(("~", ".")) or _exists(given) or _has_suffix(given)
    if not is_path:
        return None
    if option == "data":
        return f"option --data: {given} given; a class is allowed. A text: --data.path {given}"
    return f"option --{option}: {given} given; a class is allowed. A file of options: --config FILE"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _has_suffix(path: str) -> bool:
    return Path(path).suffix.lower() in {".txt", ".md", ".csv", ".json", ".jsonl", ".yaml", ".yml"}


def _import(path: str) -> object | None:
    """What the import path module.Class names; None for a plain name or a failed import."""
    return None if _why_not_imported(path) else _imported(path)


def _why_not_imported(path: str) -> str | None:
    """What is wrong with the import path module.Class; None if nothing, or for a plain name."""
    try:
        _imported(path)
    except Exception as error:  # whatever a person's module raises
        return reason_of(error, path.rpartition(".")[0])
    return None


def _imported(path: str) -> object | None:
    """What an import path names; the one place here where a person's own code is run."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name) if module else None


def read_file(path: Path, option: str = "option --config") -> dict[str, Any]:
    """The options of a YAML file; raises `UsageError` if it holds none."""
    options = read_mapping(path, option)
    for name in OF_THE_COMMAND:
        if name in options:
            raise UsageError(f"{option}: {path} has {name!r}, which no file may set")
    return options


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset(name: str) -> Path:
    """The file of a preset; raises `UsageError` if there is none of that name."""
    if name not in preset_names():
        names = ", ".join(preset_names())
        raise UsageError(f"option --preset: {name!r} given; {names} are allowed")
    return PRESETS / f"{name}.yaml"
