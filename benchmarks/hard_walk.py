"""One walk along hard routes through the validation sequences of a run whose truth is known."""

import shlex
import sys
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_meta.data.corpus import Truth
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.network.route import Decision, Features
from pyro_meta.training.config import train_words
from pyro_meta.training.run import Run


class HardWalk(NamedTuple):
    """What a run's last checkpoint says of N sequences of T tokens."""

    command: str
    """The command line that repeats the run."""
    tokens: NDArray[np.int64]
    """[N, T]."""
    truth: Truth
    symbols: list[str]
    """What each token of the vocabulary stands for."""
    means: NDArray[np.floating]
    """Posterior means of the routes, [L, N, T, K]."""
    choice: NDArray[np.floating]
    """What runs, as weights, likewise."""
    full: int
    """Index of `full` among the mechanisms."""


def hard_walk(run: Run, most_tokens: int) -> HardWalk:
    """Exits with one line where the data knows no truth, or the model has depth gates."""
    model, guide, vocabulary, config = run.load()
    corpus = config.data.corpus()
    corpus.require(config.context)
    truth = corpus.truth(config.context, most_tokens)
    if truth is None or guide.depth is not None:
        sys.exit(f"{run.folder}: a run with a known truth and no depth gates is needed")
    tokens, _ = corpus.windows(config.context, most_tokens)
    means: list[Tensor] = []

    def route(layer: int, features: Features) -> Tensor | Decision:
        law = guide.posterior(layer, features)
        means.append(law.mean)
        return guide.follow(law, hard=True)

    with evaluating(model, guide):
        model.network(tokens, route)
    words = train_words((run.folder / "config.yaml").read_text(encoding="utf-8"))
    return HardWalk(
        shlex.join(["python", "-m", "pyro_meta.train", *words]),
        tokens.numpy(),
        truth,
        vocabulary.pieces(range(vocabulary.size)),
        torch.stack(means).numpy(),
        guide.choice(torch.stack(means)).numpy(),
        model.network.mechanism_names.index("full"),
    )
