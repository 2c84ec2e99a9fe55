"""Datasets that Hugging Face's `datasets` reads: on disk, in files, from the hub, streamed or not.

Their rows go the way of all text: cut into tokens once, and kept. What is on this disk is read
where it is; `datasets` keeps no second copy of it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyro_meta.data.base import CutText
from pyro_meta.data.corpus import TokenCorpus
from pyro_meta.data.files import READ_CHARACTERS, Found, find_files, place_to_cut
from pyro_meta.data.prepared import Part, TooFewTokens
from pyro_meta.data.preparing import tell
from pyro_meta.data.text import require_share
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import said

READERS = {
    ".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json",
    ".ndjson": "json", ".csv": "csv", ".txt": "text",
}  # fmt: skip
"""Which builder of `datasets` reads files of a suffix."""
PACKED = {".gz", ".bz2", ".xz", ".zst", ".lz4"}
"""Suffixes of packed files, which are unpacked while they are read."""
SAVED = {"dataset_dict.json", "state.json"}
"""Files that tell a folder that `save_to_disk` wrote."""
TALKERS = ("datasets", "huggingface_hub")
"""Loggers that say what is raised as well."""
TEXT_TYPES = {"string", "large_string"}
"""What `datasets` calls text."""
ROWS = 256
"""To be read at a time."""
SHARE = 0.1
"""Of the tokens held out, unless another is given."""


class HuggingFace(CutText):
    """A column of text of a dataset that Hugging Face's `datasets` reads (extra `datasets`).

    Rows follow each other, each on lines of its own; empty ones are left out. Their tokens are
    prepared once and kept, so a resumed run reads these and nothing of the dataset: no file and no
    network. If they are gone, the same rows are read again, and a run whose text is then another is
    refused; a dataset of the hub stays the same where `revision` is a commit.

    Parameters
    ----------
    path
        A folder that `save_to_disk` wrote; a file, a folder or a glob of Parquet, Arrow, JSON, CSV
        or plain text; or the name of a dataset of the hub.
    column
        Column of text.
    split
        Rows to train on.
    validation_split
        Rows held out (default: the end of `split`).
    validation
        Share of the tokens held out at the end of `split` (default: 0.1). Beside
        `validation_split` and `stream_tokens`: share of these that is read from the former.
    tokens
        `byte`, `char`, or the path of a `tokenizer.json` or of a run's `vocabulary.json`.
    stream_tokens
        Read the rows in order until there are so many tokens, those held out included, and nothing
        of the rest; nothing is downloaded but what is read (default: read, and download, all).
    name
        Which configuration of the dataset, if it has several.
    revision
        Commit, tag or branch of a dataset of the hub.

    Raises
    ------
    UsageError
        Parameters that exclude each other, or are out of range.
    """

    def __init__(
        self,
        path: str,
        column: str = "text",
        split: str = "train",
        validation_split: str | None = None,
        validation: float | None = None,
        tokens: str = "byte",
        stream_tokens: int | None = None,
        name: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(tokens)
        if not path:
            raise UsageError("data.path: it is empty; a folder, a file or a dataset is needed")
        if validation is not None:
            require_share(validation)
        if stream_tokens is not None and stream_tokens < 1:
            raise UsageError(f"data.stream_tokens: {stream_tokens} given; at least 1 is allowed")
        if validation_split == split:
            raise UsageError(
                f"data.validation_split: {split!r} given, which is trained on; another is allowed"
            )
        if None not in (validation, validation_split) and stream_tokens is None:
            raise UsageError(
                f"data.validation: {validation} given beside validation_split, all of which is "
                "held out; without it, or with stream_tokens, is allowed"
            )
        self.path, self.column, self.split = path, column, split
        self.validation_split, self.validation = validation_split, validation
        self.stream_tokens, self.name, self.revision = stream_tokens, name, revision

    def corpus(self) -> TokenCorpus:
        """The tokens, prepared or found prepared.

        Raises
        ------
        UsageError
            `datasets` is not installed; there is no such dataset, column or split; it holds no
            text, or fewer tokens than are to be streamed; or it cannot be read.
        """
        found = self._files()
        described = [] if found is None else found.described()
        chosen = [self.path, self.column, self.split, self.validation_split, self.name]
        wanted = [self.revision, self.stream_tokens, self.validation]
        sizes = self._sizes()
        splits = [one for one in (self.split, self.validation_split) if one is not None]
        parts = [
            Part(partial(self._read, found, split, most), most)
            for split, most in zip(splits, sizes, strict=True)
        ]
        origin: list[object] = ["datasets", described, *chosen, *wanted]
        source = f"{self.path}, {self.column} of {' and '.join(splits)}"
        try:
            corpus = self.cut(origin, parts, source, self.validation or SHARE)
        except TooFewTokens as error:
            wanted_of_it, split = sizes[error.part] or 0, splits[error.part]
            of_them = "" if len(parts) == 1 else f", {wanted_of_it:,} of them of {split}"
            allowed = (self.stream_tokens or 0) * error.count // wanted_of_it
            raise UsageError(
                f"data.stream_tokens: {self.stream_tokens:,} given{of_them}; {split} of "
                f"{self.path} has {error.count:,}; at most {allowed:,} is allowed"
            ) from error
        if found is not None:
            found.require_unchanged(self.path, described)
        return corpus

    def _sizes(self) -> list[int | None]:
        """Tokens wanted of each split; None: all."""
        if self.validation_split is None:
            return [self.stream_tokens]
        if self.stream_tokens is None:
            return [None, None]
        held_out = round(self.stream_tokens * (self.validation or SHARE))
        return [self.stream_tokens - held_out, held_out]

    def _files(self) -> Found | None:
        """The files of a dataset on this disk; None for one of the hub.

        Raises
        ------
        UsageError
            There are none, or an option is given that says nothing of them.
        """
        place = Path(self.path).expanduser()
        if not (_exists(place) or _looks_like_a_path(self.path)):
            return None
        found = find_files(self.path)
        if self.revision is not None:
            raise UsageError(
                f"data.revision: {self.revision} given, and {self.path} is on this disk; a dataset "
                "of the hub has revisions"
            )
        if self.name is not None and (not place.is_dir() or _is_saved(place)):
            raise UsageError(
                f"data.name: {self.name} given, and {self.path} has no configurations; "
                "without it is allowed"
            )
        return found

    def _read(self, found: Found | None, split: str, most: int | None) -> Iterator[str]:
        """Text of a split in pieces, of about a megabyte unless fewer tokens are wanted."""
        datasets = _library()
        with _quiet(datasets):
            try:
                splits = self._splits(datasets, found)
            except Exception as error:  # of whatever kind: there are many, by builder
                raise UsageError(self._refusal(error)) from error
            if split not in splits:
                option = "split" if split == self.split else "validation_split"
                raise UsageError(
                    f"data.{option}: {split!r} given, and {self.path} has not; "
                    f"{', '.join(splits)} is allowed"
                )
            is_empty, size = True, min(most or READ_CHARACTERS, READ_CHARACTERS)
            for piece in in_pieces(self._rows(splits[split]), size):
                is_empty = False
                yield piece
        if is_empty:
            raise UsageError(f"data.path: {self.path} holds no text in {self.column} of {split}")

    def _splits(self, datasets: Any, found: Found | None) -> Mapping[str, Any]:
        """The dataset's splits by name; those on this disk, and streamed ones, are not copied."""
        if found is None:
            tell(f"looking for {self.path} on the hub")
            builder = datasets.load_dataset_builder(self.path, self.name, revision=self.revision)
            if self.stream_tokens is not None:
                return builder.as_streaming_dataset()
            tell(f"downloading {self.path}")
            builder.download_and_prepare()
            return builder.as_dataset()
        place = Path(self.path).expanduser().resolve()
        if _is_saved(place):
            saved = datasets.load_from_disk(str(place))
            return saved if isinstance(saved, Mapping) else {str(saved.split or "train"): saved}
        kinds = {_reader(file) for file in found.files}
        if place.is_dir():
            asked: dict[str, Any] = {"path": str(place), "name": self.name}
        elif len(kinds) == 1 and (kind := kinds.pop()) is not None:
            asked = {"path": kind, "data_files": [str(file.resolve()) for file in found.files]}
        else:
            raise UsageError(
                f"data.path: {self.path} given; files of one kind are allowed, of "
                f"{', '.join(READERS)}"
            )
        with TemporaryDirectory() as nowhere:  # where locks are left, and what is streamed is not
            builder = datasets.load_dataset_builder(**asked, cache_dir=nowhere)
            return builder.as_streaming_dataset()

    def _rows(self, rows: Any) -> Iterator[str]:
        """The texts of a split, in order.

        Raises
        ------
        UsageError
            It has no such column, it holds no text, or it cannot be read.
        """
        if self.column not in (known := list(rows.column_names or [self.column])):
            raise UsageError(
                f"data.column: {self.column!r} given, and {self.path} has not; "
                f"{', '.join(_of_text(rows, known))} is allowed"
            )
        try:
            batches = rows.select_columns([self.column]).with_format(None).iter(ROWS)
            for batch in batches:
                for text in batch[self.column]:
                    if text is not None and not isinstance(text, str):
                        raise UsageError(
                            f"data.column: {self.column} of {self.path} holds "
                            f"{type(text).__name__}; a column of text is allowed"
                        )
                    if text:
                        yield text
        except Exception as error:
            raise UsageError(self._refusal(error)) from error

    def _refusal(self, error: Exception) -> str:
        if isinstance(error, UsageError):
            return str(error)
        place = "" if _exists(Path(self.path).expanduser()) else " is not on this disk, and"
        return f"data.path: {self.path}{place} cannot be read: {said(error)}"


