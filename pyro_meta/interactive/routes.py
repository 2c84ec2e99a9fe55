"""The routes of one text: posterior means, and what runs.

Shapes: T tokens, L layers, G groups of heads, K mechanisms.
"""

import torch
from torch import Tensor

from pyro_meta.evaluation.figures import by_group
from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.network.route import Decision, as_weights


def posterior_means(guide: Guide, tokens: Tensor) -> Tensor:
    """E_q[alpha] of tokens [T] along the deployed route, [L, G, T, K] on the processor."""
    walked = walk(guide.model, guide, tokens[None], along_means())
    return torch.stack([_of_groups(mean) for mean in walked.means])


def executed(guide: Guide, tokens: Tensor) -> Tensor:
    """What runs for tokens [T] once each is hard, as weights [L, G, T, K] on the processor.

    One mechanism has weight 1; a mixture keeps its weights. Who skips a layer has zeros there.
    """
    K = len(guide.model.network.mechanisms)
    walked = walk(guide.model, guide, tokens[None], along_means(True))
    rows = [
        _of_groups(_of_decision(decision, mean, K))
        for decision, mean in zip(walked.decisions, walked.means, strict=True)
    ]
    return torch.stack(rows)


def _of_decision(decision: Decision, like: Tensor, mechanisms: int) -> Tensor:
    weights = as_weights(decision.route, mechanisms).expand_as(like)
    if decision.gate is None:
        return weights
    gate = decision.gate.to(weights.dtype)  # [1, T]
    return weights * gate.reshape(*gate.shape, *(1 for _ in range(weights.dim() - gate.dim())))


def _of_groups(weights: Tensor) -> Tensor:
    """Weights [1, T, K] or [1, T, G, K] as [G, T, K], in float32 on the processor."""
    return by_group(weights, 4)[0].transpose(0, 1).float().cpu()
