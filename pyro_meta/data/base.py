"""Text that becomes tokens: what all sources of text share."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pyro_meta.data.corpus import Data, TokenCorpus
from pyro_meta.data.files import stamp
from pyro_meta.data.prepared import Part, UnfitTokens, prepared
from pyro_meta.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    FileVocabulary,
    Vocabulary,
    is_vocabulary,
)
from pyro_meta.errors import UsageError


class CutText(Data):
    """Text that is cut into tokens, which are prepared once and kept.

    Parameters
    ----------
    tokens
        `byte`, `char`, or the path of a `tokenizer.json` or of a run's `vocabulary.json`.
    """

    def __init__(self, tokens: str) -> None:
        if tokens == "":
            raise UsageError("data.tokens: it is empty; byte, char or a tokenizer.json is needed")
        self.tokens = tokens
        self._tokenizer: Callable[[], Path] | None = None

    def cut_by(self, tokenizer: Callable[[], Path]) -> None:
        """Cut the text by the tokenizer.json that `tokenizer` finds, whatever `tokens` says."""
        self._tokenizer = tokenizer

    def cut(
        self,
        origin: list[object],
        parts: Sequence[Part],
        source: str,
        validation: float,
        notes: Sequence[str] = (),
    ) -> TokenCorpus:
        """The tokens of some text, prepared or found prepared.

        Parameters
        ----------
        origin
            All that the text depends on, as JSON.
        parts
            What is trained on, and, if it is a part of its own, what is held out.
        source
            Where the text is from, to be shown.
        validation
            Share of the tokens that is held out, at the end, where there is one part.
        notes
            What else is to be shown of it.

        Raises
        ------
        UsageError
            Tokens that cannot write the text, or a cache folder that cannot be used.
        TooFewTokens
            A part has fewer tokens than are wanted.
        """
        tokens = self.tokens if self._tokenizer is None else str(self._tokenizer())
        tokenizer = Path(tokens).expanduser()
        if tokens == "char":  # a token each: no character beyond them belongs to the vocabulary
            parts = [part if part.most_tokens is None else _begun(part) for part in parts]

        def vocabulary() -> Vocabulary:
            if tokens == "byte":
                return ByteVocabulary()
            if tokens == "char":
                pieces = (piece for part in parts for piece in part.pieces())
                return CharVocabulary(sorted({one for piece in pieces for one in set(piece)}))
            if is_vocabulary(tokenizer):
                return Vocabulary.load(tokenizer)
            return FileVocabulary.from_path(tokenizer)

        try:
            text = prepared([*origin, tokens, stamp(tokenizer)], parts, vocabulary)
        except UnfitTokens as error:
            raise UsageError(f"data.tokens: {tokens}: {error}") from error
        facts = [
            f"{text.bytes:,} bytes",
            f"sha256 {text.sha256[:12]}",
            f"{len(text.tokens):,} {text.vocabulary.kind} tokens",
            *notes,
            *([text.loss] if text.loss else []),
        ]
        share = int(len(text.tokens) * (1 - validation))
        boundary = share if len(parts) == 1 else text.ends[0]
        description = f"{source} ({', '.join(facts)})"
        return TokenCorpus(text.tokens, boundary, text.vocabulary, text.sha256, description)


def _begun(part: Part) -> Part:
    """The same part, of whose text no more characters are read than tokens are wanted."""

    def pieces() -> Iterator[str]:
        left = part.most_tokens or 0
        for piece in part.pieces():
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    return Part(pieces, part.most_tokens)
