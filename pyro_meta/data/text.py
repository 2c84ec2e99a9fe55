"""Text files, and the documentation that every Python carries."""

from collections.abc import Iterator

from pyro_meta.data.base import CutText
from pyro_meta.data.corpus import TokenCorpus
from pyro_meta.data.documentation import describe_python, read_python
from pyro_meta.data.files import find_files, read_files
from pyro_meta.data.prepared import Part
from pyro_meta.errors import UsageError


class Text(CutText):
    """Text files, or the documentation that every Python carries.

    Parameters
    ----------
    path
        A file, a folder (all files in it that are not hidden) or a glob of UTF-8 text; by default
        the documentation topics and docstrings of the running Python's standard library.
    tokens
        `byte`, `char`, or the path of a `tokenizer.json` or of a run's `vocabulary.json`.
    validation
        Share of the text, at its end, kept for validation.
    """

    def __init__(
        self, path: str | None = None, tokens: str = "byte", validation: float = 0.1
    ) -> None:
        super().__init__(tokens)
        if path == "":
            raise UsageError("data.path: it is empty; a file, a folder or a glob is needed")
        require_share(validation)
        self.path, self.validation = path, validation

    def corpus(self) -> TokenCorpus:
        found = None if self.path is None else find_files(self.path)
        described = describe_python() if found is None else found.described()

        def pieces() -> Iterator[str]:
            is_empty = True
            for piece in read_python() if found is None else read_files(found.files):
                is_empty = False
                yield piece
            if is_empty:
                raise UsageError(f"data.path: {self.path} holds no text")
            if found is not None:
                found.require_unchanged(self.path, described)

        source = self.path or "documentation of the Python standard library"
        left_out = "" if found is None else found.left_out()
        notes = [left_out] if left_out else []
        return self.cut([described], [Part(pieces)], source, self.validation, notes)


def require_share(validation: float) -> None:
    """Raise `UsageError` unless some is held out, and not all."""
    if not 0 < validation < 1:
        raise UsageError(f"data.validation: {validation} given; above 0 and below 1 is allowed")
