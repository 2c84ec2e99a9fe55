"""A network of which it is known what each choice is worth, and routers for it: right and wrong.

Every token x has an answer, and in each of two layers a mechanism that it needs to give it: the
logit of the answer is the sum of what the layers add where the right one ran. What ran for a token
also counts, less, for the one after it. Targets are drawn from the prediction along the right
choices; so these are the best on average, and E[log p(y | z) | x] is a finite sum.

Shapes: B texts, T tokens, L layers, K mechanisms, V tokens of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_meta import CostCategorical, Guide, LanguageModel, Shape
from pyro_meta.attention.mechanisms import Full, Linear, Window
from pyro_meta.distributions import Choice
from pyro_meta.guides.networks import of_own_token
from pyro_meta.network.route import Decision, Features, Route

V, K, L = 12, 3, 2
ADDS = (2.0, 1.5)
"""To the logit of the answer, by layer."""
LEFT = 0.5
"""What of it is left for the token after."""
W = 0.02


class Past:
    """Tokens and choices that were read, by row."""

    def __init__(self, rows: int) -> None:
        self.tokens = torch.zeros(rows, 0, dtype=torch.long)
        self.added = torch.zeros(rows, 0)

    def replace(self, rows: list[int], other: "Past") -> None:
        if not self.tokens.shape[1]:
            size = len(self.tokens), other.tokens.shape[1]
            self.tokens, self.added = torch.zeros(size, dtype=torch.long), torch.zeros(size)
        self.tokens[rows], self.added[rows] = other.tokens, other.added


class Planted(nn.Module):
    """Keeps the network protocol, as far as single tokens are asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = Shape(vocabulary=V, context=64, width=2 * V, layers=L, heads=1)
        self.mechanisms = [Full(8, 8), Window(8, 4), Linear(8, 8)]
        self.mechanism_names = ["full", "window", "linear"]
        draw = torch.Generator().manual_seed(2)
        # Most tokens need window or linear, a few need full.
        chances = torch.tensor([0.1, 0.5, 0.4])
        self.needs = torch.multinomial(chances.expand(L, K), V, True, generator=draw)  # [L, V]
        self.answers = torch.randperm(V, generator=draw)
        self.marker = nn.Parameter(torch.zeros(()))

    @property
    def device(self) -> torch.device:
        return self.marker.device

    def dense_macs(self, skipped: float = 0.0) -> float:
        return 1000.0

    def new_cache(self, rows: int, keeps_features: bool = True) -> Past:
        return Past(rows)

    def features(self, tokens: Tensor, cache: Past | None) -> Features:
        """What is seen of a token: itself, and the one before it."""
        start = 0 if cache is None else cache.tokens.shape[1]
        whole = tokens if cache is None else torch.cat([cache.tokens, tokens], 1)
        here = nn.functional.one_hot(whole, V).float()
        before = nn.functional.pad(here[:, :-1], (0, 0, 1, 0))
        state = torch.cat([here, before], -1)[:, start:]
        return Features(tokens, state, state, torch.arange(start, whole.shape[1]))

    def states(self, tokens: Tensor, route: Route, cache: Any = None) -> Tensor:
        start = 0 if cache is None else cache.tokens.shape[1]
        features = self.features(tokens, cache)
        added = torch.zeros(tokens.shape)
        for layer in range(L):
            chosen = route(layer, features).route
            if chosen.dim() == 3:  # weights
                is_right = chosen.gather(-1, self.needs[layer][tokens][..., None])[..., 0]
            else:
                is_right = (chosen == self.needs[layer][tokens]).float()
            added = added + ADDS[layer] * is_right
        if cache is not None:
            whole = torch.cat([cache.tokens, tokens], 1), torch.cat([cache.added, added], 1)
            cache.tokens, cache.added = whole
            tokens, added = whole
        return self.logits(tokens, added)[:, start:]

    def logits(self, tokens: Tensor, added: Tensor) -> Tensor:
        """[B, T, V], from what was added for each token, [B, T]."""
        answers = nn.functional.one_hot(self.answers[tokens], V)
        own = added[..., None] * answers
        before = nn.functional.pad(own[:, :-1], (0, 0, 1, 0))
        return own + LEFT * before

    def readout(self, states: Tensor) -> Tensor:
        return states

    def forward(self, tokens: Tensor, route: Route, cache: Any = None) -> Tensor:
        return self.states(tokens, route, cache)

    def right(self, layer: int, features: Features) -> Decision:
        """The route that every token needs."""
        return Decision(self.needs[layer][features.tokens])


def texts(network: Planted, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets [B, T]."""
    torch.manual_seed(11)
    tokens = torch.randint(V, (rows, length))
    p = torch.softmax(network(tokens, network.right), -1)
    return tokens, torch.distributions.Categorical(p).sample()


def expected(network: Planted) -> Tensor:
    """E[log p(y_t, y_t+1 | z_t,l) | x], all else right: [L, V before, V, K]; a sum over the rest.

    Over the targets and the token that follows.
    """
    everyone = torch.arange(V)
    before, here, after = (
        x.flatten() for x in torch.meshgrid(everyone, everyone, everyone, indexing="ij")
    )
    three = torch.stack([before, here, after], 1)  # [V^3, 3]
    p = torch.softmax(network(three, network.right), -1)[:, 1:]  # of what follows here and after
    out = torch.zeros(L, V, V, K)
    for layer in range(L):
        for k in range(K):

            def route(at: int, features: Features, layer: int = layer, k: int = k) -> Decision:
                chosen = network.needs[at][features.tokens].clone()
                if at == layer:
                    chosen[:, 1] = k
                return Decision(chosen)

            log_p = torch.log_softmax(network(three, route), -1)[:, 1:]
            told = (p * log_p).sum((1, 2)).view(V, V, V).mean(-1)
            out[layer, ..., k] = told
    return out


class Table(Guide):
    """q(z | x) by token and the one before it, with window and linear swapped for some tokens.

    Whose they are cannot be told from what a guide sees of a token.
    """

    of_choices = True

    def __init__(self, model: LanguageModel, logits: Tensor, swapped: float = 0.0) -> None:
        super().__init__(model)
        self.logits, self.swapped = logits, swapped
        self.places = torch.rand(64, V, V, generator=torch.Generator().manual_seed(4))

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Choice:
        tokens, positions = features.tokens, features.positions
        before = features.normed[..., V:].argmax(-1)
        logits = self.logits[layer][before, tokens]
        is_swapped = self.places[positions, before, tokens] < self.swapped
        wrong = logits[..., [0, 2, 1]]
        return Choice(logits=torch.where(is_swapped[..., None], wrong, logits))


def router(swapped: float = 0.0) -> Table:
    """p_w(z | x) of each layer, exactly; or with a share of its tokens swapped."""
    network = Planted()
    model = LanguageModel(network, CostCategorical(network, 1.0, "nominal"))  # type: ignore[arg-type]
    logits = expected(network) / W
    positions = torch.arange(1)
    for layer in range(L):
        logits[layer] += model.route_dist(layer, positions).mean.log()[0]
    guide = Table(model, logits, swapped)
    guide.harden_below(1.0)
    return guide
