"""What of a text its tokens lose, found on a sample: characters that do not come back."""

from collections import Counter
from collections.abc import Iterator

from pyro_meta.data.vocabulary import Vocabulary

PASSAGE = 1024
PASSAGES = 4
"""Of a piece of text, evenly spread."""
FIRST_PIECES = 16
SHOWN = 5


class Loss:
    """Characters of a sample, and those of them that are not in the text of their tokens.

    Attributes
    ----------
    read
        Characters in the sample.
    lost
        Those that vanish, become the unknown token or another character.
    tokens
        Ids that there are in the sample's tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.read = 0
        self.lost: Counter[str] = Counter()
        self.tokens: set[int] = set()

    def add(self, text: str) -> None:
        """Measure some passages of a text."""
        for passage in _passages(text):
            ids = self._vocabulary.encode(passage)
            known = self._vocabulary.without_unknowns(ids).tolist()
            self.read += len(passage)
            self.lost += Counter(passage) - Counter(self._vocabulary.decode(known))
            self.tokens.update(known)

    def is_total(self) -> bool:
        """Whether nothing of the text is left."""
        return self.read > 0 and self.lost.total() == self.read and len(self.tokens) <= 1

    def said(self) -> str:
        """How much is lost, in a few words; nothing if nothing is."""
        count = self.lost.total()
        if not count:
            return ""
        examples = ", ".join(repr(character) for character, _ in self.lost.most_common(SHOWN))
        return (
            f"the tokens lose {count:,} of {self.read:,} characters of a sample "
            f"({count / self.read:.2g}), such as {examples}"
        )


def loss(vocabulary: Vocabulary, text: str) -> Loss:
    """What the tokens of one text lose."""
    found = Loss(vocabulary)
    found.add(text)
    return found


def is_sampled(number: int) -> bool:
    """Whether a piece of a long text is measured: the first ones, then ever fewer."""
    return number < FIRST_PIECES or number & (number - 1) == 0


def _passages(text: str) -> Iterator[str]:
    if len(text) <= PASSAGE * PASSAGES:
        yield text
        return
    for number in range(PASSAGES):
        start = number * (len(text) - PASSAGE) // (PASSAGES - 1)
        yield text[start : start + PASSAGE]
