"""Importance weights of the guide's draws over short blocks of tokens.

k-hat grows with the number of tokens at equal error per token, so blocks are short: the routes of
one block are drawn anew in all layers, while the text before it went along the deployed routes and
the text after it is cut off. For such a block

    log r = log p(y_block | alpha) / w + log p(alpha) - log q(alpha | x)

is exact up to a constant. Its terms are kept apart, so that any w can be looked at. Beside the log
likelihood of what came stands its expectation for y as the deployed route predicts it: with that in
its place, r is of the posterior that a router which runs before y can aim at.

Shapes: S draws, R rows, L layers, K mechanisms.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention import Cache
from pyro_meta.evaluation.figures import token_nll
from pyro_meta.guides import Guide, mean_route, walk
from pyro_meta.models import LanguageModel
from pyro_meta.posterior.drawing import has_density, log_ratios, weighed
from pyro_meta.posterior.objective import against_prediction

LENGTHS = (1, 4, 16)
"""Tokens in a block: 4 are judged, the others show how k-hat grows."""
DRAWS = 256
ENDS, ROWS = 8, 6
"""Blocks of each length: at so many places of the context, in so many sequences."""
ROWS_AT_ONCE = 64


class BlockTerms(NamedTuple):
    """Terms of the log weights of R blocks, nats."""

    sequence: Tensor
    """Which sequence, [R]."""
    position: Tensor
    """Position of the first token, [R]."""
    length: Tensor
    """Tokens in the block, [R]."""
    log_likelihood: Tensor
    """log p(y_block | alpha), [S, R]."""
    expected_log_likelihood: Tensor
    """E[log p(y_block | alpha)] for y of the deployed prediction, [S, R]."""
    log_ratio: Tensor
    """log p(alpha) - log q(alpha | x), [S, R]."""


def block_terms(
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    draws: int = DRAWS,
    lengths: tuple[int, ...] = LENGTHS,
) -> Iterator[BlockTerms]:
    """Terms of blocks that end at places spread over tokens and targets [B, T], place by place.

    Nothing comes of a guide without a density. To be called in evaluation mode.
    """
    tokens, targets = (part[:ROWS] for part in windows)
    T = tokens.shape[1]
    for length in sorted({min(length, T) for length in lengths}):
        ends = torch.linspace(length, T, min(ENDS, T - length + 1)).long().unique()
        for end in ends.tolist():
            terms = _terms_of(model, guide, tokens[:, :end], targets[:, :end], length, draws)
            if terms is None:
                return
            yield terms


def _terms_of(
    model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor, length: int, draws: int
) -> BlockTerms | None:
    """Terms of the last `length` of tokens and targets [R, T]; None without a density."""
    R, T = tokens.shape
    copies = max(1, min(draws, ROWS_AT_ONCE // R))
    x, y = tokens.repeat(copies, 1), targets.repeat(copies, 1)[:, T - length :]
    past = model.network.new_cache(len(x), keeps_features=not guide.is_of_own_token)
    if length < T:
        model.network.states(x[:, : T - length], mean_route(guide), past)
    expected = against_prediction(guide, x[:, T - length :], _copied(past))
    likelihoods, expectations, ratios = [], [], []
    for _ in range(-(-draws // copies)):
        walked = walk(model, guide, x[:, T - length :], weighed, _copied(past))
        if not all(has_density(q.route) for q in walked.posteriors):
            return None
        likelihoods.append(-token_nll(walked.logits, y).double().sum(1).view(copies, R))
        expectations.append(-expected(walked.logits).double().sum(1).view(copies, R))
        ratios.append(log_ratios(walked, length).view(copies, R))
    sequence = torch.arange(R)
    return BlockTerms(
        sequence,
        torch.full_like(sequence, T - length),
        torch.full_like(sequence, length),
        torch.cat(likelihoods)[:draws].cpu(),
        torch.cat(expectations)[:draws].cpu(),
        torch.cat(ratios)[:draws].cpu(),
    )


def _copied(past: Cache) -> Cache:
    """A cache that another text may go on from: reading changes it."""
    return copy.deepcopy(past)
