"""Routes given in advance: the baselines that look at no feature and learn nothing."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.distributions.hashing import scramble, uniform
from pyro_meta.distributions.simplex import Point
from pyro_meta.errors import UsageError
from pyro_meta.guides.base import Guide
from pyro_meta.guides.networks import of_own_token
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Features

Loads = list[list[float]] | list[float] | None
"""Shares of the mechanisms, by layer or for every layer; None: all alike."""


class FixedGuide(Guide):
    """alpha_l = loads_l for every token: one mixture, all mass on one point and no KL.

    It never turns hard, so its hard and its soft losses are the same. Its soft cost is loads times
    costs; its hard cost is what it takes to execute it, that of every mechanism with a load. (The
    code runs all K mechanisms of a mixture, those of weight zero, too.)

    Parameters
    ----------
    model
        The language model.
    loads
        Shares of the mechanisms, one list for all layers or one for each (default: all alike).
    """

    pays_kl = False
    of_choices = None
    is_mixture = True
    loads: Tensor

    def __init__(self, model: LanguageModel, loads: Loads = None) -> None:
        super().__init__(model)
        self.register_buffer("loads", shares(model.network, loads))

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Point:
        weights = self.loads[layer].to(features.state)
        return Point(weights.expand(*features.tokens.shape, -1))


class LayersGuide(FixedGuide):
    """`full` in the layers that are named, `window` in all others.

    No token has a say; it is hard from the start, and there is no KL. Such layers are often chosen
    by the loss that leaving `full` costs them (as in arXiv 2606.27791).

    Parameters
    ----------
    model
        The language model, with the mechanisms `full` and `window`.
    full
        Layers, from 0 on.
    """

    is_mixture = False

    def __init__(self, model: LanguageModel, full: Sequence[int] = ()) -> None:
        names, layers = model.network.mechanism_names, model.network.shape.layers
        for needed in ("full", "window"):
            if needed not in names:
                raise UsageError(
                    f"guide: {type(self).__name__} needs the mechanism {needed}, and there are "
                    f"{', '.join(names)}"
                )
        for layer in full:
            if not 0 <= layer < layers:
                raise UsageError(f"guide.full: {layer} given; 0 to {layers - 1} are allowed")
        chosen = ("full" if layer in full else "window" for layer in range(layers))
        super().__init__(model, [[float(name == one) for name in names] for one in chosen])


class PeriodicGuide(LayersGuide):
    """`full` in every n-th layer, `window` in all others: the pattern of interleaved models.

    Such as Gemma 3 (arXiv 2503.19786), whose every 6th layer is full. No token has a say; it is
    hard from the start, and there is no KL.

    Parameters
    ----------
    model
        The language model, with the mechanisms `full` and `window`.
    every
        n, at least 1: layers n - 1, 2 n - 1 and so on are full.
    """

    def __init__(self, model: LanguageModel, every: int = 2) -> None:
        if every < 1:
            raise UsageError(f"guide.every: {every} given; at least 1 is allowed")
        super().__init__(model, range(every - 1, model.network.shape.layers, every))


class RandomGuide(Guide):
    """One mechanism for each token and group, pseudo-random with given loads; no KL.

    The choice is a hash of layer, position, running sum of the token ids, seed and group. So it
    depends on the prefix alone, and the same text always takes the same routes.

    Parameters
    ----------
    model
        The language model.
    loads
        Shares of the mechanisms, one list for all layers or one for each (default: all alike).
    seed
        Another seed, other routes.
    """

    pays_kl = False
    of_choices = None
    loads: Tensor

    def __init__(self, model: LanguageModel, loads: Loads = None, seed: int = 0) -> None:
        super().__init__(model)
        if not 0 <= seed < 1 << 63:
            raise UsageError(f"guide.seed: {seed} given; at least 0 and below 2**63 is allowed")
        self.register_buffer("loads", shares(model.network, loads))
        self.seed = seed

    def posterior(self, layer: int, features: Features) -> Point:
        key = torch.full_like(features.tokens, self.seed)
        prefix = features.tokens.cumsum(-1)
        for part in (layer, features.positions, prefix):
            key = scramble(key + part)
        if (G := self.model.network.shape.groups) > 1:
            key = scramble(key[..., None] + torch.arange(G, device=key.device))
        ends = self.loads[layer].double().cumsum(-1)
        choice = torch.searchsorted(ends[:-1].contiguous(), uniform(key), right=True)
        return Point(F.one_hot(choice, len(ends)).to(features.state.dtype))


def shares(network: Network, loads: Loads) -> Tensor:
    """`loads` as rows [L, K] that sum to 1; raises `UsageError` if they are no loads."""
    names, L = network.mechanism_names, network.shape.layers
    K = len(names)
    given: Any = [1 / K] * K if loads is None else loads
    is_for_all = given and all(isinstance(share, int | float) for share in given)
    rows = [given] * L if is_for_all else given
    if len(rows) != L:
        raise UsageError(
            f"guide.loads: {len(rows)} lists given; one for each of {L} layers, or one"
        )
    for row in rows:
        if not isinstance(row, list) or len(row) != K:
            raise UsageError(
                f"guide.loads: {row} given; one share for each of {K} mechanisms is needed "
                f"({', '.join(names)})"
            )
        if not (min(row) >= 0 and abs(sum(row) - 1) < 1e-3):
            raise UsageError(f"guide.loads: {row} given; shares of at least 0 that sum to 1 needed")
    table = torch.tensor(rows, dtype=torch.get_default_dtype())
    return table / table.sum(-1, keepdim=True)
