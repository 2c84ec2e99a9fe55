"""Routes of a model that was trained without them, beside what needs no router.

Where the network's weights stay as they are, each mechanism alone can be run as it is. So can
random tokens with the very loads of the routes, in each text and head: what they lose is what
knowing the token is worth, and which heads look far together.
Losses in nats per token. Shapes: N sequences, T tokens, L layers, G groups of heads, K mechanisms.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_meta.attention import is_choice
from pyro_meta.evaluation.figures import batches, by_group, evaluating, token_nll
from pyro_meta.evaluation.spending import at_price, price_for, visits_at
from pyro_meta.guides import Guide, mean_route
from pyro_meta.models import LanguageModel
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route, as_weights
from pyro_meta.network.transformer import chosen_by_all

EDGES = (0, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Positions at which losses by position are parted."""
PAST = 256
"""Tokens of a sequence that its main figure leaves out: there most of the text is near."""

HARD, SOFT, RANDOM, FULL = (
    "routes, hard",
    "routes, soft",
    "random tokens, the same loads",
    "full",
)
ROUTES = (HARD, SOFT, RANDOM)
"""Rows that depend on a guide, at its own price."""
NEAR = 128
"""Positions of a sequence among which random tokens are dealt their routes."""


def routes_beside(
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    batch: int,
    seed: int = 0,
    budgets: Sequence[float] = (),
    mechanisms: bool = True,
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
    budgets
        Shares of key visits: hard routes and random tokens are looked at where the price is moved
        to make so many, instead of at the guide's own price, and soft ones are not.
    mechanisms
        Whether each mechanism alone is looked at, too.

    Returns
    -------
    dict
        By name, `routes, hard`, `routes, soft`, `random tokens, the same loads` (the same choices,
        dealt out anew among near tokens of the same sequence, by each layer and group for itself;
        key visits differ by chance alone; none of a mixture, nor where tokens skip layers) and each
        mechanism alone: `loss` over all tokens; `loss_past`, past token `past` (256, or the middle
        of a shorter text), and `by_sequence`, the same of each; `by_position`, from each edge to
        the next; `visits`, keys that are seen as a share of what full attention sees (of a mixture,
        of every mechanism in it); `price`, where it was moved.
    """
    network = model.network
    found: dict[str, dict[str, Any]] = {}
    with evaluating(model, guide):
        for visits in budgets:
            price = price_for(model, guide, windows, batch, visits)
            with at_price(guide, price):
                rows = _hard(model, guide, windows, batch, seed)
            for name, row in rows.items():
                found[at_budget(name, visits)] = row | {"price": price}
        if not budgets:
            rows = _hard(model, guide, windows, batch, seed)
            soft = _followed(network, mean_route(guide, hard=False), windows, batch)
            found = {HARD: rows[HARD], SOFT: soft.figures()} | rows
        for name in network.mechanism_names if mechanisms else ():
            alone = _followed(network, chosen_by_all(network, name), windows, batch)
            found[name] = alone.figures()
    return found


def at_budget(name: str, visits: float) -> str:
    """The name of a row at a budget of its own."""
    return f"{name}, at {visits:g}"


def is_of_guide(name: str) -> bool:
    """Whether a row depends on a guide."""
    return name.startswith(ROUTES)


def is_random(name: str) -> bool:
    """Whether a row is one of random tokens."""
    return RANDOM in name


def _hard(
    model: LanguageModel, guide: Guide, windows: tuple[Tensor, Tensor], batch: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Figures of hard routes, and of random tokens with their loads."""
    hard = _followed(model.network, mean_route(guide, hard=True), windows, batch)
    rows = {HARD: hard.figures()}
    if hard.choices is not None and not model.gated:
        dealt = _dealt(hard.choices, seed)
        is_alike = torch.equal(dealt, hard.choices)  # as of a static split
        other = hard if is_alike else _followed(model.network, _along(dealt), windows, batch)
        rows[RANDOM] = other.figures()
    return rows


class _Row:
    """Losses [N, T] along one route, its key visits, and its choices [L, N, T, G] if any."""

    def __init__(self, nll: Tensor, visits: float, choices: Tensor | None) -> None:
        self.nll, self.visits, self.choices = nll, visits, choices

    def figures(self) -> dict[str, Any]:
        T = self.nll.shape[1]
        begin = min(PAST, T // 2)
        past = self.nll[:, begin:]
        edges = [edge for edge in EDGES if edge < T] + [T]
        return {
            "loss": float(self.nll.mean()),
            "loss_past": float(past.mean()),
            "past": begin,
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
    seen = visits_at(network, T)  # [T, K]
    used = torch.zeros(shape.layers, shape.groups, T, K, dtype=torch.float64)
    losses: list[Tensor] = []
    chosen: list[list[Tensor]] = [[] for _ in range(shape.layers)]

    def noting(layer: int, features: Features) -> Decision:
        decision = route(layer, features)
        weights = as_weights(decision.route, K)
        weights = by_group(weights.expand(*features.tokens.shape, *weights.shape[2:]), 4)
        if decision.gate is not None:  # who skips the layer sees nothing there
            weights = weights * (decision.gate > 0)[..., None, None]
        used[layer] += (weights > 0).double().sum(0).permute(1, 0, 2).cpu()
        if is_choice(decision.route):
            chosen[layer].append(by_group(decision.route, 3).to("cpu", torch.int8))
        return decision

    for tokens, targets in batches(windows, batch):
        logits = network(tokens.to(network.device), noting)
        losses.append(token_nll(logits, targets.to(network.device)).cpu())
    count = len(windows[0])
    visits = (used * seen).sum() / (shape.layers * shape.groups * count)
    choices = torch.stack([torch.cat(one) for one in chosen]) if chosen[-1] else None
    return _Row(torch.cat(losses), float(visits), choices)


def _dealt(choices: Tensor, seed: int) -> Tensor:
    """The choices [L, N, T, G] of tokens, dealt out anew among tokens of the same sequence.

    Each layer and group deals for itself, in stretches of `NEAR` positions.
    """
    generator = torch.Generator().manual_seed(seed)
    dealt = choices.clone()
    for near in dealt.split(NEAR, 2):
        order = torch.rand(near.shape, generator=generator).argsort(2)
        near.copy_(near.gather(2, order))
    return dealt


def _along(choices: Tensor) -> Route:
    """A route of choices [L, N, T, G]; it is asked layer by layer of sequence after sequence."""
    begun = [0] * len(choices)

    def route(layer: int, features: Features) -> Decision:
        first = begun[layer]
        begun[layer] += len(features.tokens)
        ours = choices[layer, first : begun[layer]].to(features.tokens.device, torch.long)
        return Decision(ours[..., 0] if ours.shape[-1] == 1 else ours)

    return route
