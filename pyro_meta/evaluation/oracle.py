"""Routes that are read off the labels, to first order: no bound, and no promise.

Shapes: N sequences, T tokens, L layers, G groups of heads, K mechanisms.
"""

import torch
from torch import Tensor

from pyro_meta.evaluation.figures import token_nll
from pyro_meta.evaluation.spending import visits_at
from pyro_meta.network.leaving_full import along, fully
from pyro_meta.network.protocol import Network


def harms_by_label(network: Network, tokens: Tensor, targets: Tensor) -> Tensor:
    """By how much the loss would rise if a token's route left `full`, to first order.

    d loss / d alpha_k - d loss / d alpha_full where every token attends fully, and the loss is the
    sum of -log p(y_t | x_{<=t}) over the text: nats, [L, N, T, G, K], 0 for `full` itself. One
    backward pass tells it for every layer, token and group.

    Raises
    ------
    UsageError
        `full` is none of the mechanisms.
    """
    weights = fully(network, tokens)
    with torch.enable_grad():
        logits = network(tokens, along(weights))
        loss = token_nll(logits, targets).sum()
    found = torch.stack(torch.autograd.grad(loss, weights))
    full = network.mechanism_names.index("full")
    harms = found - found[..., full, None]
    return harms if network.shape.groups > 1 else harms.unsqueeze(-2)


def choices_of_least_harm(network: Network, harms: Tensor, visits: float) -> Tensor:
    """Choices between `full` and the cheapest mechanism that make so many key visits.

    A token leaves `full` where that does the least harm for each key that it saves.

    Parameters
    ----------
    network
        Says what mechanisms see.
    harms
        Nats [L, N, T, G]: what it does if a token leaves `full`, in each layer and group.
    visits
        Keys to be seen, as a share of what full attention sees.

    Returns
    -------
    Tensor
        Choices [L, N, T, G].
    """
    L, N, T, G = harms.shape
    seen = visits_at(network, T)  # [T, K]
    full, cheap = network.mechanism_names.index("full"), int(seen.sum(0).argmin())
    saved = (seen[:, full] - seen[:, cheap]).clamp(min=0)
    saved = saved[:, None].expand(L, N, T, G).flatten() / (L * N * G)
    order = (harms.flatten().double() / saved.clamp(min=1e-12)).argsort()
    is_left = torch.empty_like(order, dtype=torch.bool)
    is_left[order] = saved[order].cumsum(0) <= 1 - visits
    return torch.where(is_left.view(L, N, T, G), cheap, full)
