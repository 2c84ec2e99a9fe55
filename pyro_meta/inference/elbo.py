"""Stochastic variational inference: the objective and its parts.

    loss = E_q[-log p(y | alpha, g)] + w (sum_l KL(q_l || p_l) + lambda E_q[c])     nats per token

over the routes alpha and, where there are any, their loads and the depth gates g; and on top of it
what mechanisms and gates ask for in training, if any does (`penalty`, see the model). w is the
temperature. The model counts the likelihood 1 / w times, so that Pyro's own loss is this one,
summed over tokens, over w.
"""

from collections.abc import Callable
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
from pyro_meta.inference.curvature import of_second_order
from pyro_meta.models import LanguageModel
from pyro_meta.network.route import as_weights


class ELBOTerms(NamedTuple):
    """An estimate of the objective and its parts, in nats per token."""

    loss: Tensor
    """nll + temperature * sum of kl, load_kl, depth_kl and compute + penalty, a scalar."""
    nll: Tensor
    """E_q[-log p(y | alpha, g)], a scalar."""
    kl: Tensor
    """KL(q_l || p_l) of the routes by layer, untempered, [L]; with nll and the sums of load_kl,
    depth_kl and compute it is the negative ELBO."""
    routes: Tensor
    """The routes as they were executed, [L, B, T, K] or [L, B, T, G, K] of groups, detached (of the
    last particle)."""
    means: Tensor
    """Posterior means of the routes, likewise."""
    penalty: Tensor
    """What mechanisms and gates cost beside it, a scalar."""
    depth_kl: Tensor
    """The KL of the depth gates by layer, [L], 0 in a layer that every token runs."""
    gates: Tensor
    """The gates as they were executed, [L, B, T], 1 where every token runs the layer, detached."""
    gate_means: Tensor
    """Their posterior means, likewise."""
    load_kl: Tensor
    """The KL of the loads by layer, [L]; these tokens' share of it, 0 without loads."""
    compute: Tensor
    """lambda E_q[c], what compute is charged by layer, [L]; 0 where it has no price."""


class RouteELBO(TraceMeanField_ELBO):
    """`TraceMeanField_ELBO`, which also gives its parts, per token.

    Handed to `pyro.infer.SVI` it is Pyro's own, and spares a forward pass. `terms` is the same
    estimator (a test compares both, with gradients) without what training does not need: log
    densities of the routes, and a host-device synchronisation per evaluation.

    Parameters
    ----------
    num_particles
        Draws of the routes.
    second_order
        Whether `terms` has the curvature of choices in its gradients (see
        `pyro_meta.inference.curvature`), for one backward pass more. Values stay as they are.
    """

    def __init__(self, num_particles: int = 1, second_order: bool = False) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=3)
        self.second_order = second_order

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
            return cast(Tensor, model(*args, handed=walked[-1], **kwargs))

        traces: tuple[Trace, Trace] = super()._get_trace(handed, walking, args, kwargs)
        return traces

    def terms(
        self, model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor
    ) -> ELBOTerms:
        """Parts of the objective for tokens and targets [B, T], averaged over the particles."""
        found = [self._terms(model, guide, tokens, targets) for _ in range(self.num_particles)]
        parts, walked = [one for one, _ in found], found[-1][1]
        per_token = 1.0 / (tokens.numel() * self.num_particles)
        of = {
            name: torch.stack([part[name] for part in parts]).sum(0) * per_token
            for name in parts[0]
        }
        paid = (of["kl"] + of["load_kl"] + of["depth_kl"] + of["compute"]).sum()
        K = len(model.network.mechanisms)
        gates = [one.gate for one in walked.decisions]
        open_gate = torch.ones(tokens.shape, device=tokens.device)
        return ELBOTerms(
            loss=of["nll"] + model.temperature * paid + of["penalty"],
            nll=of["nll"],
            kl=of["kl"],
            routes=torch.stack([as_weights(one.route.detach(), K) for one in walked.decisions]),
            means=torch.stack([mean.detach() for mean in walked.means]),
            penalty=of["penalty"],
            depth_kl=of["depth_kl"],
            gates=torch.stack(
                [open_gate if one is None else one.detach().float() for one in gates]
            ),
            gate_means=torch.stack([q.gate.mean.detach() for q in walked.posteriors]),
            load_kl=of["load_kl"],
            compute=of["compute"],
        )

    def _terms(
        self, model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor
    ) -> tuple[dict[str, Tensor], Walked]:
        """Parts of one particle, nats over all tokens, and what it met."""
        guide_trace = poutine.trace(guide).get_trace(tokens, targets)
        walked = _require_walked(guide_trace.nodes["_RETURN"]["value"], guide)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(tokens, targets, walked)
        observed: Any = model_trace.nodes["next_token"]
        nll = -observed["fn"].log_prob(observed["value"]).sum()
        if self.second_order and torch.is_grad_enabled() and not guide.is_resting:
            nll = nll + of_second_order(walked)
        zero = torch.zeros_like(nll)

        def by_layer(term: Callable[[str], Tensor], name: str) -> Tensor:
            sites = (f"{name}_{layer}" for layer in range(len(walked.decisions)))
            return torch.stack([term(site) if site in model_trace else zero for site in sites])

        def kl(site: str) -> Tensor:
            q, p = (cast(Distribution, one.nodes[site]["fn"]) for one in (guide_trace, model_trace))
            return divergence(q, p, guide_trace.nodes[site]["value"]).sum()

        def cost(site: str) -> Tensor:
            factor: Any = model_trace.nodes[site]
            return cast(Tensor, -factor["fn"].log_prob(factor["value"]).sum())

        with torch.autocast(tokens.device.type, enabled=False):
            parts = {
                "nll": nll,
                "penalty": cost("penalty") if "penalty" in model_trace else zero,
                "kl": by_layer(kl, "route"),
                "load_kl": by_layer(kl, "load") * model.share_of_text(tokens),
                "depth_kl": by_layer(kl, "depth"),
                "compute": by_layer(cost, "compute"),
            }
        return parts, walked


def _require_walked(walked: object, guide: Guide) -> Walked:
    if not isinstance(walked, Walked):
        raise UsageError(
            f"guide: forward() of {type(guide).__name__} returned {type(walked).__name__}; what "
            "Guide.forward returns is needed"
        )
    return walked


class Objective(nn.Module):
    """The loss as one module of model and guide, to be set up by Fabric like any network.

    Parameters
    ----------
    model, guide
        What is trained.
    elbo
        The estimator.
    teaches
        Whether routes are to predict what the network itself says along full attention, instead of
        the tokens of the text: E[-log p(y | alpha)] with y drawn from that.
    """

    def __init__(
        self,
        model: LanguageModel,
        guide: Guide,
        elbo: RouteELBO | None = None,
        teaches: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.elbo = elbo or RouteELBO()
        self.teaches = teaches

    def forward(self, tokens: Tensor, targets: Tensor) -> ELBOTerms:
        with pyro.settings.context(module_local_params=True):
            if self.teaches:
                targets = self.model.own_prediction(tokens)
            return self.elbo.terms(self.model, self.guide, tokens, targets)
