"""Stochastic variational inference: the objective, its schedules and the optimiser.

    loss = E_q[-log p(y | alpha, g)] + w(step) sum_l KL(q_l || p_l)     nats per token

over the routes alpha and, where there are any, the depth gates g; and on top of it what mechanisms
and gates ask for in training, if any does (`penalty`, see the model).

Schedules are pure functions of the share of training that is done, so that a resumed run needs no
state but its step.
"""

from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_meta.distributions.simplex import divergence
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel


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
