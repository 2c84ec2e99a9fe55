"""Where a little more full attention would go, by the route's posterior or by what needs no router.

A base of hard routes is given more tokens with full attention, until so many more keys are seen.
Shapes: N sequences, T tokens, L layers, G groups of heads.
"""

import torch
from torch import Tensor

from pyro_meta.evaluation.figures import batches, by_group, token_nll
from pyro_meta.evaluation.spending import visits_at
from pyro_meta.network.leaving_full import along
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route


def losses_along(
    network: Network, choices: Tensor, windows: tuple[Tensor, Tensor], batch: int = 1
) -> tuple[Tensor, Tensor]:
    """Losses, and entropies of the output, along choices [L, N, T, G]: both [N, T], nats."""
    losses, entropies, begun = [], [], 0
    for tokens, targets in batches(windows, batch):
        rows = slice(begun, begun + len(tokens))
        begun = rows.stop
        ours = choices[:, rows] if choices.shape[-1] > 1 else choices[:, rows, :, 0]
        logits = network(tokens, along(list(ours))).float()
        losses.append(token_nll(logits, targets))
        log_p = torch.log_softmax(logits, -1)
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(losses), torch.cat(entropies)


def choices_along(
    network: Network, route: Route, windows: tuple[Tensor, Tensor], batch: int = 1
) -> Tensor:
    """The choices of a hard route, [L, N, T, G]."""
    chosen: list[list[Tensor]] = [[] for _ in range(network.shape.layers)]

    def noting(layer: int, features: Features) -> Decision:
        decision = route(layer, features)
        chosen[layer].append(by_group(decision.route, 3))
        return decision

    for tokens, _ in batches(windows, batch):
        network.states(tokens, noting)
    return torch.stack([torch.cat(one) for one in chosen])


def visits_of(network: Network, choices: Tensor) -> float:
    """Key visits of choices [L, N, T, G], as a share of what full attention makes."""
    seen = visits_at(network, choices.shape[2])  # [T, K]
    place = torch.arange(choices.shape[2])[:, None].expand_as(choices)
    return float(seen[place, choices].sum(2).mean())


def with_more_full(network: Network, base: Tensor, scores: Tensor, visits: float) -> Tensor:
    """Choices in which those of the highest score are full as well, until so many keys are seen.

    Parameters
    ----------
    network
        Says what mechanisms see.
    base
        Choices [L, N, T, G].
    scores
        [L, N, T, G] or broadcastable: the highest turn to `full` first.
    visits
        Keys to be seen, as a share of what full attention sees.
    """
    L, N, T, G = base.shape
    full = network.mechanism_names.index("full")
    seen = visits_at(network, T)
    place = torch.arange(T)[:, None].expand_as(base)
    added = (seen[place, full] - seen[place, base]).flatten() / (L * N * G)
    ranked = scores.expand_as(base).flatten().double()
    order = torch.where(added > 0, ranked, -torch.inf).argsort(descending=True, stable=True)
    is_turned = torch.empty_like(order, dtype=torch.bool)
    is_turned[order] = added[order].cumsum(0) <= visits - visits_of(network, base)
    return torch.where(is_turned.view(base.shape), full, base)
