"""A choice of one mechanism: a categorical distribution over the vertices of the simplex."""

from typing import Any

import torch
from pyro.distributions import OneHotCategorical
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from pyro_meta.distributions.simplex import (
    entropy,
    expected_entropy,
    normalised,
    uncertainty,
    vertex,
)
from pyro_meta.errors import UsageError


class Choice(OneHotCategorical):
    """alpha = e_k with probability p_k: a token runs mechanism k and no other.

    A draw is a vertex in value and p in gradient (straight through: Bengio et al. 2013, arXiv
    1308.3432). The gradient of anything linear in the draw, such as its cost, is exact; that of the
    likelihood is that of its linearisation at the vertex. So a choice may stand in the position
    plate, where a score-function estimator would be wrong.

    log p(alpha) = sum_k alpha_k log p_k is defined, and linear, on the whole simplex.
    """

    has_rsample = True
    support: Any = constraints.simplex  # a router without a density may mix

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Choice":
        return super().expand(batch_shape, self._get_checked_instance(Choice, _instance))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        drawn = self.sample(torch.Size(sample_shape))
        return drawn + (self.probs - self.probs.detach())

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw without a gradient; probabilities that are NaN stay so, and raise nothing."""
        size, K = torch.Size(sample_shape), self.event_shape[-1]
        with torch.no_grad():
            probs = self.probs.reshape(-1, K)
            rows = torch.multinomial(probs.nan_to_num(1.0), size.numel(), True).T
            index = rows.reshape(self._extended_shape(size)[:-1])
            drawn = vertex(index, self.probs)
            return drawn + (self.probs - self.probs)  # 0, or NaN

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


def require_family(found: Distribution, of_choices: bool | None, giver: object, call: str) -> None:
    """Raise `UsageError` where a call of `giver` gave choices and says weights, or the reverse.

    Without it a KL would be taken between two families, and training would learn nonsense.
    """
    gives_choices = isinstance(found, torch.distributions.OneHotCategorical)
    if of_choices not in (None, gives_choices):
        name, given = type(giver).__name__, type(found).__name__
        raise UsageError(
            f"{name}.{call}() gives a {given}, and {name}.of_choices is {of_choices}; "
            f"write `of_choices = {gives_choices}` in the class"
        )


@expected_entropy.register
def _(dist: Choice) -> Tensor:
    """A draw is decided."""
    return torch.zeros_like(dist.logits[..., 0])


@uncertainty.register
def _(dist: Choice) -> Tensor:
    return normalised(entropy(dist.probs), dist.event_shape[-1])


@register_kl(Choice, Choice)  # type: ignore[untyped-decorator]
def _kl_choices(q: Choice, p: Choice) -> Tensor:
    """sum_k q_k (log q_k - log p_k); finite where p_k is too small for its precision."""
    return (q.probs * (q.logits - p.logits)).sum(-1)
