"""From soft to hard: what runs for a distribution over routes or gates.

A token whose uncertainty lies below a threshold runs one mechanism alone (or, of a depth gate, runs
the layer or skips it), and all others run what was drawn. Everything that decides about this stands
here; training, evaluation, read-out and generation ask the same `Execution`.

Batch shapes are usually [B, T]; K mechanisms.
"""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.kl import register_kl

from pyro_meta.distributions.simplex import divergence, straight_through, uncertainty, vertex


class Execution(nn.Module):
    """When a token turns hard, and what it then runs; subclass it and define two methods.

    Attributes
    ----------
    threshold
        A token whose distribution has uncertainty below it is hard; 0: none is, 1: all are,
        whatever rounding does to their uncertainty. A buffer, saved with the guide.
    price
        Nats by which something must be likelier to be chosen, for each unit by which it costs more.
        A buffer, too.
    is_mixture
        Whether tokens run a mixture to the end, whatever the threshold.
    """

    threshold: Tensor
    price: Tensor

    def __init__(self, is_mixture: bool = False) -> None:
        super().__init__()
        self.is_mixture = is_mixture
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("price", torch.zeros(()))

    def decide(self, mean: Tensor) -> Tensor:
        """What a hard token runs, [..], for the mean of its distribution."""
        raise NotImplementedError

    def replace(self, soft: Tensor, decided: Tensor, is_hard: Tensor) -> Tensor:
        """`soft` values with those `decided` on in place where `is_hard` [..], straight through."""
        raise NotImplementedError

    @property
    def hard_below(self) -> Tensor:
        """Uncertainty below which a token is hard: `threshold`, or 0 for a mixture."""
        return self.threshold * 0 if self.is_mixture else self.threshold

    @property
    def is_hard_everywhere(self) -> bool:
        """Whether every token is hard."""
        return float(self.hard_below) >= 1

    def is_hard(self, undecided: Tensor) -> Tensor:
        """Which tokens of a given uncertainty [..] are hard, booleans."""
        return (undecided < self.hard_below) | (self.hard_below >= 1)

    def of_mean(self, dist: Distribution, hard: bool | None = None) -> Tensor:
        """What runs along the mean of `dist`, as evaluation and generation follow it.

        Parameters
        ----------
        dist
            A posterior.
        hard
            True: every token is hard. False: none is. None: those are that the threshold says, as
            in training. A mixture stays one.

        Returns
        -------
        Tensor
            Where every token is hard, what is decided [..]; else values like the mean.
        """
        mean: Tensor = dist.mean
        if hard is False or self.is_mixture:
            return mean
        if hard or self.is_hard_everywhere:
            return self.decide(mean)
        return self.replace(mean, self.decide(mean), self.is_hard(uncertainty(dist)))

    def hardened(self, dist: Distribution) -> "Hardened":
        """`dist` as training executes it."""
        return Hardened(dist, self)

    def of_draw(self, dist: Distribution, draw: Tensor) -> Tensor:
        """What runs for a draw from `dist` that decides for itself: as if it were the mean.

        Only so does the likelihood of a draw depend on nothing but that draw. Where every token is
        hard, what is decided [..]; else values like the draw.
        """
        decided = self.decide(draw)
        if self.is_hard_everywhere:
            return decided
        return self.replace(draw, decided, self.is_hard(uncertainty(dist)))

    def in_training(self, dist: Distribution, draw: Tensor) -> Tensor:
        """What runs for a draw in training: hard tokens run what the mean decides."""
        decided = self.decide(dist.mean).expand(draw.shape[: draw.dim() - len(dist.event_shape)])
        return self.replace(draw, decided, self.is_hard(uncertainty(dist)))


class RouteExecution(Execution):
    """Routes: a hard token runs argmax_k (log m_k - price c_k), one mechanism alone.

    Parameters
    ----------
    costs
        c [K], MACs averaged over the context, full attention = 1.
    is_mixture
        See `Execution`.
    """

    costs: Tensor

    def __init__(self, costs: Tensor, is_mixture: bool = False) -> None:
        super().__init__(is_mixture)
        self.register_buffer("costs", costs, persistent=False)

    def decide(self, mean: Tensor) -> Tensor:
        """Mechanisms [..] for weights [.., K]: who hardly cares does not pay for a dear one."""
        return (mean * torch.exp(-self.price * self.costs)).argmax(-1)

    def replace(self, soft: Tensor, decided: Tensor, is_hard: Tensor) -> Tensor:
        return torch.where(is_hard[..., None], straight_through(soft, decided), soft)

    def shares(self, mean: Tensor) -> Tensor:
        """What runs once everything is hard, as weights [.., K]: one mechanism, or the mixture."""
        return mean if self.is_mixture else vertex(self.decide(mean), mean)


class GateExecution(Execution):
    """Depth gates: a hard token runs the layer where logit(mean) > price, and else skips it."""

    def decide(self, mean: Tensor) -> Tensor:
        """Whether hard tokens run the layer, booleans [..]."""
        return torch.logit(mean) > self.price

    def replace(self, soft: Tensor, decided: Tensor, is_hard: Tensor) -> Tensor:
        hard = decided.to(soft.dtype) + (soft - soft.detach())
        return torch.where(is_hard, hard, soft)


class Hardened(TorchDistribution):
    """A posterior as training executes it: certain tokens run what its mean decides.

    Draws from `base`, and has `execution` replace the draws of hard tokens. The KL is that of
    `base`: what is inferred is its distribution, and hardening is how the network executes it.
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(self, base: Distribution, execution: Execution) -> None:
        self.base, self.execution = base, execution
        self.draw: Tensor | None = None
        self._executed: Tensor | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Hardened":
        return Hardened(self.base.expand(batch_shape), self.execution)

    @property
    def support(self) -> Any:
        return self.base.support

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        self.draw = self.base.rsample(torch.Size(sample_shape))
        self._executed = self.execution.in_training(self.base, self.draw)
        return self._executed

    def log_prob(self, value: Tensor) -> Tensor:
        """Density of `base`, at the soft draw behind `value` if `value` was drawn here."""
        soft = self.draw if value is self._executed and self.draw is not None else value
        return self.base.log_prob(soft)


@register_kl(Hardened, Distribution)  # type: ignore[untyped-decorator]
def _kl_hardened(q: Hardened, p: Distribution) -> Tensor:
    return divergence(q.base, p, q.draw)
