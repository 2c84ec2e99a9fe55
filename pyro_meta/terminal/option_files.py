"""YAML of options, of files and of single words, read one way; and how a value is written.

A file holds one document of mappings, lists and single values, with text as names. What YAML can
do beyond, such as tags and merged mappings, is refused, and so is whatever takes long to read.

A value is taken by its spelling: what `1e3` or `yes` means is for the option to say that takes it,
and for one that takes text, it is text.
"""

import copy
import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader

from pyro_meta.errors import UsageError

MOST_BYTES = 1 << 20
MOST_VALUES = 50_000
MOST_DEPTH = 50
"""What a document may hold, aliases written out: more is no list of options."""

EXACT = "\0"
"""Begins a word that is text, in JSON after it: no YAML holds this character."""
_EXACTLY = re.compile(EXACT + r'("(?:[^"\\]|\\.)*")')

_NULLS = ("null", "Null", "NULL", "~", "")
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # of a name that is not UTF-8; libyaml knows none
_UNPRINTED = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class Plain(str):
    """A value without quotes, as it is spelled: the option that takes it says what it means.

    Only what is spelled as it would be written, such as 10, 0.5 and true, is a number at once.
    """

    __slots__ = ()

    @property
    def value(self) -> Any:
        """What YAML takes it for; what it cannot read is text."""
        try:
            return _meaning(str(self))
        except ValueError:
            return str(self)


# -- reading ---------------------------------------------------------------------------------


