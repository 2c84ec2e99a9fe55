"""Routes of a model that was trained without them, beside what needs no router.

Where the network's weights stay as they are, each mechanism alone can be run as it is. So can
random tokens with the very loads of the routes: what they lose is what knowing the token is worth.
Losses in nats per token. Shapes: N sequences, T tokens, L layers, G groups of heads, K mechanisms.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_meta.attention import is_choice
from pyro_meta.attention.prices import macs_at
from pyro_meta.evaluation.figures import batches, by_group, evaluating, token_nll
from pyro_meta.guides import Guide, mean_route
from pyro_meta.models import LanguageModel
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route, as_weights
from pyro_meta.network.transformer import chosen_by_all

EDGES = (0, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Positions at which losses by position are parted."""
PAST = 256
"""Tokens of a sequence that its main figure leaves out: there most of the text is near."""


def routes_beside(
    model: LanguageModel, guide: Guide, windows: tuple[Tensor, Tensor], batch: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Losses and key visits of the routes, hard and soft, and of what stands beside them.

    Parameters
    ----------
    model, guide
        Whose routes are looked at.
    windows
        Tokens and targets [N, T].
    batch
        Sequences at a time.
    seed
        Of the random tokens.

    Returns
    -------
    dict
        By name, `routes, hard`, `routes, soft`, `random tokens, the same loads` and each mechanism
        alone: `loss` over all tokens; `loss_past`, past token 256, and `by_sequence`, the same of
        each; `by_position`, from each edge to the next; `visits`, keys that are seen as a share of
        what full attention sees (of a mixture, of every mechanism in it).
    """
    network = model.network
    with evaluating(model, guide):
        hard = _followed(network, mean_route(guide, hard=True), windows, batch)
        loads = hard.loads
        rows = {
            "routes, hard": hard,
            "routes, soft": _followed(network, mean_route(guide, hard=False), windows, batch),
            "random tokens, the same loads": _followed(
                network, _random_tokens(loads, seed), windows, batch
            ),
        }
        for name in network.mechanism_names:
            rows[name] = _followed(network, chosen_by_all(network, name), windows, batch)
    return {name: row.figures() for name, row in rows.items()}


class _Row:
    """Losses [N, T] along one route, its loads [L, G, K], and its key visits."""

    def __init__(self, nll: Tensor, loads: Tensor, visits: float) -> None:
        self.nll, self.loads, self.visits = nll, loads, visits

    def figures(self) -> dict[str, Any]:
        T = self.nll.shape[1]
        past = self.nll[:, min(PAST, T // 2) :]
        edges = [edge for edge in EDGES if edge < T] + [T]
        return {
            "loss": float(self.nll.mean()),
            "loss_past": float(past.mean()),
            "visits": self.visits,
            "by_position": {
                f"{begin}-{end - 1}": float(self.nll[:, begin:end].mean())
                for begin, end in pairwise(edges)
            },
            "by_sequence": past.mean(1).tolist(),
        }


def _followed(network: Network, route: Route, windows: tuple[Tensor, Tensor], batch: int) -> _Row:
    shape, K = network.shape, len(network.mechanisms)
    T = windows[0].shape[1]
    positions = torch.arange(T, dtype=torch.float64)
    macs = torch.stack([macs_at(one, positions) for one in network.mechanisms], -1)  # [T, K]
    full = 2.0 * shape.head_width * (positions + 1)
    used = torch.zeros(shape.layers, shape.groups, T, K, dtype=torch.float64)
    losses, count = [], 0

    def noting(layer: int, features: Features) -> Decision:
        decision = route(layer, features)
        chosen = decision.route
        weights = chosen if not is_choice(chosen) else as_weights(chosen, K)
        weights = by_group(weights.expand(*features.tokens.shape, *weights.shape[2:]), 4)
        used[layer] += (weights > 0).double().sum(0).permute(1, 0, 2).cpu()
        return decision

    for tokens, targets in batches(windows, batch):
        logits = network(tokens.to(network.device), noting)
        losses.append(token_nll(logits, targets.to(network.device)).cpu())
        count += len(tokens)
    visits = (used * macs).sum() / (shape.layers * shape.groups * count * full.sum())
    return _Row(torch.cat(losses), used.sum(2) / (count * T), float(visits))


def _random_tokens(loads: Tensor, seed: int) -> Route:
    """Routes by which every layer and group has its load [L, G, K], of random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def route(layer: int, features: Features) -> Decision:
        B, T = features.tokens.shape
        drawn = [
            torch.multinomial(load.float(), B * T, True, generator=generator).view(B, T)
            for load in loads[layer]
        ]
        chosen = drawn[0] if len(drawn) == 1 else torch.stack(drawn, -1)
        return Decision(chosen.to(features.tokens.device))

    return route
