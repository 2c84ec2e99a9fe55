"""What changes over training: pure functions of the share of training that is done.

That share, `progress`, goes from 0 to 1; and on to 2 in a last phase that refits the guide, if
there is one (`optim.refit`).

The command line reads its options from here before PyTorch is there: no module here needs it.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from pyro_meta.errors import UsageError

LARGEST = (2 - 2**-23) * 2.0**127  # the largest number of single precision


@dataclass(frozen=True)
class KLSchedule:
    """Weight of the KL term: 1e-6 at first, then a peak, then its final value.

    It comes late, because a cost that bites before full attention has learned anything kills it.
    It rises to its peak over the first third of its span, on half a cosine, and falls over the
    last. The peak takes tokens that hardly care off what is dear. As it falls it gets light enough
    for the likelihood to choose among the cheap. Once the guide has settled
    (`optim.router_end`) the weight moves nothing.
    """

    weight: float = 0.004
    """Weight from --kl.end on: 1 counts the prior in full (the negative ELBO); the lower, the less
    it counts against the fit to the text."""
    peak: float = 5.0
    """Highest weight between begin and end, as a multiple of --kl.weight; 1: the weight only
    rises."""
    begin: float = 0.25
    """When the weight begins to rise from 0.000001, as a share of all steps."""
    end: float = 0.45
    """When the weight reaches its final value, as a share of all steps."""

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
    """Threshold on the rank below which a token is executed hard, from 0 to 1.

    A rank is the uncertainty of the token's route, E_q[H(alpha)] / log K, unless `order` says
    otherwise. At the end every token is hard, unless `final` says less.
    """

    begin: float = 0.45
    """When the first tokens may turn hard, as a share of all steps; before, none are."""
    end: float = 0.6
    """When the threshold, which rises from 0, reaches --harden.final, as a share of all steps."""
    final: float = 1.0
    """Final threshold: a token whose route is less uncertain than this, from 0 to 1, is hard (in
    another --harden.order, whose rank is below). 1: every token is hard, 0: none is."""
    price: float = 0.7
    """How much hard tokens avoid cost: by how many nats (natural-log units) a mechanism must be
    likelier for each unit that it costs more. 1 unit is full attention, in multiply-adds averaged
    over the context; 0 ignores cost."""
    order: Literal["uncertain_last", "reversed", "random", "all_at_once"] = "uncertain_last"
    """Which tokens turn hard first as the threshold rises: those whose route is the least uncertain
    (uncertain_last), the most uncertain (reversed), random ones, the same whenever they are asked
    (random); or all of them half-way between --harden.begin and --harden.end (all_at_once)."""

    def __post_init__(self) -> None:
        _check_span("harden", self.begin, self.end)
        if not 0 <= self.final <= 1:
            raise UsageError(f"harden.final: {self.final} given; between 0 and 1 is allowed")
        if self.order == "all_at_once" and self.final != 1:
            raise UsageError(
                f"harden.final: {self.final} given; 1 is allowed where harden.order is all_at_once"
            )
        if not 0 <= self.price < LARGEST:  # it is kept in single precision
            raise UsageError(f"harden.price: {self.price} given; 0 to {LARGEST:.3g} is allowed")

    def __call__(self, progress: float) -> float:
        """The threshold after a share `progress` in [0, 1] of training."""
        span = self.end - self.begin
        share = (progress - self.begin) / span if span else float(progress >= self.end)
        if self.order == "all_at_once":
            return float(share >= 0.5)
        return self.final * min(1.0, max(0.0, share))


@dataclass(frozen=True)
class Tightening:
    """What a budget allows: at first all that the dearest mechanism costs, at last --budget.

    So a network that was trained with full attention gives up first what it misses least (LoGo,
    arXiv 2608.29539, raises a threshold in the same way).
    """

    begin: float = 0.0
    """When the budget begins to fall from the cost of the dearest mechanism everywhere (1, of full
    attention), as a share of all steps."""
    end: float = 0.0
    """When it reaches --budget, as a share of all steps; 0: it holds from the start."""

    def __post_init__(self) -> None:
        _check_span("tighten", self.begin, self.end)

    def __call__(self, budget: float, progress: float, start: float = 1.0) -> float:
        """What is allowed after a share `progress` in [0, 1] of training: from `start` on down."""
        if progress >= self.end:
            return budget
        if progress <= self.begin:
            return start
        left = 1 - (progress - self.begin) / (self.end - self.begin)
        return budget + (start - budget) * left


@dataclass(frozen=True)
class WarmStart:
    """Before training: the guide learns what each choice is worth by itself, along full attention.

    See `pyro_meta.inference.warm_start`.
    """

    texts: int = 0
    """Batches of text that it learns from, a pass forward and one back for each; 0: it begins as it
    is made. A guide that learns nothing has no use for them."""
    passes: int = 5
    """How often the guide is fitted to each of them; the network is not run again for it."""
    lr: float = 3e-3
    """Learning rate of the fit."""
    sharpness: float = 3.0
    """By how much the log-odds of full attention rise if leaving it costs e times as much."""

    def __post_init__(self) -> None:
        for name, least in (("texts", 0), ("passes", 1)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"warm.{name}: {getattr(self, name)} given; at least {least} is allowed"
                )
        for name in ("lr", "sharpness"):
            if not getattr(self, name) > 0:
                raise UsageError(f"warm.{name}: {getattr(self, name)} given; above 0 is allowed")
        for one in fields(self):
            if self.texts == 0 and getattr(self, one.name) != one.default:
                raise UsageError(
                    f"warm.{one.name}: {getattr(self, one.name)} given, and it does nothing "
                    "without --warm.texts"
                )


@dataclass(frozen=True)
class ShortFirst:
    """Short sequences first, and as many times more of them: tokens per step stay the same.

    Look-ups are learned sooner where there is less to confuse them with (sequence-length warm-up:
    Li et al. 2021, arXiv 2108.06084), and short sequences are cheap.
    """

    factor: int = 8
    """How many times shorter sequences are at first, and how many times more of them are in a
    batch; 1: whole sequences from the start. The look-ups that --data Recall plants shrink with
    them."""
    until: float = 0.2
    """When sequences become whole, as a share of all steps."""

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
    """Highest learning rate of the network."""
    final_lr: float = 1e-4
    """Learning rate at the end, reached on half a cosine."""
    warmup: float = 0.02
    """How long the learning rate rises from 0 to its highest, as a share of all steps."""
    weight_decay: float = 0.1
    """AdamW's weight decay of weight matrices; gains, biases, norms and embeddings have none."""
    beta1: float = 0.9
    """AdamW's decay of the running mean of gradients, from 0 to below 1."""
    beta2: float = 0.95
    """AdamW's decay of the running mean of squared gradients, from 0 to below 1."""
    clip: float = 1.0
    """Gradients whose norm, over all parameters, is above this are scaled down to it."""
    router: float = 5.0
    """Learning rate of the guide (the router), and of LearnedDirichlet, as a multiple of
    --optim.lr."""
    offsets: float = 1.0
    """Learning rate of what the guide says of all tokens of a layer or group of heads alike, as a
    multiple of what it says of tokens by --optim.router: there are few such numbers, each told by
    very many tokens."""
    router_begin: float = 0.25
    """When the guide begins to learn, as a share of all steps; before, only the network learns."""
    router_end: float = 0.45
    """When the guide stops learning, as a share of all steps; from then on the network trains with
    the routes that the guide gives, and --kl has no effect."""
    refit: int = 0
    """Steps at the end of training, out of --steps, in which the network is frozen and guide and
    prior are fitted to it as it is: all other schedules have run their course before. 0: none."""
    second_order: bool = False
    """Whether gradients of choices reckon with the curvature of the loss, too: what a token gains
    by another mechanism is then known far better, for a backward pass more in every step."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip", "router", "offsets"):
            if not getattr(self, name) > 0:
                raise UsageError(f"optim.{name}: {getattr(self, name)} given; above 0 is allowed")
        for name in ("final_lr", "weight_decay"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"optim.{name}: {getattr(self, name)} given; at least 0 is allowed"
                )
        if self.refit < 0:
            raise UsageError(f"optim.refit: {self.refit} given; at least 0 is allowed")
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

    def progress(self, step: int, steps: int) -> float:
        """The share of training that is done after `step` of `steps`; above 1 while it refits."""
        before = steps - self.refit
        if step <= before and before:
            return step / before
        return 1 + (step - before) / self.refit

    def lr_at(self, progress: float) -> float:
        """Learning rate of the network after a share `progress` of training; 0 while it refits."""
        return 0.0 if self.is_refitting(progress) else self._lr(progress)

    def router_lr_at(self, progress: float) -> float:
        """Learning rate of guide and prior after a share `progress` of training.

        A refit warms up and falls anew, as training did.
        """
        if self.is_refitting(progress):
            return self.router * self._lr(progress - 1)
        return 0.0 if self.is_resting(progress) else self.router * self._lr(progress)

    def _lr(self, progress: float) -> float:
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        return self.lr + (self.final_lr - self.lr) * _rise(progress, self.warmup, 1.0)

    def is_refitting(self, progress: float) -> bool:
        """Whether the network is frozen, and the guide is fitted to it."""
        return progress > 1

    def has_begun(self, progress: float) -> bool:
        """Whether the guide has begun to learn."""
        return progress > self.router_begin

    def has_settled(self, progress: float) -> bool:
        """Whether the guide has stopped, for good or until it is refitted."""
        return progress > self.router_end and not self.is_refitting(progress)

    def is_resting(self, progress: float) -> bool:
        """Whether the guide does not learn: before it begins, and once it has settled."""
        return not self.has_begun(progress) or self.has_settled(progress)


def _rise(progress: float, begin: float, end: float) -> float:
    """Half a cosine from 0 at `begin` to 1 at `end`."""
    share = (progress - begin) / (end - begin) if end > begin else float(progress >= end)
    return 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, share)))


def _check_span(option: str, begin: float, end: float) -> None:
    if not 0 <= begin <= end <= 1:
        raise UsageError(
            f"{option}.begin, {option}.end: {begin}, {end} given; 0 <= begin <= end <= 1 is allowed"
        )