def read_mapping(path: Path, option: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one.

    Parameters
    ----------
    path
        The file.
    option
        What named the file; errors begin with it.

    Raises
    ------
    UsageError
        It cannot be read, or holds something else.
    """
    named = str(path).replace("\0", "\\0")
    source = f"{option}: cannot read {named}"
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):
            what = "a folder" if stat.S_ISDIR(kind.st_mode) else "no ordinary file"
            raise UsageError(f"{source}: it is {what}; a YAML file is allowed")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content[:MOST_BYTES].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: it is not UTF-8 text ({error.reason})") from error
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MOST_BYTES:
        raise UsageError(f"{source}: it is longer than {MOST_BYTES:,} bytes")
    options = loads(text, source)
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise UsageError(f"{option}: {path} holds no mapping of options, such as steps: 10")
    return options


def loads(text: str, source: str) -> Any:
    """What YAML says: mappings, lists, text, numbers, true, false, null and `Plain` words.

    Parameters
    ----------
    text
        One document.
    source
        Where it is from; errors begin with it.

    Raises
    ------
    UsageError
        It is no YAML; it has a name twice, a name that is no text, a tag, a merged mapping or
        several documents; or it is too large or too deep.
    """
    if len(text) > MOST_BYTES:
        raise UsageError(f"{source}: it is longer than {MOST_BYTES:,} characters")
    builder = _Builder(source)
    reader = yaml.SafeLoader if len(text) < 4096 and _SURROGATE.search(text) else _READER
    try:
        for event in yaml.parse(text, Loader=reader):
            builder.take(event)
    except UsageError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise UsageError(f"{source}: {line}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{source}: it is no YAML: {' '.join(str(error).split())}") from error
    return builder.document


class _Builder:
    """Builds what events of YAML say, and stops as soon as it is too much."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.document: Any = None
        self._documents = self._values = 0
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 0
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise self._refusal(line, "a second document begins; one is allowed")
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise self._refusal(line, f"*{event.anchor} stands for nothing whole")
                value, values = self._anchors[event.anchor]
                self._count(line, values)
                self._add(copy.deepcopy(value), line)
            case yaml.ScalarEvent():
                self._require_no_tag(event, line)
                self._count(line)
                value = event.value if event.style else _of_plain(event.value)
                self._anchor(event.anchor, value, 1)
                self._add(value, line)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._require_no_tag(event, line)
                self._count(line)
                if len(self._open) >= MOST_DEPTH:
                    raise self._refusal(line, f"it is nested deeper than {MOST_DEPTH}")
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                self._open.append(_Open({} if is_mapping else [], event.anchor, self._values))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                done = self._open.pop()
                self._anchor(done.anchor, done.value, self._values - done.before + 1)
                self._add(done.value, line)

    def _add(self, value: Any, line: int) -> None:
        if not self._open:
            self.document = value
            return
        inside = self._open[-1]
        if isinstance(inside.value, list):
            inside.value.append(value)
        elif not inside.has_key:
            self._require_name(inside.value, value, line)
            inside.key, inside.has_key = str(value), True
        else:
            inside.value[inside.key] = value
            inside.has_key = False

    def _require_name(self, mapping: dict[str, Any], key: Any, line: int) -> None:
        if isinstance(key, Plain):
            if key == "<<":
                raise self._refusal(line, "<< merges mappings; write out what is meant")
            key = key if isinstance(key.value, str) else key.value
        if not isinstance(key, str):
            shown = as_word(key) if not isinstance(key, (dict, list)) else "a list or a mapping"
            raise self._refusal(
                line, f"{shown} is no name; text is allowed (in quotes, if need be)"
            )
        if key in mapping:
            raise self._refusal(line, f"{key} is given twice; once is allowed")

    def _require_no_tag(self, event: Any, line: int) -> None:
        if event.tag is not None:
            raise self._refusal(line, f"it has the tag {event.tag}; no tags are allowed")

    def _anchor(self, name: str | None, value: Any, values: int) -> None:
        if name is not None:
            self._anchors[name] = value, values

    def _count(self, line: int, values: int = 1) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise self._refusal(line, f"it holds more than {MOST_VALUES:,} values")

    def _refusal(self, line: int, what: str) -> UsageError:
        return UsageError(f"{self.source}: line {line}: {what}")


class _Open:
    """A mapping or list that is not at its end yet."""

    def __init__(self, value: dict[str, Any] | list[Any], anchor: str | None, before: int) -> None:
        self.value, self.anchor, self.before = value, anchor, before
        self.key, self.has_key = "", False


def _of_plain(word: str) -> Any:
    """A value without quotes: what it means, if it is spelled as such a value is written."""
    try:
        meaning = _meaning(word)
    except ValueError:  # a number of thousands of digits
        return Plain(word)
    if word == "<<":  # it merges mappings, as a name
        return Plain(word)
    if meaning is None or isinstance(meaning, str):
        return None if meaning is None else word
    return meaning if json.dumps(meaning) == word and _is_finite(meaning) else Plain(word)


@lru_cache(4096)
def _meaning(word: str) -> Any:
    """What YAML, as jsonargparse reads it, takes a single word without quotes for."""
    if word in _NULLS:
        return None
    try:
        found = get_loader("yaml")(word)
        return found if isinstance(found, (bool, int, float)) else word
    except (yaml.YAMLError, TypeError):
        return word


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


# -- writing ---------------------------------------------------------------------------------


def dumps(options: Mapping[str, Any]) -> str:
    """YAML from which `loads` makes the same again."""
    return yaml.dump(options, Dumper=_Writer, sort_keys=False)


class _Writer(yaml.SafeDumper):
    """Quotes whatever would be read as something else than the text that it is."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(writer: _Writer, text: str) -> yaml.ScalarNode:
    style = None if _is_read_as_text(text) and not _UNPRINTED.search(text) else '"'
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _plain(writer: _Writer, word: Plain) -> yaml.Node:
    as_it_is = writer.resolve(yaml.ScalarNode, str(word), (True, False))
    return writer.represent_scalar(as_it_is, str(word))


_Writer.add_representer(str, _text)
_Writer.add_representer(Plain, _plain)


def as_word(value: Any) -> str:
    """A value as the command line takes it; `text_of` and YAML read it again.

    Text that would be read as something else stands in quotes, as JSON has them.
    """
    if isinstance(value, Plain):
        return str(value)
    if isinstance(value, str):
        is_taken_otherwise = value.startswith(('"', "~"))
        return value if _is_read_as_text(value) and not is_taken_otherwise else _json(value)
    return _json(_resolved(value))


def _json(value: Any) -> str:
    """JSON that is YAML too, also where it holds what YAML does not print."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return _UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _resolved(value: Any) -> Any:
    """Numbers in lists and mappings as such: there, no option says what a spelling means."""
    if isinstance(value, Mapping):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolved(item) for item in value]
    if isinstance(value, Plain):
        found = value.value
        is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
        return found if is_number and _is_finite(found) else str(value)
    return value


