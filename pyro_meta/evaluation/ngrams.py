"""What counting tokens gives: the losses that a model has to beat."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor


def ngram_nll(
    train: NDArray[np.integer],
    windows: tuple[Tensor, Tensor],
    vocabulary: int,
) -> tuple[float, float]:
    """Losses of a unigram and a bigram model on the same targets, in nats per token.

    Counts from the training part, at most its first 2^26 tokens; the unigram adds one to every
    count, the bigram backs off to the unigram with the weight of one observation.
    """
    train = train[: 1 << 26]
    counts = np.ones(vocabulary)
    pairs = sparse.csr_array((vocabulary, vocabulary))
    piece = 1 << 22
    for start in range(0, len(train), piece):
        part = np.asarray(train[start : start + piece + 1], dtype=np.int64)
        fresh = part[:-1] if start + piece < len(train) else part
        counts += np.bincount(fresh, minlength=vocabulary)
        ones = np.ones(len(part) - 1)
        pairs = pairs + sparse.csr_array(
            (ones, (part[:-1], part[1:])), shape=(vocabulary, vocabulary)
        )
    unigram = counts / counts.sum()
    seen = pairs.sum(1)
    x, y = windows[0].numpy().ravel(), windows[1].numpy().ravel()
    together = np.concatenate(
        [
            np.asarray(pairs[x[i : i + piece], y[i : i + piece]]).ravel()
            for i in range(0, len(x), piece)
        ]
    )
    bigram = (together + unigram[y]) / (seen[x] + 1)
    return float(-np.log(unigram[y]).mean()), float(-np.log(bigram).mean())
