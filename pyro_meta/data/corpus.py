"""Text as memory-mapped tokens, cut into a training and a validation part by position.

Order is a pure function of the seed and the step, so that a resumed or distributed run draws the
same sequences. Shapes: B sequences, T tokens of context.
"""

import ast
import glob
import hashlib
import io
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_meta.data.vocabulary import ByteVocabulary, CharVocabulary, FileVocabulary, Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.folders import cache_folder

READ_CHARACTERS = 1 << 20
CACHE_VERSION = 1  # to be raised when prepared text changes
STDLIB_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip",
    "turtledemo", "pydoc_data", "__pycache__",
}  # fmt: skip


Windows = tuple[Tensor, Tensor]
"""Tokens and targets, [N, T] each."""


class Truth(NamedTuple):
    """Which targets of some windows [N, T] have to be looked up."""

    is_answer: NDArray[np.bool_]
    """Only an exact look-up in the past can tell them, [N, T]."""
    is_undecided: NDArray[np.bool_]
    """A look-up may or may not be needed: to be left out where routes are judged, [N, T]."""
    text_symbols: int
    """Token ids below it are text; the others are planted."""


class Corpus(ABC):
    """What is trained and validated on: sequences of tokens and the vocabulary that reads them.

    Attributes
    ----------
    vocabulary
        Tokens to text and back.
    sha256
        Identity of the text, or of what generates it.
    description
        What it is in one line.
    train
        Training tokens, or a sample of them, [N].
    """

    vocabulary: Vocabulary
    sha256: str
    description: str

    @property
    @abstractmethod
    def train(self) -> NDArray[np.integer]: ...

    @abstractmethod
    def require(self, context: int) -> None:
        """Raise `UsageError` unless sequences of `context` and their targets can be had."""

    @abstractmethod
    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        """Tokens and targets [B, T] of one training step: a function of seed and step alone."""

    @abstractmethod
    def windows(self, context: int, most_tokens: int) -> Windows:
        """Tokens and targets [N, T] for validation, at most `most_tokens`: always the same."""

    def truth(self, context: int, most_tokens: int) -> Truth | None:
        """Which targets of `windows` only an exact long-range look-up can tell.

        None where nobody knows, as with ordinary text.
        """
        return None


