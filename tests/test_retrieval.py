"""Needles planted in text: where they stand, and that only who finds them answers."""

import numpy as np
import pytest
import torch
from conftest import build

from pyro_meta import Decision, UsageError
from pyro_meta.data.retrieval import WORDS, Retrieval
from pyro_meta.evaluation.retrieval import retrieved
from pyro_meta.network.transformer import chosen_by_all

FILLER = np.full(5000, ord("~"))
KINDS = ("passkey", "pairs")


def encode(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def decode(tokens: np.ndarray) -> str:
    return bytes(tokens.tolist()).decode()


def asked(kind: str, depth: float = 0.5, length: int = 600, seed: int = 0) -> tuple[str, str]:
    """The text of a question, and its answer."""
    retrieval = Retrieval(encode, FILLER, kind)  # type: ignore[arg-type]
    found = retrieval(length, depth, np.random.default_rng(seed))
    assert len(found.tokens) == length - 1
    assert found.tokens[-len(found.answer) + 1 :].tolist() == found.answer[:-1].tolist()
    return decode(found.tokens[: len(found.tokens) - len(found.answer) + 1]), decode(found.answer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_needle_stands_at_its_depth(kind: str, depth: float) -> None:
    text, answer = asked(kind, depth)
    assert answer.strip().isdigit() and len(answer) == 6
    place = text.index(answer.strip())
    before, behind = text[:place].count("~"), text[place:].count("~")
    assert before / (before + behind) == pytest.approx(depth, abs=0.01)
    assert text.count(answer.strip()) == 1


def test_of_pairs_the_first_that_is_asked_for_answers() -> None:
    text, answer = asked("pairs")
    name = text.rsplit("The number of ", 1)[1].split()[0]
    assert name in WORDS
    assert f"The number of {name} is{answer}." in text
    assert text.count("The number of") == 5


def test_questions_differ_and_are_repeated() -> None:
    answers = {asked("passkey", seed=seed)[1] for seed in range(20)}
    assert len(answers) == 20
    assert asked("pairs", seed=3) == asked("pairs", seed=3)


def test_an_answer_is_cut_where_its_tokens_begin() -> None:
    """A tokenizer may draw the space before an answer to the question, or a digit to the space."""

    def pairs_of_characters(text: str) -> list[int]:
        return [sum(encode(text[at : at + 2])) for at in range(0, len(text), 2)]

    retrieval = Retrieval(pairs_of_characters, np.zeros(500, np.int64))
    found = retrieval(200, 0.5, np.random.default_rng(0))
    question = "\n\nWhat is the pass key? The pass key is"
    assert 3 <= len(found.answer) <= 4 and len(question) % 2


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(UsageError, match="has room for -"):
        asked("passkey", length=40)
    with pytest.raises(UsageError, match="0 digits given"):
        Retrieval(encode, FILLER, digits=0)
    with pytest.raises(UsageError, match="23 pairs given"):
        Retrieval(encode, FILLER, pairs=23)


class Reader:
    """A network that copies what follows `is ` in a needle; along `window` it sees no needle."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.shape = build()[0].network.shape

    def states(self, tokens: torch.Tensor, route: object) -> torch.Tensor:
        text = decode(tokens[0].numpy())
        found = text[text.index("The pass key is") + 15 :][:6]
        right = torch.from_numpy(encode(found)) if route == "full" else torch.zeros(6).long()
        states = torch.zeros(1, len(text), 256)
        states[0, -6:] = torch.nn.functional.one_hot(right, 256).float()
        return states

    def readout(self, states: torch.Tensor) -> torch.Tensor:
        return states


def test_who_reads_the_needle_is_right_and_nobody_else() -> None:
    retrieval = Retrieval(encode, FILLER)
    for route, share in (("full", 1.0), ("window", 0.0)):
        cells = retrieved(Reader(), route, retrieval, [300, 500], [0.1, 0.9], 3)  # type: ignore
        assert [(one.length, one.depth) for one in cells] == [
            (300, 0.1), (300, 0.9), (500, 0.1), (500, 0.9),
        ]  # fmt: skip
        assert all(one.figures()["accuracy"] == share and one.asked == 3 for one in cells)


def test_a_random_network_is_at_chance() -> None:
    model, _ = build(context=128)
    retrieval = Retrieval(lambda text: encode(text) % 13, FILLER % 13)
    full = chosen_by_all(model.network, "full")

    def route(layer: int, features: object) -> Decision:
        return full(layer, features)  # type: ignore[arg-type]

    (cell,) = retrieved(model.eval().network, route, retrieval, [300], [0.5], 4)
    assert cell.right == 0
