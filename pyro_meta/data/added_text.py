"""What each token adds to a text, for any decoder of the `tokenizers` library, in linear time.

A decoder reads all tokens of a text at once, and most let only neighbours matter: what stands
before a token is looked at as far as it may change what that one adds. Some change a text at any
distance; theirs is shown at its end.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any

MOST_BEFORE = 16
"""Tokens before another that may have no text of their own and are looked at all the same."""
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BYTE_LETTERS = set("<0x>123456789ABCDEFabcdef")

Decode = Callable[[list[int]], str]
Name = Callable[[int], str | None]
Added = Iterator[tuple[int, str]]
"""Places of tokens, and text that each of them adds; some add none, some several times."""


class AddedText:
    """Text of tokens one by one.

    Parameters
    ----------
    decode
        The text of tokens, by the library.
    name
        A token as it stands in the vocabulary; None for an id that has none.
    decoder
        The decoder's own JSON.
    """

    def __init__(self, decode: Decode, name: Name, decoder: dict[str, Any] | None) -> None:
        self._decode, self._name = decode, name
        parts = flat(decoder)
        while len(parts) > 1 and parts[-1]["type"] == "Fuse":  # it joins what is joined anyway
            parts.pop()
        self._is_of_bytes = [part["type"] for part in parts] == ["ByteLevel"]
        self._is_local = _is_local(parts)
        self._falls_back = any(part["type"] == "ByteFallback" for part in parts)
        self._byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}

    def pieces(self, ids: list[int]) -> list[str]:
        """One string for each of `ids`; their sum is the decoded text."""
        whole = self._decode(ids)
        pieces = [""] * len(ids)
        if self._is_of_bytes or self._is_local:
            for at, text in self._added(ids):
                pieces[at] += text
        return pieces if "".join(pieces) == whole else self._shared(whole, ids)

    def streamed(self, ids: Iterable[int]) -> Iterator[str]:
        """Texts whose sum is the decoded one, as early as each is certain."""
        return (text for _, text in self._added(ids))

    def _added(self, ids: Iterable[int]) -> Added:
        if self._is_of_bytes:
            return self._of_bytes(ids)
        return self._of_neighbours(ids) if self._is_local else self._at_the_end(ids)

    def _of_bytes(self, ids: Iterable[int]) -> Added:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        at = 0
        for at, token in enumerate(ids):
            name = self._name(token) or ""
            is_plain = all(letter in self._byte_of for letter in name)
            raw = bytes(self._byte_of[letter] for letter in name) if is_plain else name.encode()
            yield at, decoder.decode(raw)
        if rest := decoder.decode(b"", final=True):
            yield at, rest

    def _of_neighbours(self, ids: Iterable[int]) -> Added:
        before: list[int] = []
        shown = ""

        def read(tokens: list[int]) -> str:
            nonlocal before, shown
            added = self._decode([*before, *tokens])[len(shown) :]
            known = [*before, *tokens][-MOST_BEFORE:]
            for count in range(1, len(known) + 1):
                before = known[-count:]
                if shown := self._decode(before):
                    break
            return added

        run: list[tuple[int, int, int]] = []  # of bytes: one that fits to none changes them all
        for at, token in enumerate(ids):
            name = self._name(token)
            if name is None:
                continue
            if self._falls_back and (byte := BYTE.fullmatch(name)):
                run.append((at, token, int(byte[1], 16)))
                continue
            if run:
                yield from _spread(run, read([token for _, token, _ in run]))
                run = []
            yield at, read([token])
        if run:
            yield from _spread(run, read([token for _, token, _ in run]))

    def _at_the_end(self, ids: Iterable[int]) -> Added:
        known = list(ids)
        if known:
            yield len(known) - 1, self._decode(known)

    def _shared(self, whole: str, ids: list[int]) -> list[str]:
        """The text, shared out by the lengths of the tokens' names."""
        lengths = [len(self._name(token) or "") for token in ids]
        total = sum(lengths) or 1
        ends = [0, *(len(whole) * end // total for end in accumulate(lengths))]
        if len(ends) > 1:
            ends[-1] = len(whole)
        return [whole[begin:end] for begin, end in pairwise(ends)]


def _spread(run: list[tuple[int, int, int]], added: str) -> Added:
    """The text of a run of bytes, each character at its last byte."""
    raw = bytes(byte for _, _, byte in run)
    try:
        raw.decode()
        decoder = codecs.getincrementaldecoder("utf-8")()
        texts = [decoder.decode(bytes([byte])) for byte in raw]
    except UnicodeDecodeError:
        texts = ["\ufffd"] * len(raw)
    if "".join(texts) != added:
        texts = [*[""] * (len(raw) - 1), added]
    yield from ((at, text) for (at, _, _), text in zip(run, texts, strict=True))


def flat(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A decoder's parts one after the other."""
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [part for inner in decoder["decoders"] for part in flat(inner)]
    return [decoder]


def _is_local(parts: list[dict[str, Any]]) -> bool:
    """Whether what a token adds depends on its neighbours alone, and stays what it is.

    A part that joins all tokens makes the next ones see the whole text; then only what looks at
    single characters, or at its beginning, is local.
    """
    kinds = [part["type"] for part in parts]
    if len(parts) <= 1:
        return kinds != ["ByteLevel"]
    if not set(kinds) <= {"Replace", "Strip", "Metaspace", "ByteFallback", "Fuse"}:
        return False
    is_joined = False
    for place, part in enumerate(parts):
        kind = part["type"]
        if kind == "ByteFallback":
            if is_joined or not all(_makes_no_byte(other) for other in parts[:place]):
                return False
        if is_joined and kind == "Metaspace":
            return False
        if is_joined and kind == "Replace" and not _is_of_one_letter(part):
            return False
        is_joined |= kind == "Fuse"
    return True


def _is_of_one_letter(part: dict[str, Any]) -> bool:
    return len(part["pattern"].get("String", "")) == 1


def _makes_no_byte(part: dict[str, Any]) -> bool:
    """Whether a part that comes before `ByteFallback` leaves its tokens alone, and makes none."""
    if part["type"] != "Replace" or not _is_of_one_letter(part):
        return False
    is_elsewhere = part["pattern"]["String"] not in BYTE_LETTERS
    return is_elsewhere and not set(part["content"]) <= BYTE_LETTERS


def byte_letters() -> str:
    """The letters by which `ByteLevel` writes the 256 bytes: itself where it can be printed."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in plain else next(others)) for byte in range(256))