@dataclass(frozen=True)
class TokenCorpus(Corpus):
    """A stream of tokens, cut into a training and a validation part by position.

    Attributes
    ----------
    tokens
        All tokens, memory-mapped, [N].
    boundary
        Tokens before it are for training, the rest for validation.
    """

    tokens: NDArray[np.integer]
    boundary: int
    vocabulary: Vocabulary
    sha256: str
    description: str

    @property
    def train(self) -> NDArray[np.integer]:
        return self.tokens[: self.boundary]

    @property
    def validation(self) -> NDArray[np.integer]:
        return self.tokens[self.boundary :]

    def require(self, context: int) -> None:
        for part, tokens in (("training", self.train), ("validation", self.validation)):
            if len(tokens) <= context:
                raise UsageError(
                    f"data: {self.description} leaves {len(tokens)} tokens for {part}; "
                    f"a context of {context} needs at least {context + 1}"
                )

    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        """Tokens and targets [B, T] of one training step, at random starts."""
        starts = step_rng(seed, step).integers(0, len(self.train) - context, size)
        return _cut(self.train, starts, context)

    def windows(self, context: int, most_tokens: int) -> Windows:
        """Tokens and targets [N, T] that cover the validation part evenly, without overlap.

        All of it if it has at most `most_tokens`, else that many spread over its whole length.
        """
        available = (len(self.validation) - 1) // context
        wanted = max(1, min(available, most_tokens // context))
        starts = (np.arange(wanted) * available // wanted) * context
        return _cut(self.validation, starts, context)


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one training step, whatever came before it."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))


def _cut(tokens: NDArray[np.integer], starts: NDArray[np.integer], context: int) -> Windows:
    return as_windows(np.stack([tokens[start : start + context + 1] for start in starts]))


def identity(windows: Windows) -> str:
    """Hash of tokens and targets [N, T]: losses on windows of one identity can be paired."""
    digest = hashlib.sha256(repr(list(windows[0].shape)).encode())
    for part in windows:
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def as_windows(rows: NDArray[np.integer]) -> Windows:
    """Tokens and their targets from rows [N, T + 1]."""
    both = torch.from_numpy(rows.astype(np.int64))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


class Data(ABC):
    """Where text comes from; subclass it and name it by import path (`--data my_file.MyData`)."""

    @abstractmethod
    def corpus(self) -> Corpus:
        """Prepare the tokens, or find them prepared."""


class Text(Data):
    """Text files, or the documentation that every Python carries.

    Parameters
    ----------
    path
        A file, a folder (all files in it that are not hidden) or a glob of UTF-8 text; by default
        the documentation topics and docstrings of the running Python's standard library.
    tokens
        `byte`, `char`, or the path of a `tokenizer.json`.
    validation
        Share of the text, at its end, kept for validation.
    """

    def __init__(
        self, path: str | None = None, tokens: str = "byte", validation: float = 0.1
    ) -> None:
        if not 0 < validation < 1:
            raise UsageError(f"data.validation: {validation} given; above 0 and below 1 is allowed")
        if path == "":
            raise UsageError("data.path: it is empty; a file, a folder or a glob is needed")
        self.path, self.tokens, self.validation = path, tokens, validation

    def corpus(self) -> TokenCorpus:
        files = _find_files(self.path) if self.path is not None else None
        described = _describe_files(files) if files else _describe_python()
        identity = json.dumps([CACHE_VERSION, described, self.tokens, _stamp(self.tokens)])
        folder = cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:24]
        try:
            prepared = _read_prepared(folder)
            if prepared is None:
                self._prepare(files, folder)
                prepared = _read_prepared(folder)
        except OSError as error:
            raise UsageError(
                f"cannot keep prepared text in {folder.parent}: {error.strerror}; "
                "set PYRO_META_CACHE to a folder that can be written"
            ) from error
        if prepared is None:
            raise UsageError(f"prepared text in {folder} is damaged; remove that folder")
        tokens, vocabulary, facts = prepared
        is_own = self.path is not None
        source = self.path if is_own else "documentation of the Python standard library"
        description = (
            f"{source} ({facts['bytes']:,} bytes, sha256 {facts['sha256'][:12]}, "
            f"{len(tokens):,} {vocabulary.kind} tokens)"
        )
        boundary = int(len(tokens) * (1 - self.validation))
        return TokenCorpus(tokens, boundary, vocabulary, facts["sha256"], description)

    def _prepare(self, files: list[Path] | None, folder: Path) -> None:
        """Write tokens.bin, vocabulary.json and corpus.json under a temporary name; rename."""
        folder.parent.mkdir(parents=True, exist_ok=True)

        def pieces() -> Iterator[str]:
            return _read_files(files) if files else read_python()

        vocabulary = self._vocabulary(pieces())
        dtype = np.dtype(np.uint8 if vocabulary.size <= 1 << 8 else np.uint16)
        if vocabulary.size > 1 << 16:
            dtype = np.dtype(np.uint32)
        digest, size, count = hashlib.sha256(), 0, 0
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as temporary:
            partial = Path(temporary) / "corpus"
            partial.mkdir()
            with open(partial / "tokens.bin", "wb") as out:
                for piece in pieces():
                    raw = piece.encode()
                    digest.update(raw)
                    size += len(raw)
                    encoded = vocabulary.encode(piece).astype(dtype)
                    count += len(encoded)
                    out.write(encoded.tobytes())
            if not count:
                raise UsageError(f"data.path: {self.path} holds no text")
            vocabulary.save(partial / "vocabulary.json")
            facts = {
                "bytes": size,
                "sha256": digest.hexdigest(),
                "dtype": dtype.name,
                "tokens": count,
            }
            (partial / "corpus.json").write_text(json.dumps(facts))
            if folder.exists() and _read_prepared(folder) is None:
                shutil.rmtree(folder)  # damaged: made anew
            if not folder.exists():  # else another process was first, with the same result
                partial.rename(folder)

    def _vocabulary(self, pieces: Iterator[str]) -> Vocabulary:
        if self.tokens == "byte":
            return ByteVocabulary()
        if self.tokens == "char":
            seen: set[str] = set()
            for piece in pieces:
                seen.update(piece)
            return CharVocabulary(sorted(seen))
        return FileVocabulary.from_path(Path(self.tokens))


Prepared = tuple[NDArray[np.integer], Vocabulary, dict[str, Any]]


def _read_prepared(folder: Path) -> Prepared | None:
    """Tokens, vocabulary and facts of a prepared corpus; None if it is not there, or not whole."""
    try:
        facts = json.loads((folder / "corpus.json").read_text())
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        tokens = np.memmap(folder / "tokens.bin", dtype=facts["dtype"], mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None
    is_whole = {"bytes", "sha256"} <= facts.keys() and len(tokens) == facts.get("tokens")
    return (tokens, vocabulary, facts) if is_whole else None


def _find_files(path: str) -> list[Path]:
    try:
        given = Path(path).expanduser()
        is_file, is_folder = given.is_file(), given.is_dir()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"data.path: {path}: {error}") from error
    if is_file:
        return [given]
    if is_folder:
        inside = sorted(given.rglob("*"))
        files = [file for file in inside if file.is_file() and not _is_hidden(file, given)]
    else:
        files = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]
        files = [file for file in files if file.is_file()]
    if not files:
        raise UsageError(f"data.path: {path}: no such file, and no file in a folder or glob")
    return files


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _stamp(path: str | Path) -> list[int]:
    """Size and time of a file, so that a changed file is read anew; nothing for no file."""
    if not Path(path).is_file():
        return []
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]


def _describe_files(files: list[Path]) -> list[object]:
    return [[str(file.resolve()), *_stamp(file)] for file in files]


def _describe_python() -> list[object]:
    return ["python", sys.version, str(_stdlib())]


def _read_files(files: list[Path]) -> Iterator[str]:
    """Text of the files in pieces of about a megabyte that end at line ends."""
    for file in files:
        try:
            with open(file, encoding="utf-8", newline="") as handle:
                while piece := handle.read(READ_CHARACTERS):
                    yield piece + handle.readline(READ_CHARACTERS)
        except UnicodeDecodeError as error:
            raise UsageError(
                f"data.path: {file} is not UTF-8 text (byte {error.object[error.start]:#04x}: "
                f"{error.reason}); name text files, for example with a glob '**/*.txt'"
            ) from error
        except OSError as error:
            raise UsageError(f"data.path: {file}: {error.strerror}") from error


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def read_python() -> Iterator[str]:
    """The documentation topics, then every docstring of the standard library, file by file."""
    try:
        from pydoc_data.topics import topics

        yield "\n\n".join(topics[name] for name in sorted(topics)) + "\n\n"
    except ImportError:  # some distributions leave the topics out; the docstrings remain
        pass
    root = _stdlib()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if any(part in STDLIB_LEFT_OUT or part.startswith("config-") for part in parts):
            continue
        found = io.StringIO()
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # template files that are no Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if docstring := ast.get_docstring(node):
                    found.write(docstring.encode("utf-8", "replace").decode() + "\n\n")
        if text := found.getvalue():
            yield text
