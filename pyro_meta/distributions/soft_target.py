"""A distribution of tokens that is observed by the probabilities of all of them."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class SoftTarget(TorchDistribution):
    """Scores probabilities t [.., V] by their expected log-likelihood, sum_v t_v log p_v.

    So a model learns what another one says (Hinton et al. 2015, arXiv 1503.02531). A draw is the
    vertex of one token. Its log is linear in the probabilities; so no vocabulary is too large for
    a sum of them that rounding has moved.

    Parameters
    ----------
    logits
        [.., V], up to a constant.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}
    support: Any = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SoftTarget":
        return SoftTarget(self.logits.expand(*batch_shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.softmax(self.logits, -1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            drawn = torch.distributions.OneHotCategorical(logits=self.logits, validate_args=False)
            return drawn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        finite = self.logits.clamp(min=torch.finfo(self.logits.dtype).min)  # of what is masked
        return (value * finite).sum(-1) - value.sum(-1) * self.logits.logsumexp(-1)
