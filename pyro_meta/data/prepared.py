"""Text made into tokens once, and kept: a folder of the cache, whose every file has its hash.

    tokens.bin       the tokens, to be memory-mapped
    vocabulary.json  how they become text
    corpus.json      what the folder was made from, sizes and hashes of both, and its own

A folder is made under a name of its own and renamed: it is there whole, or not at all. One that is
damaged is renamed away before a new one comes, so that a process that has it mapped keeps it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_meta import checksums
from pyro_meta.data.loss import Loss, is_sampled
from pyro_meta.data.preparing import tell
from pyro_meta.data.vocabulary import FileVocabulary, Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.folders import PARTIAL, cache_folder, flush, locked, partial_name, write_whole

VERSION = 3  # to be raised when prepared text changes
FILES = ("tokens.bin", "vocabulary.json")
FACTS = "corpus.json"


class UnfitTokens(ValueError):
    """The vocabulary cannot write the text, or nothing of it."""


class TooFewTokens(ValueError):
    """A part of the text has fewer tokens than are wanted of it.

    Attributes
    ----------
    part
        Its number, from 0.
    count
        Its tokens.
    """

    def __init__(self, part: int, count: int) -> None:
        super().__init__(f"part {part} has {count:,} tokens")
        self.part, self.count = part, count


class Part(NamedTuple):
    """Some of a text: what is trained on, say, or what is held out."""

    pieces: Callable[[], Iterator[str]]
    """Its text; it may be read more than once."""
    most_tokens: int | None = None
    """Only so many tokens are wanted, and no fewer; nothing is read beyond the piece in which they
    end."""


class Prepared(NamedTuple):
    """Text as tokens."""

    tokens: NDArray[np.integer]
    """Memory-mapped, [N]."""
    vocabulary: Vocabulary
    ends: list[int]
    """Where in them each part of the text ends."""
    bytes: int
    """Length of the text that was read in UTF-8."""
    sha256: str
    """Hash of the text, and, where it is not all of one part, of where its parts end."""
    loss: str
    """What the tokens lose of it, in a few words; nothing if nothing."""


def prepared(
    origin: list[object],
    parts: Sequence[Part],
    vocabulary: Callable[[], Vocabulary],
) -> Prepared:
    """Text as tokens: found in the cache folder, or made and kept there.

    Processes that ask at once wait for the first of them.

    Parameters
    ----------
    origin
        All that the tokens depend on, as JSON.
    parts
        The text, one part after the other.
    vocabulary
        What its tokens are.

    Raises
    ------
    UsageError
        The cache folder cannot be used.
    UnfitTokens
        The vocabulary cannot write the text, or nothing of it.
    TooFewTokens
        A part has fewer tokens than are wanted; nothing is kept.
    """
    identity = hashlib.sha256(json.dumps([VERSION, *origin]).encode()).hexdigest()
    folder = cache_folder() / identity[:24]
    try:
        found = _read(folder, identity)
        if found is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f".{folder.name}.lock"), busy="", waits=True):
                found = _read(folder, identity)  # another process may have been first
                if found is None:
                    _clear(folder)
                    _make(folder, identity, parts, vocabulary())
                    found = _read(folder, identity)
    except OSError as error:
        raise UsageError(
            f"cannot keep prepared text in {folder.parent}: {error.strerror or error}; "
            "set PYRO_META_CACHE to a folder that can be written"
        ) from error
    if found is None:
        raise UsageError(f"prepared text in {folder} is damaged as soon as it is written")
    return found


def _read(folder: Path, identity: str) -> Prepared | None:
    """What is kept in a folder; None unless every byte of it is as it was written."""
    try:
        facts = checksums.unsealed(folder / FACTS)
        if facts["identity"] != identity:
            return None
        for name in FILES:
            if checksums.sha256(folder / name) != facts["files"][name]:
                return None
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        tokens = np.memmap(folder / "tokens.bin", dtype=facts["dtype"], mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None
    except OSError as error:
        if error.errno is not None:
            raise
        return None  # no plain file
    return Prepared(
        tokens, vocabulary, facts["ends"], facts["bytes"], facts["text_sha256"], facts["loss"]
    )


def _make(folder: Path, identity: str, parts: Sequence[Part], vocabulary: Vocabulary) -> None:
    partial = partial_name(folder)
    try:
        partial.mkdir()
        with _held(partial):
            facts = _write_tokens(partial / "tokens.bin", parts, vocabulary)
            vocabulary.save(partial / "vocabulary.json")
            hashes = {name: checksums.sha256(partial / name) for name in FILES}
            facts |= {"identity": identity, "files": hashes}
            write_whole(partial / FACTS, checksums.sealed(facts))
        if os.path.lexists(folder):
            warnings.warn(f"prepared text in {folder} was damaged; it is made anew", stacklevel=2)
            _put_away(folder)
        partial.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tokens(path: Path, parts: Sequence[Part], vocabulary: Vocabulary) -> dict[str, Any]:
    """Write the tokens of a text; what is to be known of it."""
    dtype = np.min_scalar_type(vocabulary.size - 1)
    writing = _Writing(vocabulary)
    ends = [0]
    with open(path, "xb") as out:
        for number, part in enumerate(parts):
            for ids in writing.tokens_of(part):
                out.write(ids.astype(dtype).tobytes())
            ends.append(writing.count)
            if part.most_tokens is not None and ends[-1] - ends[-2] < part.most_tokens:
                raise TooFewTokens(number, ends[-1] - ends[-2])
    flush(path)
    loss = writing.loss
    if not writing.is_known or loss.is_total():
        raise UnfitTokens("it knows nothing of the text")
    if loss.said():
        warnings.warn(f"text: {loss.said()}", stacklevel=2)
    if len(parts) > 1 or parts[0].most_tokens is not None:
        writing.digest.update(json.dumps(ends).encode())
    return {
        "bytes": writing.bytes,
        "text_sha256": writing.digest.hexdigest(),
        "dtype": dtype.name,
        "ends": ends[1:],
        "loss": loss.said(),
    }


class _Writing:
    """Text on its way to tokens, and what has been seen of it so far."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.digest = hashlib.sha256()
        self.loss = Loss(vocabulary)
        self.bytes, self.count, self.pieces, self.is_known = 0, 0, 0, False

    def tokens_of(self, part: Part) -> Iterator[NDArray[np.int64]]:
        """Tokens of a part, piece by piece, and no more of them than are wanted."""
        left = part.most_tokens
        if left == 0:
            return
        for piece in part.pieces():
            ids = self._read(piece)[:left]
            self.count += len(ids)
            left = None if left is None else left - len(ids)
            tell(
                f"preparing the text: {self.count:,} tokens"
                + (f", {left:,} to come" if left else "")
            )
            yield ids
            if left == 0:
                return

    def _read(self, piece: str) -> NDArray[np.int64]:
        raw = piece.encode()
        self.digest.update(raw)
        self.bytes += len(raw)
        try:
            ids = self.vocabulary.encode(piece)
            if isinstance(self.vocabulary, FileVocabulary) and is_sampled(self.pieces):
                self.loss.add(piece)
        except UsageError as error:
            raise UnfitTokens(str(error)) from error
        self.pieces += 1
        self.is_known = self.is_known or len(self.vocabulary.without_unknowns(ids)) > 0
        return ids


def _put_away(folder: Path) -> None:
    """Remove a folder, or whatever has its name; who has a file of it open keeps that."""
    away = partial_name(folder)
    folder.rename(away)
    _remove(away)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove what processes that are no more have left of this folder."""
    for left in folder.parent.glob(f".{folder.name}{PARTIAL}*"):
        if left.is_symlink() or not left.is_dir():
            left.unlink(missing_ok=True)
            continue
        with _held(left) as is_free:
            if is_free:
                _remove(left)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder while it is made; whether it is ours. Nobody's is, where there are no locks."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError:
            is_ours = False
        yield is_ours
    finally:
        os.close(handle)
