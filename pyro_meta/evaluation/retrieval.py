"""Whether a network finds what was planted far back in its text, along one route or another."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_meta.data.retrieval import Retrieval
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Route


@dataclass(frozen=True)
class Cell:
    """Questions of one length and depth."""

    length: int
    depth: float
    right: int
    """Answers of which every token is the likeliest one."""
    asked: int

    def figures(self) -> dict[str, Any]:
        return {
            "length": self.length,
            "depth": self.depth,
            "accuracy": self.right / self.asked,
            "asked": self.asked,
        }


def retrieved(
    network: Network,
    route: Route,
    retrieval: Retrieval,
    lengths: Iterable[int],
    depths: Iterable[float],
    count: int,
    seed: int = 0,
    note: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """How often the answer is what the network says, by length and depth.

    All routes are asked the same questions. Every token of the answer has to be the likeliest one
    after the true ones before it.

    Parameters
    ----------
    network, route
        What is asked.
    retrieval
        Makes the questions.
    lengths, depths
        Tokens of a text, and shares of it at which the needle stands.
    count
        Questions of each length and depth.
    seed
        Of the questions.
    note
        Called after every question.
    """
    cells = []
    for length in lengths:
        for place, depth in enumerate(depths):
            right = 0
            for number in range(count):
                rng = np.random.default_rng([seed, length, place, number])
                question = retrieval(length, depth, rng)
                tokens = torch.from_numpy(question.tokens)[None].to(network.device)
                with torch.no_grad():
                    states = network.states(tokens, route)[:, -len(question.answer) :]
                    said = network.readout(states).argmax(-1)[0].cpu()
                right += bool((said == torch.from_numpy(question.answer)).all())
                note()
            cells.append(Cell(length, depth, right, count))
    return cells
