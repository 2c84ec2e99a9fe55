"""Vocabularies: text to token ids and back, saved as plain JSON."""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_meta.checksums import require_plain
from pyro_meta.data.tokenizer import TokenizerFile
from pyro_meta.errors import UsageError
from pyro_meta.folders import write_whole

SENTENCE_ENDS = (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f")  # the last three are CJK


class Vocabulary(ABC):
    """A finite set of tokens.

    Attributes
    ----------
    kind
        `byte`, `char`, `symbol` or `tokenizer`.
    size
        Number of token ids, V; all are below it.
    """

    kind: str
    size: int

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids [N] of `text`; raises `UsageError` for text that it cannot write."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are no whole character become U+FFFD.

        Raises
        ------
        UsageError
            An id is none of the vocabulary.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All that `load` needs."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text that each token adds, one string per id; their sum is `decode(ids)`."""
        return [self.decode([token]) for token in ids]

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        """The same text as it comes, held back only where what follows may still change it."""
        for token in ids:
            yield self.decode([token])

    def separators(self) -> list[int]:
        """Tokens that end a sentence or a line: those whose text, but for blanks, ends so."""
        return [
            token
            for token in range(self.size)
            if self.decode([token]).rstrip(" \t").endswith(SENTENCE_ENDS)
        ]

    def without_unknowns(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens [N] that stand for some text, and not for any that is not known."""
        return ids

    def require_known(self, ids: Iterable[int]) -> list[int]:
        """The ids as a list; raises `UsageError` if one is none of the vocabulary."""
        known = list(ids)
        for token in known:
            if not isinstance(token, int | np.integer) or not 0 <= token < self.size:
                raise UsageError(f"token {token!r} given; 0 to {self.size - 1} are allowed")
        return known

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(self.to_json(), ensure_ascii=False))

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """The vocabulary saved at `path`; raises `UsageError` if there is none."""
        try:
            require_plain(path)
            return Vocabulary.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UsageError(f"{path}: no readable vocabulary ({error})") from error

    @staticmethod
    def from_json(facts: dict[str, Any]) -> "Vocabulary":
        """The vocabulary that `to_json` describes.

        Raises
        ------
        ValueError, LookupError, TypeError
            It describes none.
        """
        kind = facts["kind"]
        if kind == "byte":
            return ByteVocabulary()
        if kind == "char":
            return CharVocabulary(facts["characters"])
        if kind == "symbol":
            return SymbolVocabulary(facts["symbols"])
        if kind == "tokenizer":
            return FileVocabulary(facts["tokenizer"])
        raise ValueError(f"{kind!r} is no kind; byte, char, symbol and tokenizer are known")


def is_vocabulary(path: Path) -> bool:
    """Whether the file at `path` is what `save` wrote, and no tokenizer of another library."""
    try:
        require_plain(path)
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b'{"kind":')
    except OSError:
        return False


def require_encodable(text: str) -> None:
    """Raise `UsageError` where `text` has halves of surrogate pairs, which are no characters.

    Python puts them where bytes are not UTF-8, as in a word of the command line.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"character {text[error.start]!r} is half of a pair, or stands for a byte that is "
            "not UTF-8; UTF-8 text is needed"
        ) from error


class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8: any text, no unknowns."""

    kind, size = "byte", 256

    def encode(self, text: str) -> NDArray[np.int64]:
        require_encodable(text)
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(self.require_known(ids)).decode("utf-8", "replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        *pieces, rest = self.streamed(ids)
        if pieces:
            pieces[-1] += rest
        return pieces

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in ids:
            yield decoder.decode(bytes(self.require_known([token])))
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
        if not all(isinstance(one, str) and len(one) == 1 for one in self.characters):
            raise ValueError("characters are text of one character each")
        if len(self._ids) != self.size:
            raise ValueError("two characters are the same")

    def encode(self, text: str) -> NDArray[np.int64]:
        require_encodable(text)
        try:
            return np.array([self._ids[character] for character in text], np.int64)
        except KeyError as error:
            raise UsageError(
                f"character {error.args[0]!r} is not among the {self.size} of the corpus"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[index] for index in self.require_known(ids))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}


class SymbolVocabulary(Vocabulary):
    """Symbols of one or more characters each; text is read by the longest that fits."""

    kind = "symbol"

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self.size = len(self.symbols)
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        if not all(isinstance(symbol, str) and symbol for symbol in self.symbols):
            raise ValueError("symbols are text of at least one character")
        if len(self._ids) != self.size:
            raise ValueError("two symbols are the same")
        longest_first = sorted(self.symbols, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)), re.DOTALL)

    def encode(self, text: str) -> NDArray[np.int64]:
        require_encodable(text)
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
        return "".join(self.symbols[index] for index in self.require_known(ids))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "symbol", "symbols": self.symbols}


class FileVocabulary(Vocabulary):
    """A `tokenizer.json` of the `tokenizers` library."""

    kind = "tokenizer"

    def __init__(self, serialised: str) -> None:
        self._file = TokenizerFile(serialised)
        self.size = self._file.size

    @classmethod
    def from_path(cls, path: Path) -> "FileVocabulary":
        """Read a tokenizer.json; raises `UsageError` if there is none at `path`."""
        try:
            if not path.is_file():
                raise UsageError(
                    f"data.tokens: {str(path)!r} given; byte, char or a tokenizer.json is allowed"
                )
            return cls(path.read_text(encoding="utf-8-sig"))
        except UsageError:
            raise
        except (OSError, ValueError) as error:
            raise UsageError(f"data.tokens: {path} is no tokenizer.json ({error})") from error

    def encode(self, text: str) -> NDArray[np.int64]:
        require_encodable(text)
        return np.array(self._file.encode(text), np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return self._file.decode(self.require_known(ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return self._file.pieces(self.require_known(ids))

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        return self._file.streamed(token for one in ids for token in self.require_known([one]))

    def without_unknowns(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return ids if self._file.unknown is None else ids[ids != self._file.unknown]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "tokenizer", "tokenizer": self._file.serialised}
