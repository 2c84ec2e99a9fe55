"""The objective of training, text by text, for the guide and for what is put in its place.

J(q) = E_q[-log p(y | alpha)] + w KL(q || p)        nats per token
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention import Cache
from pyro_meta.distributions.simplex import divergence
from pyro_meta.evaluation.figures import token_nll
from pyro_meta.guides import Guide, mean_route, walk
from pyro_meta.guides.walk import Latents, Router, place_of
from pyro_meta.models import LanguageModel
from pyro_meta.models.language_model import Draw
from pyro_meta.network.route import Decision, Features

Loss = Callable[[Tensor], Tensor]
"""Of logits [B, T, V]: nats by token, [B, T]."""


class Parts(NamedTuple):
    """The parts of J by text, [B] each, nats per token."""

    nll: Tensor
    kl: Tensor
    """With the price of compute, lambda E_q[c], where it has one."""

    def loss(self, kl_weight: float) -> Tensor:
        return self.nll + kl_weight * self.kl


def estimate(guide: Guide, tokens: Tensor, loss: Loss) -> Parts:
    """The parts by one draw of the routes of tokens [B, T]; gates are as deployed."""
    walked = walk(guide.model, guide, tokens, _drawn)
    pairs = zip(walked.draws, walked.posteriors, walked.priors, strict=True)
    kl = [divergence(q.route, p.route, draw.route).flatten(1).sum(1) for draw, q, p in pairs]
    ways = zip(walked.positions, walked.posteriors, strict=True)
    kl += [
        guide.model.charge(at, Draw(route.mean, gate.mean)).flatten(1).sum(1)
        for at, (route, gate) in ways
    ]
    return Parts(loss(walked.logits).mean(1), torch.stack(kl).sum(0) / tokens.shape[1])


def _drawn(
    guide: Router, layer: int, features: Features, posterior: Latents
) -> tuple[Draw, Decision]:
    """Draw the routes, and run them as the model does; gates are as deployed."""
    route, gate = posterior
    draw = Draw(route.rsample(), gate.mean)
    model, place = guide.model, place_of(layer, features)
    opened = model.gate_execution.of_mean(gate, place=place)
    return draw, Decision(model.execution(draw.route, place), opened)


def averaged(guide: Guide, tokens: Tensor, loss: Loss, draws: int, seed: int = 0) -> Parts:
    """The parts averaged over draws, without gradients; the same random numbers for every guide."""
    torch.manual_seed(seed)
    with torch.no_grad():
        found = [estimate(guide, tokens, loss) for _ in range(draws)]
    return Parts(*(torch.stack(part).double().mean(0) for part in zip(*found, strict=True)))


def against(targets: Tensor) -> Loss:
    """-log p(y): what came, [B, T]."""
    return lambda logits: token_nll(logits, targets)


def against_prediction(guide: Guide, tokens: Tensor, past: Cache | None = None) -> Loss:
    """E[-log p(y)] for y as the deployed route predicts it: what can be known without y.

    With `past`, tokens are those that follow it.
    """
    with torch.no_grad():
        expected = guide.model.network(tokens, mean_route(guide), past).float().softmax(-1)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float().transpose(1, 2), expected.transpose(1, 2), reduction="none"
        )

    return loss


@contextmanager
def frozen(model: LanguageModel) -> Iterator[None]:
    """No gradients for the network and the prior; restored afterwards."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
