"""Retrieval from long text: a passkey, or pairs of key and value, planted in it.

    passkey   text ... The pass key is 48213. Remember it. ... text ... What is the pass key? The
              pass key is | 48213
    pairs     text ... The number of amber is 7731. ... The number of cedar is 2046. ... text ...
              What is the number of cedar? The number of cedar is | 2046

The answer is to be found by an exact look-up alone: its digits are random. `depth` is where the
needle stands, as a share of the text before the question; of pairs the other ones are scattered.
The passkey is that of Mohtashami & Jaggi 2023 (arXiv 2305.16300); accuracy by depth and length is
read as of Kamradt's needle in a haystack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_meta.errors import UsageError

Kind = Literal["passkey", "pairs"]
Ints = NDArray[np.int64]

WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "falcon", "garnet", "harbor", "indigo", "jasper",
    "lagoon", "meadow", "nectar", "orchid", "pepper", "quartz", "raven", "saffron", "timber",
    "violet", "willow", "zephyr",
)  # fmt: skip


class Question(NamedTuple):
    """A text that ends in a question, and what follows it."""

    tokens: Ints
    """[T], the answer but its last token at the end."""
    answer: Ints
    """[A]: what is to be predicted at the last A positions."""


@dataclass(frozen=True)
class Retrieval:
    """Plants needles.

    Parameters
    ----------
    encode
        Tokens of a text.
    filler
        Tokens of the text around them, [N].
    kind
        `passkey` or `pairs`.
    digits
        Of an answer.
    pairs
        How many there are, of which one is asked for.

    Raises
    ------
    UsageError
        There are no digits, or there are more pairs than words.
    """

    encode: Callable[[str], Sequence[int] | Ints]
    filler: Ints
    kind: Kind = "passkey"
    digits: int = 5
    pairs: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 18:
            raise UsageError(f"retrieval: {self.digits} digits given; 1 to 18 are allowed")
        most = min(len(WORDS), 10**self.digits)
        if not 1 <= self.pairs <= most:
            raise UsageError(f"retrieval: {self.pairs} pairs given; 1 to {most} are allowed")

    @property
    def chance(self) -> float:
        """The share of answers that come right by chance: guessed digits, or any of the pairs."""
        return 10.0**-self.digits if self.kind == "passkey" else 1 / self.pairs

    def __call__(self, length: int, depth: float, rng: np.random.Generator) -> Question:
        """A question behind a text, `length` tokens together with the answer.

        Raises
        ------
        UsageError
            The length leaves no room for a text, or there is too little of it.
        """
        names = rng.permutation(WORDS)[: self.pairs if self.kind == "pairs" else 1]
        numbers: list[str] = []
        while len(numbers) < len(names):  # none of them twice
            number = "".join(map(str, rng.integers(0, 10, self.digits)))
            numbers += [number] if number not in numbers else []
        if self.kind == "passkey":
            needles = [f"\n\nThe pass key is {numbers[0]}. Remember it.\n\n"]
            question = "\n\nWhat is the pass key? The pass key is"
        else:
            told = zip(names, numbers, strict=True)
            needles = [f"\n\nThe number of {name} is {number}.\n\n" for name, number in told]
            question = f"\n\nWhat is the number of {names[0]}? The number of {names[0]} is"
        asked, answer = self._asked(question, f" {numbers[0]}")
        planted = [self._tokens(needle) for needle in needles]
        room = length - len(asked) - len(answer) - sum(map(len, planted))
        if room < 1 or len(self.filler) < room:
            raise UsageError(
                f"retrieval: a text of {length} tokens has room for {room} of filler, and there "
                f"are {len(self.filler)}"
            )
        begin = int(rng.integers(0, len(self.filler) - room + 1))
        filler = self.filler[begin : begin + room]
        depths = [depth, *rng.uniform(0, 1, len(planted) - 1)]
        places = [round(one * room) for one in depths]
        pieces, done = [], 0
        for place, needle in sorted(zip(places, planted, strict=True), key=lambda pair: pair[0]):
            pieces += [filler[done:place], needle]
            done = place
        whole = np.concatenate([*pieces, filler[done:], asked, answer])
        return Question(whole[:-1], answer)

    def _tokens(self, text: str) -> Ints:
        return np.asarray(self.encode(text), dtype=np.int64)

    def _asked(self, question: str, answer: str) -> tuple[Ints, Ints]:
        """Tokens of both together, cut where the answer begins to matter."""
        alone, both = self._tokens(question), self._tokens(question + answer)
        most = min(len(alone), len(both) - 1)
        same = next((at for at in range(most) if alone[at] != both[at]), most)
        return both[:same], both[same:]