def in_pieces(rows: Iterator[str], size: int) -> Iterator[str]:
    """Rows as one text, in pieces of about `size` characters; a row begins a line.

    A piece ends with a row, and within a longer one at a line end or before a blank.
    """
    held: list[str] = []
    length = 0
    ends_line = True
    for row in rows:
        text = row if ends_line else "\n" + row
        ends_line = row.endswith(("\n", "\r"))
        held.append(text)
        length += len(text)
        if length < size:
            continue
        rest = "".join(held)
        while len(rest) > size:
            cut = place_to_cut(rest[:size])
            yield rest[:cut]
            rest = rest[cut:]
        held, length = [rest], len(rest)
    if length:
        yield "".join(held)


def _reader(file: Path) -> str | None:
    """The builder of `datasets` that reads a file; None for another kind of file."""
    suffixes = [one.lower() for one in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return READERS.get(suffixes[-1]) if suffixes else None


def _of_text(rows: Any, columns: list[str]) -> list[str]:
    """Those of `columns` that hold text; all of them where a dataset does not say, or none does."""
    kinds = rows.features or {}
    found = [one for one in columns if getattr(kinds.get(one), "dtype", "string") in TEXT_TYPES]
    return found or columns


def _looks_like_a_path(name: str) -> bool:
    """Whether it is no name of the hub, which is one word, or two with a slash between them."""
    is_file = _reader(Path(name)) is not None
    return is_file or name.startswith(("/", "~", ".")) or "*" in name or name.count("/") > 1


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def _is_saved(place: Path) -> bool:
    return any((place / name).is_file() for name in SAVED)


def _library() -> Any:
    """The library; a folder `datasets` with data in it can be imported, and is none."""
    try:
        import datasets

        datasets.load_dataset_builder  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise UsageError(
            "data: HuggingFace needs datasets; pip install 'pyro-meta[datasets]'"
        ) from error
    return datasets


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the library, and that of the hub, from drawing bars and logging what is raised."""
    has_bars: Callable[[], bool] = datasets.utils.are_progress_bars_disabled
    was_quiet, loggers = has_bars(), [logging.getLogger(name) for name in TALKERS]
    levels = [one.level for one in loggers]
    datasets.disable_progress_bars()
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        if not was_quiet:
            datasets.enable_progress_bars()
