"""Posteriors over depth gates: how far each token runs each block.

    q(g | x) = prod_l q(g_l | x, alpha_{<l}, g_{<l}),      l = 1 .. L - 1

The first layer has no gate. Like a guide of routes, one of gates sees the prefix of each token and
never its target.
"""

import inspect
import math
from typing import ClassVar

import torch
from pyro.distributions import Beta
from torch import nn
from torch.distributions import Distribution

from pyro_meta.distributions.bounded import bounded, unbounded
from pyro_meta.distributions.gates import PointGate
from pyro_meta.errors import UsageError
from pyro_meta.guides.networks import (
    FLOOR,
    LEAST_TOTAL,
    MOST_TOTAL,
    default_width,
    make_heads,
    of_own_token,
)
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.network.route import Features
from pyro_meta.own_classes import require_defined
from pyro_meta.terminal.naming import find_kind

TOTAL = 5.0  # a + b of a Beta at the start


class DepthGuide(nn.Module):
    """An amortised posterior over depth gates; subclass it and define `posterior`.

    To be named by `--depth`, the constructor of a subclass takes the two arguments below.

    Parameters
    ----------
    model
        The language model whose gates are inferred; it has a prior over them.
    start
        Logit of how far open gates are at the start.
    """

    pays_kl: ClassVar[bool] = True
    """Whether posteriors have a KL to pay; if not, open gates cost a penalty (`DepthPrior`)."""

    def __init__(self, model: LanguageModel, start: float = 3.0) -> None:
        super().__init__()
        require_defined(self, DepthGuide, "posterior")
        if model.depth is None:
            raise UsageError(f"depth: {type(self).__name__} needs a model with a prior over gates")
        if not math.isfinite(start):
            raise UsageError(f"gate.start: {start} given; a finite number is allowed")

    def posterior(self, layer: int, features: Features) -> Distribution:
        """q(g_l | x, ..) of a layer >= 1: batch [B, T], event [], reparameterised.

        One that needs the features of each token alone is declared so by `of_own_token`.
        """
        raise NotImplementedError

    @property
    def is_of_own_token(self) -> bool:
        """Whether the posterior of a token depends on that token's features alone."""
        return getattr(type(self).posterior, "is_of_own_token", False)


class BetaDepthGuide(DepthGuide):
    """q(g_l | x) = Beta(floor + a_0 m, floor + a_0 (1 - m)), m and a_0 from a two-layer network.

    m is how far open the gate is and a_0, bounded in [1, 900] and 5 or so at the start, says how
    sure the guide is; the floor is .05, as in `DirichletGuide`.

    Parameters
    ----------
    model
        The language model.
    start
        Logit of m at the start.
    hidden
        Width of the hidden layer; by default an eighth of the model's.
    """

    def __init__(self, model: LanguageModel, start: float = 3.0, hidden: int | None = None) -> None:
        super().__init__(model, start)
        self.heads = _heads(model, [start, unbounded(TOTAL, LEAST_TOTAL, MOST_TOTAL)], hidden)

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Beta:
        logit, raw = self.heads[layer - 1](features.normed).unbind(-1)  # [B, T] each
        total = bounded(raw, LEAST_TOTAL, MOST_TOTAL)
        return Beta(
            FLOOR + total * torch.sigmoid(logit),
            FLOOR + total * torch.sigmoid(-logit),
        )


class PointDepthGuide(DepthGuide):
    """g_l = sigmoid(MLP(norm(h))), all mass on one point and no KL: the gate of TSA.

    Its pressure to shut is the penalty on open gates (arXiv 2605.05222).

    Parameters
    ----------
    model
        The language model.
    start
        Logit of g at the start.
    hidden
        Width of the hidden layer; by default an eighth of the model's.
    """

    pays_kl = False

    def __init__(self, model: LanguageModel, start: float = 3.0, hidden: int | None = None) -> None:
        super().__init__(model, start)
        self.heads = _heads(model, [start], hidden)

    @of_own_token
    def posterior(self, layer: int, features: Features) -> PointGate:
        return PointGate(torch.sigmoid(self.heads[layer - 1](features.normed))[..., 0])


def _heads(model: LanguageModel, bias: list[float], hidden: int | None) -> nn.ModuleList:
    """One network for each layer but the first."""
    shape = model.network.shape
    width = default_width(shape) if hidden is None else hidden
    if width < 1:
        raise UsageError(f"gate.hidden: {hidden} given; at least 1 is allowed")
    return make_heads(shape.width, width, [bias] * (shape.layers - 1))


DEPTH_GUIDES: dict[str, type[DepthGuide]] = {"beta": BetaDepthGuide, "point": PointDepthGuide}


def find_depth_guide(name: str) -> type[DepthGuide] | None:
    """The class that `name` stands for: `beta`, `point` or an import path; None for `none`.

    Raises
    ------
    UsageError
        There is none of that name, it is no `DepthGuide`, or it cannot be made of a model and
        `start`.
    """
    if name == "none":
        return None
    found = find_kind(name, DEPTH_GUIDES, DepthGuide, "depth")
    try:
        inspect.signature(found).bind(None, start=0.0)
    except TypeError as error:
        raise UsageError(
            f"depth: {name!r} must be made of a model and `start`, and its constructor: {error}"
        ) from error
    return found
