"""The router against the truth, where the data knows which tokens need a long-range look-up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from pyro_meta.corpus import Windows
from pyro_meta.evaluation import batches, evaluating, token_nll
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.transformer import Features


def score_against_truth(
    model: LanguageModel, guide: Guide, windows: Windows, is_query: NDArray[np.bool_], batch: int
) -> dict[str, Any]:
    """How well routes agree with the truth `is_query` [N, T], and how well queries are answered.

    Returns
    -------
    dict
        `answer_accuracy_soft`, `answer_accuracy_hard`
            Share of queries whose answer is the likeliest token.
        `answer_nll_hard`, `filler_nll_soft`, `filler_nll_hard`
            Nats per token over answers, and over all other targets.
        `needed`
            Share of tokens that are queries.
        `full_used`, `full_used_by_layer`
            Tokens that choose `full` on hard routes, summed over layers, over the number of
            queries; and the share of tokens that do, by layer.
        `auroc`, `auroc_by_layer`
            Chance that a query has more posterior weight on `full` than another token has, by its
            greatest weight in any layer, and by layer. None without a mechanism `full`.
    """
    with evaluating(model, guide):
        soft = _walk(model, guide, windows, batch, hard=False)
        hard = _walk(model, guide, windows, batch, hard=True)
    names = model.network.mechanism_names
    figures: dict[str, Any] = {
        "answer_accuracy_soft": float(soft.is_right[is_query].mean()),
        "answer_accuracy_hard": float(hard.is_right[is_query].mean()),
        "answer_nll_hard": float(hard.nll[is_query].mean()),
        "filler_nll_soft": float(soft.nll[~is_query].mean()),
        "filler_nll_hard": float(hard.nll[~is_query].mean()),
        "needed": float(is_query.mean()),
    }
    if "full" not in names:
        absent = {"full_used": 0.0, "full_used_by_layer": None}
        return figures | absent | {"auroc": None, "auroc_by_layer": None}
    full = names.index("full")
    weight = hard.means[..., full]  # [L, N, T]
    used = guide.choice(torch.from_numpy(hard.means))[..., full].numpy()
    return figures | {
        "full_used": float(used.sum() / is_query.sum()),
        "full_used_by_layer": used.mean((1, 2)).tolist(),
        "auroc": auroc(weight.max(0), is_query),
        "auroc_by_layer": [auroc(layer, is_query) for layer in weight],
    }


def auroc(score: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> float:
    """P(score of a positive > score of a negative) + half the chance of a tie: Mann-Whitney's U."""
    ranks = rankdata(score.ravel())
    positives = int(is_positive.sum())
    negatives = is_positive.size - positives
    above = ranks[is_positive.ravel()].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


class _Walked:
    """Losses and correctness [N, T], and posterior means [L, N, T, K], of one walk."""

    def __init__(
        self, nll: Sequence[Tensor], is_right: Sequence[Tensor], means: Sequence[Tensor]
    ) -> None:
        self.nll = torch.cat(list(nll)).numpy()
        self.is_right = torch.cat(list(is_right)).numpy()
        self.means = torch.cat(list(means), 1).numpy()


def _walk(model: LanguageModel, guide: Guide, windows: Windows, batch: int, hard: bool) -> _Walked:
    device = model.network.embedding.weight.device
    follow = guide.mean_route(hard)
    nll, is_right, means = [], [], []
    for tokens, targets in batches(windows, batch):
        by_layer: list[Tensor] = []

        def route(layer: int, features: Features, by_layer: list[Tensor] = by_layer) -> Tensor:
            by_layer.append(guide.posterior(layer, features).mean.float().cpu())
            return follow(layer, features)

        logits = model.network(tokens.to(device), route)
        nll.append(token_nll(logits, targets.to(device)).cpu())
        is_right.append(logits.argmax(-1).cpu() == targets)
        means.append(torch.stack(by_layer))
    return _Walked(nll, is_right, means)
