"""Stochastic variational inference: the objective and its parts.

    loss = E_q[-log p(y | alpha, g)] + w(step) sum_l KL(q_l || p_l)     nats per token

over the routes alpha and, where there are any, the depth gates g; and on top of it what mechanisms
and gates ask for in training, if any does (`penalty`, see the model).
"""

from typing import Any, NamedTuple, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_meta.distributions.simplex import divergence
from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide
from pyro_meta.guides.walk import Walked
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
    penalty: Tensor
    """What mechanisms and gates cost beside it, a scalar."""
    depth_kl: Tensor
    """The KL of the depth gates by layer, [L], 0 in a layer that every token runs."""
    gates: Tensor
    """The gates as they were executed, [L, B, T], 1 where every token runs the layer, detached."""
    gate_means: Tensor
    """Their posterior means, likewise."""


class RouteELBO(TraceMeanField_ELBO):
    """`TraceMeanField_ELBO`, which also gives its parts, per token.

    Handed to `pyro.infer.SVI` it is Pyro's own, and spares a forward pass. `terms` is the same
    estimator (a test compares both, with gradients) without what training does not need: log
    densities of the routes, and a host-device synchronisation per evaluation.
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=2)

    def _get_trace(
        self, model: LanguageModel, guide: Guide, args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        """As Pyro asks for them, with one forward pass: the model is handed what the guide walked.

        A method of `TraceMeanField_ELBO` (pyro/infer/trace_mean_field_elbo.py).
        """
        walked: list[Walked] = []

        def walking(*args: Any, **kwargs: Any) -> None:
            walked.append(_require_walked(guide(*args, **kwargs), guide))

        def handed(*args: Any, **kwargs: Any) -> Tensor:
            return cast(Tensor, model(*args, passed=walked[-1].passed, **kwargs))

        traces: tuple[Trace, Trace] = super()._get_trace(handed, walking, args, kwargs)
        return traces

    def terms(
        self, model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor
    ) -> ELBOTerms:
        """Parts of the objective for tokens and targets [B, T], averaged over the particles."""
        per_token = 1.0 / (targets.numel() * self.num_particles)
        nll, kl, depth_kl, penalty = [], [], [], []
        for _ in range(self.num_particles):
            guide_trace = poutine.trace(guide).get_trace(tokens, targets)
            walked = _require_walked(guide_trace.nodes["_RETURN"]["value"], guide)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(tokens, targets, walked.passed)
            observed: Any = model_trace.nodes["next_token"]
            nll.append(-observed["fn"].log_prob(observed["value"]).sum() * per_token)
            penalty.append(_penalty(model_trace, like=nll[-1]) * per_token)
            layers = range(len(walked.decisions))
            with torch.autocast(tokens.device.type, enabled=False):
                pairs = [_divergences(guide_trace, model_trace, layer) for layer in layers]
            of_routes, of_gates = zip(*pairs, strict=True)
            kl.append(torch.stack(of_routes) * per_token)
            depth_kl.append(torch.stack(of_gates) * per_token)
        total_nll, total_penalty = torch.stack(nll).sum(), torch.stack(penalty).sum()
        total_kl, total_depth_kl = torch.stack(kl).sum(0), torch.stack(depth_kl).sum(0)
        loss = total_nll + model.kl_weight * total_kl.sum()
        return ELBOTerms(
            loss=loss + model.kl_weight * total_depth_kl.sum() + total_penalty,
            nll=total_nll,
            kl=total_kl,
            routes=torch.stack([draw.route.detach() for draw in walked.draws]),
            means=torch.stack([q.route.mean.detach() for q in walked.posteriors]),
            penalty=total_penalty,
            depth_kl=total_depth_kl,
            gates=torch.stack([draw.gate.detach() for draw in walked.draws]),
            gate_means=torch.stack([q.gate.mean.detach() for q in walked.posteriors]),
        )


def _require_walked(walked: object, guide: Guide) -> Walked:
    if not isinstance(walked, Walked):
        raise UsageError(
            f"guide: forward() of {type(guide).__name__} returned {type(walked).__name__}; what "
            "Guide.forward returns is needed"
        )
    return walked


def _divergences(guide: Trace, model: Trace, layer: int) -> tuple[Tensor, Tensor]:
    """KL(q || p) of a layer's route and of its gate, summed over tokens; 0 without a gate."""
    kl = _divergence(guide, model, f"route_{layer}")
    gate = f"depth_{layer}"
    return kl, _divergence(guide, model, gate) if gate in guide.nodes else torch.zeros_like(kl)


def _divergence(guide: Trace, model: Trace, site: str) -> Tensor:
    q, p = (cast(Distribution, trace.nodes[site]["fn"]) for trace in (guide, model))
    return divergence(q, p).sum()


def _penalty(model: Trace, like: Tensor) -> Tensor:
    """What the model's factor costs, nats; 0 where nobody asks for one."""
    if "penalty" not in model.nodes:
        return torch.zeros_like(like)
    factor: Any = model.nodes["penalty"]
    cost: Tensor = -factor["fn"].log_prob(factor["value"]).sum()
    return cost


class Objective(nn.Module):
    """The loss as one module of model and guide, to be set up by Fabric like any network."""

    def __init__(self, model: LanguageModel, guide: Guide, elbo: RouteELBO | None = None) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.elbo = elbo or RouteELBO()

    def forward(self, tokens: Tensor, targets: Tensor) -> ELBOTerms:
        with pyro.settings.context(module_local_params=True):
            return self.elbo.terms(self.model, self.guide, tokens, targets)
