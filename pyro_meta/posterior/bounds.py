"""Bounds on the evidence of a text, and how noisy the gradient of the guide is.

For a text of T tokens, S draws alpha_s of q(alpha | x) and the log weights

    log r_s = log p(y | alpha_s) + log p(alpha_s) - log q(alpha_s | x),

in nats per token:

    objective = E_q[-log p(y | alpha)] + w KL(q || p)    what training lowers, tempered by w
    ELBO      = E_q[log p(y | alpha)] - KL(q || p)       the same untempered, its sign turned
    IWAE-S    = log (mean_s r_s) / T                     Burda et al. 2016, arXiv 1509.00519

ELBO <= IWAE-S <= log p(y | x) / T on average. Where compute has a price, exp(-lambda c) is a factor
of p(alpha), and the bounds are of the text together with the event that it is paid. Depth gates are
drawn as routes are. Loads are at their posterior means; their own KL, which all tokens of a text
share, is left out, and so is what mechanisms ask for beside the loss in training.

Shapes: S draws, B texts, T tokens.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_meta.distributions.simplex import divergence, log_ratio
from pyro_meta.evaluation.figures import evaluating, token_nll
from pyro_meta.guides import Guide, walk
from pyro_meta.guides.walk import Latents, Router, Walked, place_of
from pyro_meta.inference.elbo import Objective, RouteELBO
from pyro_meta.models import LanguageModel
from pyro_meta.models.language_model import Draw
from pyro_meta.network.route import Decision, Features
from pyro_meta.posterior.drawing import has_density, log_ratios, weighed

DRAWS = 64
"""Of the bounds: IWAE-64."""
GRADIENTS = 16
"""Draws of the gradient."""


@dataclass(frozen=True)
class Bounds:
    """Bounds for B texts, nats per token, averaged over S draws."""

    nll: Tensor
    """E_q[-log p(y | alpha)], [B]."""
    kl: Tensor
    """KL(q || p), with the price of compute, [B]; by its closed form where there is one."""
    iwae: Tensor | None
    """IWAE-S, [B]; None of a guide without a density, such as a point."""

    def objective(self, kl_weight: float) -> Tensor:
        """The tempered objective for w = `kl_weight`, [B]."""
        return self.nll + kl_weight * self.kl

    @property
    def elbo(self) -> Tensor | None:
        """[B]; None of a guide without a density."""
        return None if self.iwae is None else -(self.nll + self.kl)


def bounds(
    model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor, draws: int = DRAWS
) -> Bounds:
    """Bounds for tokens and targets [B, T], as everything is executed, in evaluation mode."""
    T = tokens.shape[1]
    nlls, kls, log_weights = [], [], []
    is_weighed = True
    with evaluating(model, guide):
        for _ in range(draws):
            walked = walk(model, guide, tokens, _drawn)
            nll = token_nll(walked.logits, targets).double().sum(1)
            nlls.append(nll)
            kls.append(_kl(walked))
            is_weighed = is_weighed and _has_densities(walked)
            if is_weighed:
                log_weights.append(-nll + log_ratios(walked, T) + _log_ratios_of_gates(walked))
    iwae = None
    if is_weighed:
        iwae = (torch.stack(log_weights).logsumexp(0) - math.log(draws)) / T
    nll, kl = (torch.stack(part).mean(0) / T for part in (nlls, kls))
    return Bounds(nll, kl, iwae)


def _drawn(
    guide: Router, layer: int, features: Features, posterior: Latents
) -> tuple[Draw, Decision]:
    """Draw routes as `weighed` does, and gates with them."""
    draw, decision = weighed(guide, layer, features, posterior)
    model = guide.model
    if layer not in model.gated:
        return draw, decision
    gate = posterior.gate.rsample()
    opened = model.gate_execution.of_draw(gate, place_of(layer, features))
    return Draw(draw.route, gate), Decision(decision.route, opened)


def _kl(walked: Walked) -> Tensor:
    """KL(q || p) and what compute is charged, nats by text, [B]."""
    total = torch.zeros(len(walked.logits), dtype=torch.float64, device=walked.logits.device)
    model = walked.model
    for layer, (q, p, draw, at) in enumerate(
        zip(walked.posteriors, walked.priors, walked.draws, walked.positions, strict=True)
    ):
        parts = [divergence(q.route, p.route, draw.route)]
        if layer in model.gated:
            parts.append(divergence(q.gate, p.gate, draw.gate))
        gate = draw.gate if layer in model.gated else None
        parts.append(model.charge(at, Draw(q.route.mean, gate)))
        total += torch.stack([part.double().flatten(1).sum(1) for part in parts]).sum(0)
    return total


def _has_densities(walked: Walked) -> bool:
    return all(
        has_density(q.route) and (layer not in walked.model.gated or has_density(q.gate))
        for layer, q in enumerate(walked.posteriors)
    )


def _log_ratios_of_gates(walked: Walked) -> Tensor:
    """log p - log q of the gates, by text, [B]."""
    total = torch.zeros(len(walked.logits), dtype=torch.float64, device=walked.logits.device)
    for layer in walked.model.gated:
        gate = walked.draws[layer].gate
        assert gate is not None
        q, p = walked.posteriors[layer].gate, walked.priors[layer].gate
        total -= log_ratio(q, p, gate).double().flatten(1).sum(1)
    return total


@dataclass(frozen=True)
class GradientNoise:
    """How much the gradient of the guide differs from draw to draw, texts being the same."""

    variance: float
    """tr Cov(g), the sum of the variances of its components, squared nats per token."""
    noise: float
    """tr Cov(g) / E|g|^2: 0 where all draws agree, near 1 where nothing but noise is left."""


def gradient_noise(
    model: LanguageModel,
    guide: Guide,
    tokens: Tensor,
    targets: Tensor,
    kl_weight: float,
    draws: int = GRADIENTS,
    elbo: RouteELBO | None = None,
) -> GradientNoise | None:
    """Noise of the gradient of the tempered objective by the guide's parameters.

    Parameters
    ----------
    model, guide
        In evaluation mode meanwhile, so that dropout adds nothing.
    tokens, targets
        One batch, [B, T].
    kl_weight
        w.
    draws
        S, at least 2; the variance is unbiased.
    elbo
        The estimator (default: `RouteELBO()`).

    Returns
    -------
    GradientNoise or None
        None of a guide that learns nothing.
    """
    learned = [one for one in guide.parameters() if one.requires_grad]
    if not learned:
        return None
    objective = Objective(model, guide, elbo or RouteELBO())
    total = torch.zeros(sum(one.numel() for one in learned), dtype=torch.float64)
    squares, square = torch.zeros_like(total), 0.0
    with _tempered(model, kl_weight), evaluating(model, guide), torch.enable_grad():
        for _ in range(draws):
            loss = objective(tokens, targets).loss
            found = torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)
            gradient = torch.cat([one.double().flatten().cpu() for one in found])
            total += gradient
            squares += gradient.square()
            square += float(gradient.square().sum())
    variances = (squares - total.square() / draws) / (draws - 1)
    variance = max(0.0, float(variances.sum()))  # equal ones differ by rounding
    return GradientNoise(variance, variance / (square / draws) if square else 0.0)


@contextmanager
def _tempered(model: LanguageModel, kl_weight: float) -> Iterator[None]:
    """The temperature of training, restored afterwards."""
    before = model.temperature
    model.temperature = kl_weight
    try:
        yield
    finally:
        model.temperature = before
