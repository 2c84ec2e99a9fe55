"""What changes over training: pure functions of the share of training that is done.

The command line reads its options from here before PyTorch is there: no module here needs it.
"""

import math
from dataclasses import dataclass

from pyro_meta.errors import UsageError


@dataclass(frozen=True)
class KLSchedule:
    """Weight of the KL term: 1e-6 at first, then a peak, then its final value.

    It comes late, because a cost that bites before full attention has learned anything kills it.
    It rises to its peak over the first third of its span, on half a cosine, and falls over the
    last: the peak takes whoever hardly cares off what is dear, and as it falls it gets light enough
    for the likelihood to choose among the cheap. Once the guide has settled
    (`optim.router_end`) the weight moves nothing.
    """

    weight: float = 0.004
    """Final weight; 1 is the ELBO, below 1 a tempered objective."""
    peak: float = 5.0
    """Weight at the peak, in units of the final one; 1: it only rises."""
    begin: float = 0.25
    """Share of training done when the weight begins to rise."""
    end: float = 0.45
    """Share of training done when the weight is final."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UsageError(f"kl.weight: {self.weight} given; above 0 is allowed")
        if not 1 <= self.peak < math.inf:
            raise UsageError(f"kl.peak: {self.peak} given; at least 1 is allowed")
        _check_span("kl", self.begin, self.end)

    def __call__(self, progress: float) -> float:
        """The weight after a share `progress` in [0, 1] of training."""
        third = (self.end - self.begin) / 3
        least, top = min(1e-6, self.weight), self.peak * self.weight
        risen = least + (top - least) * _rise(progress, self.begin, self.begin + third)
        return risen + (self.weight - risen) * _rise(progress, self.end - third, self.end)


@dataclass(frozen=True)
class HardeningSchedule:
    """Threshold on the uncertainty below which a token is executed hard, from 0 to 1.

    Uncertainty is E_q[H(alpha)] / log K. At the end every token is hard, unless `final` says less.
    """

    begin: float = 0.45
    """Share of training done when the first tokens may turn hard."""
    end: float = 0.6
    """Share of training done when the threshold is final."""
    final: float = 1.0
    """Final threshold: 1 makes every route hard, 0 keeps every route soft."""
    price: float = 0.7
    """Nats by which a mechanism must be likelier to be chosen, per unit of cost that it is dearer
    (MACs over the context, full attention = 1)."""

    def __post_init__(self) -> None:
        _check_span("harden", self.begin, self.end)
        if not 0 <= self.final <= 1:
            raise UsageError(f"harden.final: {self.final} given; between 0 and 1 is allowed")
        if not 0 <= self.price < math.inf:
            raise UsageError(f"harden.price: {self.price} given; at least 0 is allowed")

    def __call__(self, progress: float) -> float:
        """The threshold after a share `progress` in [0, 1] of training."""
        span = self.end - self.begin
        share = (progress - self.begin) / span if span else float(progress >= self.end)
        return self.final * min(1.0, max(0.0, share))


@dataclass(frozen=True)
class ShortFirst:
    """Short sequences first, and as many times more of them: tokens per step stay the same.

    Look-ups are learned sooner where there is less to confuse them with (sequence-length warm-up:
    Li et al. 2021, arXiv 2108.06084), and short sequences are cheap.
    """

    factor: int = 8
    """How many times shorter; 1: whole sequences from the start. What a task plants in short
    sequences shrinks with them, down to nothing."""
    until: float = 0.2
    """Share of training done when sequences become whole."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UsageError(f"short.factor: {self.factor} given; at least 1 is allowed")
        if not 0 <= self.until <= 1:
            raise UsageError(f"short.until: {self.until} given; between 0 and 1 is allowed")

    def __call__(self, progress: float) -> int:
        """How many times shorter sequences are after a share `progress` of training."""
        return self.factor if progress < self.until else 1


@dataclass(frozen=True)
class Optimisation:
    """AdamW with a warmed-up cosine schedule, and gradients clipped by their global norm."""

    lr: float = 5e-3
    """Peak learning rate."""
    final_lr: float = 1e-4
    """Learning rate at the end."""
    warmup: float = 0.02
    """Share of training over which the learning rate rises from 0."""
    weight_decay: float = 0.1
    """Decay of weight matrices; gains, biases, norms and embeddings are not decayed."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    clip: float = 1.0
    """Greatest global norm of the gradient."""
    router: float = 5.0
    """Learning rate of the guide, and of a prior that learns, in units of the network's."""
    router_begin: float = 0.25
    """Share of training done when the guide begins to learn: what there is to attend to first."""
    router_end: float = 0.45
    """Share of training done when the guide stops: its routes are given from then on, and the KL
    moves nothing."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip", "router"):
            if not getattr(self, name) > 0:
                raise UsageError(f"optim.{name}: {getattr(self, name)} given; above 0 is allowed")
        for name in ("final_lr", "weight_decay"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"optim.{name}: {getattr(self, name)} given; at least 0 is allowed"
                )
        for name in ("warmup", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"optim.{name}: {getattr(self, name)} given; at least 0 and below 1 is allowed"
                )
        if not 0 <= self.router_begin <= self.router_end <= 1:
            raise UsageError(
                f"optim.router_begin, optim.router_end: {self.router_begin}, {self.router_end} "
                "given; 0 <= begin <= end <= 1 is allowed"
            )

    def lr_at(self, progress: float) -> float:
        """Learning rate after a share `progress` in [0, 1] of training."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        return self.lr + (self.final_lr - self.lr) * _rise(progress, self.warmup, 1.0)

    def router_lr_at(self, progress: float) -> float:
        """Learning rate of guide and prior after a share `progress` in [0, 1] of training."""
        is_learning = self.router_begin < progress <= self.router_end
        return self.router * self.lr_at(progress) if is_learning else 0.0

    def has_begun(self, progress: float) -> bool:
        """Whether the guide has begun to learn."""
        return progress > self.router_begin

    def has_settled(self, progress: float) -> bool:
        """Whether the guide has stopped for good."""
        return progress > self.router_end


def _rise(progress: float, begin: float, end: float) -> float:
    """Half a cosine from 0 at `begin` to 1 at `end`."""
    share = (progress - begin) / (end - begin) if end > begin else float(progress >= end)
    return 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, share)))


def _check_span(option: str, begin: float, end: float) -> None:
    if not 0 <= begin <= end <= 1:
        raise UsageError(
            f"{option}.begin, {option}.end: {begin}, {end} given; 0 <= begin <= end <= 1 is allowed"
        )
