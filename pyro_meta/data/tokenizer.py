"""A `tokenizer.json` of the `tokenizers` library, without what was set in it for another use."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro_meta.data.added_text import AddedText, flat
from pyro_meta.errors import UsageError

MOST_TOKENS = 1 << 24
OF_ANOTHER_USE = {"truncation": None, "padding": None, "post_processor": None}
"""Parts that cut, pad or frame a text as one input of another model."""


class TokenizerFile:
    """Text to tokens and back: the same each time, all of the text and nothing else.

    Parameters
    ----------
    serialised
        The file's content, JSON.

    Attributes
    ----------
    serialised
        What is left of it.
    size
        Ids are below it; there may be gaps.
    unknown
        The id that stands for what is not known, if there is one.

    Raises
    ------
    ValueError
        It is none that can be used.
    """

    def __init__(self, serialised: str) -> None:
        from tokenizers import Tokenizer

        try:
            facts = json.loads(serialised)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if not isinstance(facts, dict) or not isinstance(facts.get("model"), dict):
            raise ValueError("it has no model")
        facts |= OF_ANOTHER_USE
        model = facts["model"]
        if "dropout" in model:  # of merges, for training a model on many ways to write a text
            model["dropout"] = None
        self.serialised = json.dumps(facts)
        with _failures_as(ValueError, "the tokenizers library refuses it"):
            self._tokenizer = Tokenizer.from_str(self.serialised)
            names = self._tokenizer.get_vocab(with_added_tokens=True)
            given = self._tokenizer.decoder
            decoder = None if given is None else json.loads(given.__getstate__())
        _require_total(decoder)
        self.size = _size(model, names)
        self.unknown = _unknown(model, names)
        self._added = AddedText(self.decode, self._tokenizer.id_to_token, decoder)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; raises `UsageError` where the library cannot write it."""
        with _failures_as(UsageError, "its tokenizer cannot write the text"):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids below `size`."""
        if not ids:
            return ""
        with _failures_as(UsageError, "its tokenizer cannot read tokens"):
            text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds; their sum is `decode(ids)`."""
        return self._added.pieces(ids)

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        """The same text as it comes."""
        return self._added.streamed(ids)


@contextmanager
def _failures_as(kind: type[ValueError], what: str) -> Iterator[None]:
    """The library raises bare exceptions, and where it panics none that `Exception` catches."""
    try:
        yield
    except Exception as error:
        raise kind(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {error}") from error


def _size(model: dict[str, Any], names: dict[str, int]) -> int:
    """Ids are below it: there may be more of them than tokens, where the file leaves gaps."""
    if not names:
        raise ValueError("it has no tokens")
    given = model.get("vocab")
    ids = [*given.values()] if isinstance(given, dict) else [*names.values()]
    for known in (ids, [*names.values()]):
        if len(set(known)) < len(known):
            raise ValueError("two of its tokens have the same id")
    size = max(names.values()) + 1
    if isinstance(given, list):  # of Unigram: an id is a place, and names may be there twice
        size = max(size, len(given))
    if size > MOST_TOKENS:
        raise ValueError(f"its ids go up to {size - 1:,}; below {MOST_TOKENS:,} is allowed")
    return size


def _unknown(model: dict[str, Any], names: dict[str, int]) -> int | None:
    if isinstance(number := model.get("unk_id"), int):
        return number
    return names.get(str(model.get("unk_token")))


def _require_total(decoder: dict[str, Any] | None) -> None:
    """Refuse a decoder that fails for some tokens: the library's `Strip` at the end of short ones.

    It panics where less is left than it strips, and any token may come alone.
    """
    if any(part.get("type") == "Strip" and part.get("stop") for part in flat(decoder)):
        raise ValueError("its decoder strips at the end, which fails for some tokens")
