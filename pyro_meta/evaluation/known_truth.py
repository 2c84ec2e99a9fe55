"""The router against the truth, where the data knows which tokens need a long-range look-up."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import rankdata

from pyro_meta.data.corpus import Truth, Windows
from pyro_meta.evaluation.figures import batches, by_group, evaluating, token_nll
from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.models import LanguageModel


def score_against_truth(
    model: LanguageModel, guide: Guide, windows: Windows, truth: Truth, batch: int
) -> dict[str, Any]:
    """How well routes agree with the truth about windows [N, T], and how well it is answered.

    Undecided tokens (`Truth.is_undecided`) count for answers and losses; for the routes they are
    neither right nor wrong, and are left out. A token that skips a layer uses nothing there; its
    posterior weight is looked at all the same.

    Returns
    -------
    dict
        `answer_accuracy_soft`, `answer_accuracy_hard`
            Share of answers that are the likeliest token.
        `answer_nll_hard`, `filler_nll_soft`, `filler_nll_hard`
            Nats per token over answers, and over all other targets.
        `text_nll_soft`, `text_nll_hard`
            Nats per token of text, given that text follows: what planted tokens cost by being
            unforeseeable is left out. None where no target is text.
        `needed`
            Share of tokens that need a look-up, of all that are not left out.
        `full_used`, `full_used_by_layer`
            Tokens that run `full` on hard routes (all, where a mixture has it), summed over layers,
            over the number that needs a look-up; and the share of tokens that do, by layer.
        `auroc`, `auroc_by_layer`
            Chance that a token that needs a look-up has more posterior weight on `full` than
            another has, by its greatest weight in any layer, and by layer. None without a
            mechanism `full`, or where nothing, or everything, needs a look-up.
    """
    is_answer = truth.is_answer
    is_scored = ~truth.is_undecided
    is_needed = is_answer[is_scored]
    with evaluating(model, guide):
        soft, hard = (
            _look(model, guide, windows, truth, batch, is_hard) for is_hard in (False, True)
        )
    names = model.network.mechanism_names
    figures: dict[str, Any] = {
        "answer_accuracy_soft": float(soft.is_right[is_answer].mean()),
        "answer_accuracy_hard": float(hard.is_right[is_answer].mean()),
        "answer_nll_hard": float(hard.nll[is_answer].mean()),
        "filler_nll_soft": float(soft.nll[~is_answer].mean()),
        "filler_nll_hard": float(hard.nll[~is_answer].mean()),
        "text_nll_soft": soft.text_nll,
        "text_nll_hard": hard.text_nll,
        "needed": float(is_needed.mean()),
    }
    full = names.index("full") if "full" in names else None
    if full is None:
        absent = {"full_used": 0.0, "full_used_by_layer": None}
        return figures | absent | {"auroc": None, "auroc_by_layer": None}
    weight = hard.means[..., full].max(-1)[:, is_scored]  # [L, N']: of any group of heads
    choice = guide.shares(torch.from_numpy(hard.means).to(model.network.device))
    of_groups = (choice[..., full] > 0).double().mean(-1).cpu().numpy()
    used = of_groups[:, is_scored] * hard.runs[:, is_scored]
    needed = int(is_needed.sum())
    return figures | {
        "full_used": float(used.sum() / needed) if needed else None,
        "full_used_by_layer": used.mean(1).tolist(),
        "auroc": auroc(weight.max(0), is_needed),
        "auroc_by_layer": [auroc(layer, is_needed) for layer in weight],
    }


def auroc(score: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> float | None:
    """P(score of a positive > score of a negative) + half the chance of a tie: Mann-Whitney's U.

    None where there are no positives, or no negatives.
    """
    ranks = rankdata(score.ravel())
    positives = int(is_positive.sum())
    negatives = is_positive.size - positives
    if not positives * negatives:
        return None
    above = ranks[is_positive.ravel()].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


class _Seen(NamedTuple):
    """What a forward pass over some windows [N, T] shows."""

    nll: NDArray[np.floating]
    """[N, T]."""
    text_nll: float | None
    """Mean over targets that are text, given that text follows."""
    is_right: NDArray[np.bool_]
    """Whether the target is the likeliest token, [N, T]."""
    means: NDArray[np.floating]
    """Posterior means of the routes, [L, N, T, G, K]."""
    runs: NDArray[np.bool_]
    """Which tokens run the layer once they are hard, [L, N, T]."""


def _look(
    model: LanguageModel, guide: Guide, windows: Windows, truth: Truth, batch: int, hard: bool
) -> _Seen:
    device = model.network.device
    nll, text_nll, is_right, means, runs = [], [], [], [], []
    for tokens, targets in batches(windows, batch):
        walked = walk(model, guide, tokens.to(device), along_means(hard))
        logits = walked.logits
        nll.append(token_nll(logits, targets.to(device)).cpu())
        is_text = targets < truth.text_symbols
        among_text = logits.cpu()[is_text][:, : truth.text_symbols].float()  # [text tokens, V']
        text_nll.append(F.cross_entropy(among_text, targets[is_text], reduction="none"))
        is_right.append(logits.argmax(-1).cpu() == targets)
        means.append(torch.stack([by_group(mean.float().cpu(), 4) for mean in walked.means]))
        hard_gates = (guide.gate_execution.of_mean(q.gate, True) for q in walked.posteriors)
        runs.append(torch.stack([gate.cpu() for gate in hard_gates]))
    over_text = torch.cat(text_nll)
    return _Seen(
        torch.cat(nll).numpy(),
        float(over_text.mean()) if len(over_text) else None,
        torch.cat(is_right).numpy(),
        torch.cat(means, 1).numpy(),
        torch.cat(runs, 1).numpy(),
    )
