"""Stochastic variational inference: the objective, its schedules and the optimiser.

    loss = E_q[-log p(y | alpha, g)] + w(step) sum_l KL(q_l || p_l)     nats per token

over the routes alpha and, where there are any, the depth gates g; and on top of it what mechanisms
and gates ask for in training, if any does (`penalty`, see the model).

Schedules are pure functions of the share of training that is done, so that a resumed run needs no
state but its step.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.simplex import divergence


class ELBOTerms(NamedTuple):
    """An estimate of the objective and its parts, in nats per token."""

    loss: Tensor
    """nll + kl_weight * sum of kl and depth_kl + penalty, a scalar."""
    nll: Tensor
    """E_q[-log p(y | alpha, g)], a scalar."""
    kl: Tensor
    """KL(q_l || p_l) of the routes by layer, untempered, [L]; with the sum of depth_kl and nll, its
    sum is the negative ELBO."""
    routes: Tensor
    """The routes as they were executed, [L, B, T, K], detached (of the last particle)."""
    means: Tensor
    """Posterior means of the routes, [L, B, T, K], detached (of the last particle)."""
    penalty: Tensor | None = None
    """What mechanisms and gates cost beside it, a scalar; None: nothing."""
    depth_kl: Tensor | None = None
    """The KL of the depth gates by layer, [L], 0 in the first; None: there are none."""
    gates: Tensor | None = None
    """The gates as they were executed, [L, B, T], 1 in the first layer, detached."""
    gate_means: Tensor | None = None
    """Their posterior means, likewise."""


class RouteELBO(TraceMeanField_ELBO):
    """`TraceMeanField_ELBO`, which also gives its parts, per token.

    Handed to `pyro.infer.SVI` it is Pyro's own. `terms` is the same estimator (a test compares
    both, with gradients) without what training does not need: log densities of the routes, and a
    host-device synchronisation per evaluation.
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=2)

    def terms(
        self, model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor
    ) -> ELBOTerms:
        """Parts of the objective for tokens and targets [B, T], averaged over the particles."""
        per_token = 1.0 / (targets.numel() * self.num_particles)
        nll, kl, depth_kl, penalty = [], [], [], []
        for _ in range(self.num_particles):
            guide_trace = poutine.trace(guide).get_trace(tokens, targets)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(tokens, targets)
            observed: Any = model_trace.nodes["next_token"]
            nll.append(-observed["fn"].log_prob(observed["value"]).sum() * per_token)
            if "penalty" in model_trace.nodes:
                factor: Any = model_trace.nodes["penalty"]
                penalty.append(-factor["fn"].log_prob(factor["value"]).sum() * per_token)
            sites, gates = (_sites(guide_trace, name) for name in ("route_", "depth_"))
            with torch.autocast(tokens.device.type, enabled=False):
                kls = _divergences(sites, _sites(model_trace, "route_"))
                kl.append(torch.stack(kls) * per_token)
                of_gates = _divergences(gates, _sites(model_trace, "depth_"))
                if of_gates:
                    first = torch.zeros_like(of_gates[0])
                    depth_kl.append(torch.stack([first, *of_gates]) * per_token)
        total_nll, total_kl = torch.stack(nll).sum(), torch.stack(kl).sum(0)
        loss = total_nll + model.kl_weight * total_kl.sum()
        total_penalty = torch.stack(penalty).sum() if penalty else None
        total_depth_kl = torch.stack(depth_kl).sum(0) if depth_kl else None
        if total_depth_kl is not None:
            loss = loss + model.kl_weight * total_depth_kl.sum()
        return ELBOTerms(
            loss=loss if total_penalty is None else loss + total_penalty,
            nll=total_nll,
            kl=total_kl,
            routes=torch.stack([site["value"].detach() for site in sites]),
            means=torch.stack([site["fn"].mean.detach() for site in sites]),
            penalty=total_penalty,
            depth_kl=total_depth_kl,
            gates=_with_first([site["value"].detach() for site in gates]),
            gate_means=_with_first([site["fn"].mean.detach() for site in gates]),
        )


def _sites(trace: Trace, prefix: str) -> list[Any]:
    """The sample sites of a trace whose names begin with `prefix`, from the first layer on."""
    return [
        site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name.startswith(prefix)
    ]


def _divergences(sites: list[Any], priors: list[Any]) -> list[Tensor]:
    """KL(q || p) of each pair of sites, summed over tokens."""
    return [divergence(q["fn"], p["fn"]).sum() for q, p in zip(sites, priors, strict=True)]


def _with_first(gates: list[Tensor]) -> Tensor | None:
    """Gates [B, T] of the layers that have one, with those of the first, which is open."""
    return torch.stack([torch.ones_like(gates[0]), *gates]) if gates else None


class Objective(nn.Module):
    """The loss as one module of model and guide, to be set up by Fabric like any network."""

    def __init__(self, model: LanguageModel, guide: Guide, elbo: RouteELBO | None = None) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.elbo = elbo or RouteELBO()

    def forward(self, tokens: Tensor, targets: Tensor) -> ELBOTerms:
        with pyro.settings.context(module_local_params=True):
            return self.elbo.terms(self.model, self.guide, tokens, targets)


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

    def set_lr(self, optimiser: torch.optim.Optimizer, progress: float) -> None:
        """Give every group its learning rate after a share `progress` of training."""
        for group in optimiser.param_groups:
            lr_at = self.router_lr_at if group["is_router"] else self.lr_at
            group["lr"] = lr_at(progress)

    @staticmethod
    def drop_resting(optimiser: torch.optim.Optimizer) -> None:
        """Drop the gradients of a router that rests, so that no norm or moment holds them."""
        for group in optimiser.param_groups:
            if group["is_router"] and group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = None

    def optimiser(self, objective: Objective) -> torch.optim.AdamW:
        """AdamW over the network, in a decayed and an undecayed group, and guide with prior."""
        linear = [part for part in objective.modules() if isinstance(part, nn.Linear)]
        matrices = {id(part.weight) for part in linear}
        routing = [*objective.guide.parameters(), *objective.model.prior.parameters()]
        router = {id(p) for p in routing}
        network = [p for p in objective.parameters() if id(p) not in router]
        decayed = [p for p in network if id(p) in matrices]
        kept = [p for p in network if id(p) not in matrices]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay, "is_router": False},
            {"params": kept, "weight_decay": 0.0, "is_router": False},
            {"params": routing, "weight_decay": 0.0, "is_router": True},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), fused=True)


def _rise(progress: float, begin: float, end: float) -> float:
    """Half a cosine from 0 at `begin` to 1 at `end`."""
    share = (progress - begin) / (end - begin) if end > begin else float(progress >= end)
    return 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, share)))


def _check_span(option: str, begin: float, end: float) -> None:
    if not 0 <= begin <= end <= 1:
        raise UsageError(
            f"{option}.begin, {option}.end: {begin}, {end} given; 0 <= begin <= end <= 1 is allowed"
        )
