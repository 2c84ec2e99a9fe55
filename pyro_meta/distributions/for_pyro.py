"""Distributions of `torch.distributions` as Pyro takes them."""

import copy
from functools import cache
from typing import Any, cast

from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import Distribution


def for_pyro(dist: Distribution) -> TorchDistribution:
    """`dist` as something that `pyro.sample` can draw from: itself, if it is Pyro's.

    A person's own class may come of `torch.distributions`. What is given back is one of it, too, so
    that closed divergences are found as before.
    """
    if isinstance(dist, TorchDistributionMixin):
        return cast(TorchDistribution, dist)
    kind: Any = type(dist)
    adapted: Any = copy.copy(dist)
    adapted.__class__ = _with_mixin(kind)
    return cast(TorchDistribution, adapted)


@cache
def _with_mixin(kind: Any) -> Any:
    return type(kind.__name__, (kind, TorchDistributionMixin), {})
