"""Vocabularies: text to token ids and back, saved as plain JSON."""

import codecs
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_meta.errors import UsageError

SENTENCE_ENDS = (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f")  # the last three are CJK


class Vocabulary(ABC):
    """A finite set of tokens.

    Attributes
    ----------
    kind
        `byte`, `char`, `symbol` or `tokenizer`.
    size
        Number of tokens, V.
    """

    kind: str
    size: int

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids [N] of `text`; raises `UsageError` for text that it cannot write."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are no whole character become U+FFFD."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All that `load` needs."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text that each token adds, one string per id; their sum is `decode(ids)`."""
        return [self.decode([token]) for token in ids]

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        """The same text as it comes, held back only where a character is not whole yet."""
        for token in ids:
            yield self.decode([token])

    def separators(self) -> list[int]:
        """Tokens that end a sentence or a line: those whose text, but for blanks, ends so."""
        return [
            token
            for token in range(self.size)
            if self.decode([token]).rstrip(" \t").endswith(SENTENCE_ENDS)
        ]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """The vocabulary saved at `path`."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            kind = facts["kind"]
            if kind == "byte":
                return ByteVocabulary()
            if kind == "char":
                return CharVocabulary(facts["characters"])
            if kind == "symbol":
                return SymbolVocabulary(facts["symbols"])
            return FileVocabulary(facts["tokenizer"])
        except Exception as error:  # the tokenizers library raises bare Exception
            raise UsageError(f"{path}: no readable vocabulary ({error})") from error


class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8: any text, no unknowns."""

    kind, size = "byte", 256

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(bytes([token])) for token in ids]

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in ids:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", final=True)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


class CharVocabulary(Vocabulary):
    """The characters that occur in the corpus."""

    kind = "char"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = list(characters)
        self.size = len(self.characters)
        self._ids = {character: index for index, character in enumerate(self.characters)}

    def encode(self, text: str) -> NDArray[np.int64]:
        try:
            return np.array([self._ids[character] for character in text], np.int64)
        except KeyError as error:
            raise UsageError(
                f"character {error.args[0]!r} is not among the {self.size} of the corpus"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[index] for index in ids)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}


class SymbolVocabulary(Vocabulary):
    """Symbols of one or more characters each; text is read by the longest that fits."""

    kind = "symbol"

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self.size = len(self.symbols)
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        longest_first = sorted(self.symbols, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)), re.DOTALL)

    def encode(self, text: str) -> NDArray[np.int64]:
        ids, at = [], 0
        while at < len(text):
            found = self._pattern.match(text, at)
            if found is None:
                raise UsageError(
                    f"{text[at]!r} begins none of the {self.size} symbols of the corpus"
                )
            ids.append(self._ids[found[0]])
            at = found.end()
        return np.array(ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.symbols[index] for index in ids)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "symbol", "symbols": self.symbols}


class FileVocabulary(Vocabulary):
    """A `tokenizer.json` of the `tokenizers` library."""

    kind = "tokenizer"

    def __init__(self, serialised: str) -> None:
        from tokenizers import Tokenizer

        self._serialised = serialised
        self._tokenizer = Tokenizer.from_str(serialised)
        self.size = self._tokenizer.get_vocab_size()

    @classmethod
    def from_path(cls, path: Path) -> "FileVocabulary":
        """Read a tokenizer.json; raises `UsageError` if there is none at `path`."""
        if not path.is_file():
            raise UsageError(
                f"data.tokens: {str(path)!r} given; byte, char or a tokenizer.json is allowed"
            )
        try:
            return cls(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for malformed files
            raise UsageError(f"data.tokens: {path} is no tokenizer.json ({error})") from error

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        ids = list(ids)
        ends = [len(self.decode(ids[:stop])) for stop in range(len(ids) + 1)]
        whole = self.decode(ids)
        return [whole[begin:end] for begin, end in itertools.pairwise(ends)]

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        # What a token adds depends on those before it: the last ones that were shown are decoded
        # with those that are not yet.
        shown: list[int] = []
        waiting: list[int] = []
        for token in ids:
            waiting.append(token)
            text = self._added(shown, waiting)
            if not text.endswith("\ufffd"):
                yield text
                shown, waiting = waiting, []
        yield self._added(shown, waiting)

    def _added(self, shown: list[int], waiting: list[int]) -> str:
        return self.decode([*shown, *waiting]).removeprefix(self.decode(shown))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "tokenizer", "tokenizer": self._serialised}