# -- words -----------------------------------------------------------------------------------


@lru_cache(4096)
def _is_read_as_text(word: str) -> bool:
    """Whether YAML takes a word for text, if not for the same text."""
    try:
        found = loads(word, "")
    except UsageError:
        return False
    return isinstance(found, str) and not isinstance(found, Plain)


def is_null(word: str) -> bool:
    """Whether a word means: the default."""
    return word in ("null", "Null", "NULL")


def text_of(word: str) -> str | None:
    """The text of a word in quotes, as `as_word` writes it; None for any other word."""
    if not (len(word) > 1 and word.startswith('"') and word.endswith('"')):
        return None
    try:
        return str(json.loads(word))
    except ValueError:
        return None


def typed(word: str) -> Any:
    """What a word means before it is known which option takes it: as a file has it."""
    text = text_of(word)
    if text is not None:
        return text
    try:
        found = loads(word, "")
    except UsageError:
        return word
    if isinstance(found, (dict, list)):
        return found
    if found is None:
        return None if is_null(word) else word
    return word if isinstance(found, str) and not isinstance(found, Plain) else _of_plain(word)


def exact(text: str) -> str:
    """A word that a parser takes for this text alone; `bare` makes it the text again."""
    return text if _is_read_as_text(text) or text == "" else _hidden(text)


def harmless(word: str) -> str:
    """A word as it was typed, but exact where YAML cannot read it, or would take it for nothing."""
    try:
        found = loads(word, "")
    except UsageError:
        return _hidden(word)
    is_nothing = found is None and word.strip() not in _NULLS
    is_unread = isinstance(found, Plain) and isinstance(found.value, str)
    return _hidden(word) if is_nothing or is_unread else word


def lenient(word: str) -> str:
    """A word whose value is a number, true or false in quotes, without them."""
    text = shown(word).partition("=")[2] if EXACT in word else ""
    is_value = isinstance(Plain(text).value, (bool, int, float))
    return f"{word.partition('=')[0]}={text}" if is_value else word


def _hidden(text: str) -> str:
    return EXACT + json.dumps(text)


def shown(text: str) -> str:
    """A message or word with texts for the exact words in it."""
    return _EXACTLY.sub(lambda found: str(json.loads(found[1])), text)


def bare(value: Any) -> Any:
    """What a parser made of exact words, with their texts for them."""
    if isinstance(value, Namespace):
        return Namespace(**{key: bare(item) for key, item in vars(value).items()})
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bare(item) for item in value]
    if isinstance(value, str):
        return shown(value) if _EXACTLY.fullmatch(value) else value
    if isinstance(value, Path) and _EXACTLY.fullmatch(str(value)):
        return Path(shown(str(value)))
    return value


def require_finite(parsed: Namespace) -> None:
    """Raise `UsageError` for an infinity or NaN; arguments of a person's own class may be."""
    for name, value in _numbers(parsed, ()):
        if not _is_finite(value):
            option = ".".join(part for part in name if part != "init_args")
            raise UsageError(f"option --{option}: {value} given; a finite number is allowed")


def _numbers(value: Any, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, (Namespace, dict)):
        items = vars(value) if isinstance(value, Namespace) else value
        if not str(items.get("class_path") or "pyro_meta.").startswith("pyro_meta."):
            return
        for key, item in items.items():
            yield from _numbers(item, (*name, str(key)))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    else:
        yield name, value
