"""The best posterior that a function of the prefix can reach, as far as it can be learned.

A guide sees x and not y. What it pays for the choice z of one token is, on average over y,

    J(q) = E_q[-log p(y | z)] + w KL(q || p)

which is least for p_w(z | x), proportional to p(z) exp(E[log p(y | z) | x] / w). The expectation is
learned from tokens whose every choice was tried, by ridge regression of the log-likelihoods on what
the guide sees; and it is cross-fitted (Chernozhukov et al. 2018, arXiv 1608.00060): what is said of
a text was learned from others. So what it gains on the real targets of that text is no memory of
them. Several regressions are tried, two ways each: of the log-likelihood, beginning at the prior,
and of what the guide leaves to be explained, beginning at the guide. On each text the one is taken
that does best on the others.

Shapes: N tokens, S layers and groups, K choices, F features, C candidates, R rows of a regression.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

Array = NDArray[np.floating]
Index = NDArray[np.integer]
Mask = NDArray[np.bool_]
Solved = tuple[Mask, Array, Array, Array]
"""Who is judged, what they read of the eigenvectors, eigenvalues, and the goals in their basis."""

FOLDS = 5
PENALTIES = (0.3, 3.0, 30.0, 300.0)
"""Of the ridge, in tokens: as many weigh as much as what was believed before."""
JITTER = 1e-9


def objective(log_q: Array, log_likelihood: Array, log_prior: Array, kl_weight: float) -> Array:
    """J of choices, [..] nats, for logarithms [.., K]: E_q[-log p(y | z)] + w KL(q || p)."""
    q = np.exp(log_q)
    return (q * (kl_weight * (log_q - log_prior) - log_likelihood)).sum(-1)


def given_prefix(
    log_likelihood: Array,
    log_guide: Array,
    log_prior: Array,
    features: Array,
    text: Index,
    kl_weight: float,
) -> Array:
    """log p_w(z | x), [N, S, K], of each token learned from other texts.

    Parameters
    ----------
    log_likelihood, log_guide, log_prior
        Of each choice, [N, S, K]; the prior's up to a constant.
    features
        What the guide sees, [N, S, F].
    text
        Which text a token is of, [N].
    kl_weight
        w.
    """
    folds = _folds(text)
    told = _centred(log_likelihood)
    left = _centred(log_likelihood + kl_weight * (log_prior - log_guide))
    from_prior, from_guide = (log_softmax(one, -1) for one in (log_prior, log_guide))
    goals = np.concatenate([told, left], -1)  # [N, S, 2 K]
    K = told.shape[-1]
    found = []
    for predicted in _predictions(goals, _centred(log_guide), _centred(log_prior), features, folds):
        for base, part in ((from_prior, predicted[..., :K]), (from_guide, predicted[..., K:])):
            found.append(log_softmax(base + part / kl_weight, -1))
    candidates = np.stack(found)  # [C, N, S, K]
    paid = objective(candidates, log_likelihood, log_prior, kl_weight).sum(-1)  # [C, N]
    best = np.empty_like(from_guide)
    for fold in range(folds.max() + 1):
        ours = folds == fold
        others = paid[:, ~ours].mean(1) if not ours.all() else paid.mean(1)
        best[ours] = candidates[others.argmin(), ours]
    return best


def _folds(text: Index) -> Index:
    """Which fold each token is of: whole texts, dealt out in turn."""
    _, order = np.unique(text, return_inverse=True)
    return order % min(FOLDS, int(order.max()) + 1)


def _centred(x: Array) -> Array:
    return x - x.mean(-1, keepdims=True)


def _predictions(
    goals: Array, guide: Array, prior: Array, features: Array, folds: Index
) -> Iterator[Array]:
    """Predictions of goals [N, S, 2 K] by each regression, for each token from the other folds."""
    N, S, outputs = goals.shape
    words = np.concatenate([guide, prior], -1)  # [N, S, 2 K]
    of_all = words.reshape(N * S, -1)
    together = np.concatenate([np.ones((N * S, 1)), _standardised(of_all)], 1)
    for predicted in _ridge_of_few(together, goals.reshape(N * S, outputs), np.repeat(folds, S)):
        yield predicted.reshape(N, S, outputs)
    for kind in (_linear, _radial):
        for sees_guide in (False, True):
            by_site = []
            for site in range(S):
                seen = _standardised(features[:, site])
                kernel = 1 + kind(seen)
                if sees_guide:
                    kernel = kernel + _linear(_standardised(words[:, site]))
                by_site.append(list(_ridge(kernel, goals[:, site], folds)))
            for same in zip(*by_site, strict=True):
                yield np.stack(same, 1)


def _standardised(x: Array) -> Array:
    """Columns of mean 0 and deviation 1; those that do not vary are 0."""
    deviation = x.std(0)
    return (x - x.mean(0)) / np.where(deviation > 1e-9, deviation, np.inf)


def _linear(x: Array) -> Array:
    """x x', with a mean of 1 on the diagonal."""
    return x @ x.T / max(1.0, float((x**2).sum(1).mean()))


def _radial(x: Array) -> Array:
    """exp(-|a - b|^2 / median |a - b|^2)."""
    square = (x**2).sum(1)
    apart = np.maximum(square[:, None] + square - 2 * x @ x.T, 0.0)
    return np.exp(-apart / max(float(np.median(apart)), JITTER))


def _splits(folds: Index) -> Iterator[tuple[Mask, Mask]]:
    """Rows that are judged, and those that are learned from; of a single fold they are the same."""
    for fold in range(folds.max() + 1):
        out = folds == fold
        yield out, out if out.all() else ~out


def _ridge(kernel: Array, goals: Array, folds: Index) -> Iterator[Array]:
    """Kernel ridge regression of goals [R, 2 K], a penalty after the other, [R, 2 K] each."""
    solved = []
    for out, kept in _splits(folds):
        values, vectors = np.linalg.eigh(kernel[np.ix_(kept, kept)])
        solved.append((out, kernel[np.ix_(out, kept)] @ vectors, values, vectors.T @ goals[kept]))
    return _by_penalty(solved, goals)


def _ridge_of_few(x: Array, goals: Array, folds: Index) -> Iterator[Array]:
    """The same for the kernel x x' of few columns, [R, F]."""
    solved = []
    for out, kept in _splits(folds):
        values, vectors = np.linalg.eigh(x[kept].T @ x[kept])
        solved.append((out, x[out] @ vectors, values, vectors.T @ (x[kept].T @ goals[kept])))
    return _by_penalty(solved, goals)


def _by_penalty(
    solved: Sequence[tuple[Mask, Array, Array, Array]], goals: Array
) -> Iterator[Array]:
    for penalty in PENALTIES:
        predicted = np.empty_like(goals)
        for out, read, values, told in solved:
            predicted[out] = read @ (told / (np.maximum(values, 0) + penalty)[:, None])
        yield predicted
