"""A language model whose posterior is known: y_t ~ Categorical(alpha_t), one route a token.

With a prior Dirichlet(beta) the tempered posterior is Dirichlet(beta + onehot(y) / w) exactly.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet

from pyro_meta import Guide, LanguageModel, Shape, SymmetricDirichlet
from pyro_meta.attention import Mechanism
from pyro_meta.attention.mechanisms import Full, Linear, Window
from pyro_meta.network.route import Features, Route, as_weights

K = 3


class Choosing(nn.Module):
    """A "network" of one layer that predicts token k with probability alpha_k."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = Shape(vocabulary=K, context=64, width=8, layers=1, heads=1)
        self.embedding = nn.Embedding(K, 8)
        self.mechanisms: list[Mechanism] = [Full(8, 4), Window(8, 4), Linear(8, 4)]
        self.mechanism_names = ["full", "window", "linear"]

    def forward(self, tokens: Tensor, route: Route, cache: object = None) -> Tensor:
        state = self.embedding(tokens)
        features = Features(tokens, state, state, torch.arange(tokens.shape[1]))
        weights = as_weights(route(0, features).route, K)
        return weights.clamp(min=1e-30).log()

    def states(self, tokens: Tensor, route: Route, cache: object = None) -> Tensor:
        return self(tokens, route, cache)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def new_cache(self, rows: int, keeps_features: bool = True) -> None:
        return None


class Knowing(Guide):
    """The exact posterior of given targets, made surer by a factor."""

    is_of_own_token = True  # type: ignore[assignment]

    def __init__(
        self, model: LanguageModel, targets: Tensor, w: float, factor: float = 1.0
    ) -> None:
        super().__init__(model)
        self.targets, self.w, self.factor = targets, w, factor

    def exact(self, targets: Tensor) -> Tensor:
        return 1.0 + F.one_hot(targets, K) / self.w

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        *particles, B, T = features.tokens.shape
        rows = (
            self.targets
            if len(self.targets) == B
            else self.targets.repeat(B // len(self.targets), 1)
        )
        # Asked about the end of a text, as a cache does, it answers for the end.
        concentration = self.factor * self.exact(rows)[:, -T:]
        return Dirichlet(concentration.expand(*particles, *concentration.shape))


def conjugate(
    rows: int, length: int, w: float, factor: float = 1.0
) -> tuple[Knowing, Tensor, Tensor]:
    """The guide of factor 1 is exact; with it tokens and targets [B, T]."""
    generator = torch.Generator().manual_seed(3)
    tokens, targets = torch.randint(K, (2, rows, length), generator=generator)
    network = Choosing()
    model = LanguageModel(network, SymmetricDirichlet(network))  # type: ignore[arg-type]
    return Knowing(model, targets, w, factor), tokens, targets
