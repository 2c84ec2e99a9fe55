"""What hard routes would spend at other prices: a budget that is moved without training anew.

Shapes: N sequences, T tokens, L layers, G groups of heads, K mechanisms.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from pyro_meta.attention.prices import macs_at
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import batches, by_group, evaluating
from pyro_meta.guides import Guide
from pyro_meta.guides.spending import Spending
from pyro_meta.guides.walk import of_means, place_of
from pyro_meta.models import LanguageModel
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features

POINTS = 25  # of a curve
BEYOND = 1.0  # nats for each unit of cost: so far outside all prices at which something turns
HALVINGS = 40  # of the prices between which one is looked for
CLOSE, PASSES = 0.002, 4  # how near visits are to be, and how many passes that may take
FEW = 4  # sequences that are asked first


def measured_spending(
    model: LanguageModel, guide: Guide, windows: tuple[Tensor, Tensor], batch: int
) -> Spending:
    """The curve of prices and key visits on some text, from one pass along hard routes.

    It holds what the pass says as it is. That other routes would lead to other features is left
    out: `price_for` looks again.

    Parameters
    ----------
    model, guide
        Whose routes are looked at; its tokens can all turn hard.
    windows
        Tokens and targets [N, T].
    batch
        Sequences at a time.

    Raises
    ------
    UsageError
        The guide runs mixtures to the end, which no price turns into another.
    """
    with evaluating(model, guide):
        seen = _Seen(model, guide, windows, batch)
    least, most = (seen.visits(price) for price in (seen.dearest, seen.cheapest))
    wanted = torch.linspace(least, most, POINTS, dtype=torch.float64).tolist()
    prices = [seen.dearest, *map(seen.price_for, wanted[1:-1]), seen.cheapest]
    reached = sorted({(seen.visits(price), -price) for price in prices})
    visits, negative = zip(*dict(reached).items(), strict=True)
    return Spending(visits, [-price for price in negative])


def price_for(
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    batch: int,
    visits: float,
) -> float:
    """The price at which hard routes make so many key visits on some text, found by passes.

    Of a guide that can only come near, such as a split by heads, the nearest is given.

    Parameters
    ----------
    model, guide, windows, batch
        See `measured_spending`.
    visits
        Keys that are to be seen, as a share of what full attention sees.
    """
    with evaluating(model, guide), at_price(guide, float(guide.execution.price)):
        for some in (_few(windows), windows):
            _move(guide, partial(_Seen, model, guide, some, batch), visits)
        return float(guide.execution.price)


def _few(windows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    stride = -(-len(windows[0]) // FEW)
    return windows[0][::stride], windows[1][::stride]


def _move(guide: Guide, look: Callable[[], "_Seen"], visits: float) -> None:
    """Set the price of a guide to the nearest of those that are tried, from its own on."""
    best = float("inf"), 0.0
    for _ in range(PASSES):
        seen, tried = look(), float(guide.execution.price)
        best = min(best, (abs(seen.visits(tried) - visits), tried))
        following = seen.price_for(visits)
        if best[0] < CLOSE or following == tried:
            break
        guide.execution.price.fill_(following)
    guide.execution.price.fill_(best[1])


@contextmanager
def at_price(guide: Guide, price: float) -> Iterator[None]:
    """Have hard routes decided at a price meanwhile."""
    before = guide.execution.price.clone()
    guide.execution.price.fill_(price)
    try:
        yield
    finally:
        guide.execution.price.copy_(before)


class _Seen:
    """What a guide says of some text along its hard routes: what they would be at any price."""

    def __init__(
        self, model: LanguageModel, guide: Guide, windows: tuple[Tensor, Tensor], batch: int
    ) -> None:
        if guide.is_mixture:
            raise UsageError(
                f"budget: {type(guide).__name__} mixes mechanisms to the end, and no price moves it"
            )
        network = model.network
        self.costs = guide.execution.costs.cpu()
        logs: list[Tensor] = []  # of the means, [N, T, G, K] of each layer and batch
        runs: list[Tensor] = []  # whether tokens run the layer, [N, T, 1]

        def noting(layer: int, features: Features) -> Decision:
            latents = guide.latents(layer, features)
            decision = of_means(guide, latents, place_of(layer, features), hard=True)
            logs.append(by_group(latents.route.mean, 4).log().cpu())
            is_run = torch.ones(features.tokens.shape) if decision.gate is None else decision.gate
            runs.append(is_run.float().cpu()[..., None])
            return decision if layer in model.gated else decision.with_open_gate()

        for tokens, _ in batches(windows, batch):
            network.states(tokens.to(network.device), noting)
        shares = visits_at(network, windows[0].shape[1])[:, None]  # [T, 1, K]
        # of each layer and sequence, and of each group in it, full attention adds up to 1
        self.full = sum(one.shape[0] * one.shape[2] for one in logs)
        self.logs = torch.cat([one.flatten(0, 2) for one in logs])  # [M, K]
        seen = [
            (shares * run[..., None]).expand(one.shape) for one, run in zip(logs, runs, strict=True)
        ]
        self.shares = torch.cat([one.flatten(0, 2) for one in seen])
        self.cheapest, self.dearest = self._prices_that_turn_all()

    def visits(self, price: float) -> float:
        """Key visits at a price, as a share of what full attention sees."""
        chosen = (self.logs - price * (self.costs - self.costs.min())).argmax(-1)
        seen = self.shares.gather(-1, chosen[:, None])
        return float(seen.sum(dtype=torch.float64)) / self.full

    def _prices_that_turn_all(self) -> tuple[float, float]:
        """Prices below and above all at which one mechanism takes the place of another."""
        turning = [torch.zeros(1)]
        for one, other in combinations(range(len(self.costs)), 2):
            dearer = float(self.costs[one] - self.costs[other])
            if dearer:
                turning.append((self.logs[:, one] - self.logs[:, other]).double() / dearer)
        every = torch.cat([one.double() for one in turning])
        every = every[every.isfinite()]
        return float(every.min()) - BEYOND, float(every.max()) + BEYOND

    def price_for(self, visits: float) -> float:
        """The price whose visits are nearest."""
        low, high = self.cheapest, self.dearest
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self.visits(middle) > visits:
                low = middle
            else:
                high = middle
        return min(low, high, key=lambda price: abs(self.visits(price) - visits))


def visits_at(network: Network, length: int) -> Tensor:
    """Keys that a token at each position sees by each mechanism, float64 [T, K].

    As a share of all that full attention sees in a sequence of that length: those of `full` add up
    to 1.
    """
    positions = torch.arange(length, dtype=torch.float64)
    macs = torch.stack([macs_at(one, positions) for one in network.mechanisms], -1)
    return macs / (2.0 * network.shape.head_width * (positions + 1)).sum()
