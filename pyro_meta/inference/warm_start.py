"""A first guess of what each token's choice is worth, before training.

Where every token attends fully, half the curvature of the log-likelihood is what it costs one token
of one group of heads to leave `full` (see `pyro_meta.inference.curvature`):

    s_k  =  1/2 (d log p(y') / d alpha_k  -  d log p(y') / d alpha_full)^2        y' ~ p(. | full)

in nats, for all layers, groups and tokens by one backward pass, and without a draw of routes. The
exact posterior of that one choice has exp(-s_k / w) as its factor of the likelihood. s_k is known
for the texts that are read; the guide learns its mean given what it sees, by regression on a
logarithmic scale (a Gamma likelihood, for which a square of a normal variable is the noise):

    log q(full) - log q(k)  =  sharpness (log E[s_k | x] - log(mean s) + AHEAD)

Training then goes on from there: what choices do together, loads and budget are its own.

Shapes: B sequences, T tokens, L layers, G groups of heads, K mechanisms.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_meta.attention.ops.precision import at_least_float32
from pyro_meta.attention.prices import macs_at
from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.guides.load import LoadGuide
from pyro_meta.inference.schedules import WarmStart
from pyro_meta.network.leaving_full import fully
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features

AHEAD = 4.0  # nats: at first who costs more than e^-4 of the average to leave `full` stays there
ROUND = 10  # texts that are kept in memory, and read again and again
LEAST = 0.02  # of the mean of a layer and group: below, harms are all alike
DECAY, CLIP = 0.3, 1.0


class Told(NamedTuple):
    """What a text tells of its choices."""

    features: list[Features]
    """By layer, along full attention."""
    harms: Tensor
    """s, [L, B, T, G, K], 0 for `full` itself and where a mechanism sees all that it sees."""


def warm_start(
    guide: Guide,
    texts: Iterable[Tensor],
    options: WarmStart,
) -> None:
    """Fit a guide's posterior means to what texts tell of each choice, in place.

    Parameters
    ----------
    guide
        A guide that begins from logits, see `begin_at`.
    texts
        Tokens [B, T] each, `options.texts` of them.
    options
        How.

    Raises
    ------
    UsageError
        The guide has no logits to begin from, or `full` is none of the mechanisms; or texts are so
        short that no mechanism differs from it.
    """
    network = guide.model.network
    updates, done, coming = options.passes * options.texts, 0, iter(texts)
    typical = floor = torch.zeros(())
    optimiser: torch.optim.Optimizer | None = None
    order = torch.Generator().manual_seed(options.texts)
    while some := list(islice(coming, ROUND)):
        require_startable(guide, some[0].shape[1])
        assert isinstance(guide, HeadsGuide | LoadGuide)
        full = network.mechanism_names.index("full")
        found = [told(network, tokens, guide.reads_near) for tokens in some]
        if optimiser is None:
            mean = torch.stack([one.harms.mean((1, 2)) for one in found]).mean(0)  # [L, G, K]
            typical = mean[mean > 0].mean()
            floor = LEAST * mean / typical
            _begin(guide, found, mean / typical, full, options.sharpness)
            optimiser = torch.optim.AdamW(_grouped(guide), lr=options.lr)
        for _ in range(options.passes):
            for index in torch.randperm(len(found), generator=order).tolist():
                for group in optimiser.param_groups:
                    group["lr"] = options.lr * (1 - done / updates)
                one = found[index]
                with torch.autocast(one.harms.device.type, enabled=False):
                    loss = deviance(guide, one, typical, floor, full, options.sharpness)
                loss.backward()
                nn.utils.clip_grad_norm_(_moved(guide), CLIP)
                optimiser.step()
                optimiser.zero_grad()
                done += 1


def _begin(
    guide: HeadsGuide | LoadGuide, found: list[Told], mean: Tensor, full: int, sharpness: float
) -> None:
    """Begin at what all tokens of a layer and group say together, harms [L, G, K] over typical."""
    logits = -sharpness * (mean.clamp(min=1e-9).log() + AHEAD)
    logits[..., full] = 0.0
    for layer, of_layer in enumerate(logits):
        guide.begin_at(layer, of_layer)
        if isinstance(guide, HeadsGuide):
            read = torch.cat([guide.read(one.features[layer]).flatten(0, -2) for one in found])
            if read.shape[-1] == guide.centre.shape[-1]:  # else it reads something of its own
                guide.standardise(layer, read)


def require_startable(guide: Guide, length: int) -> None:
    """Raise `UsageError` as `warm_start`, for texts of so many tokens."""
    if not isinstance(guide, HeadsGuide | LoadGuide):
        raise UsageError(
            f"warm.texts: {type(guide).__name__} has no logits to begin from; a guide with heads, "
            "or LoadGuide, has; --warm.texts 0 does without"
        )
    names = guide.model.network.mechanism_names
    if "full" not in names:
        raise UsageError(
            f"warm.texts: mechanisms are {', '.join(names)}, and full is not among them; "
            "--warm.texts 0 does without"
        )
    if not _differs(guide.model.network, length).any():
        raise UsageError(
            f"warm.texts: in {length} tokens every mechanism sees all that full attention sees; "
            "longer texts, by --context, are allowed"
        )


def told(network: Network, tokens: Tensor, reads_near: bool = False) -> Told:
    """What a text [B, T] tells, from one forward and one backward pass.

    `reads_near` says whether features are kept with what is near.
    """
    weights = fully(network, tokens)
    features: list[Features] = []

    def noting(layer: int, seen: Features) -> Decision:
        features.append(seen.kept(reads_near))
        return Decision(weights[layer])

    with torch.enable_grad():
        log_p = torch.log_softmax(at_least_float32(network(tokens, noting)), -1)
        drawn = torch.distributions.Categorical(logits=log_p.detach(), validate_args=False).sample()
        slopes = torch.stack(torch.autograd.grad(log_p.gather(-1, drawn[..., None]).sum(), weights))
    slopes = slopes if network.shape.groups > 1 else slopes.unsqueeze(-2)
    full = network.mechanism_names.index("full")
    harms = 0.5 * (slopes - slopes[..., full, None]).square()
    return Told(features, harms * _differs(network, tokens.shape[1])[:, None])


def _differs(network: Network, length: int) -> Tensor:
    """Where a mechanism costs another number of MACs than `full`, booleans [T, K].

    Elsewhere it sees the same keys, and what sets them apart is rounding.
    """
    place = torch.arange(length, dtype=torch.float64)
    macs = torch.stack([macs_at(one, place) for one in network.mechanisms], -1)
    full = macs[:, network.mechanism_names.index("full"), None]
    return (macs != full).to(network.device)


def deviance(
    guide: Guide, one: Told, typical: Tensor, floor: Tensor, full: int, sharpness: float
) -> Tensor:
    """Of harms, given what the guide says of them: y / m + log m, averaged.

    y are harms over the typical one, m what the guide takes them for. `floor` [L, G, K] is added to
    y. Tokens for which a mechanism sees all that `full` sees are left out.
    """
    parts = []
    for layer, features in enumerate(one.features):
        mean = guide.routes(layer, features).mean
        logs = (mean if mean.dim() == 4 else mean.unsqueeze(2)).log()  # [B, T, G, K]
        told_log = (logs[..., full, None] - logs) / sharpness - AHEAD
        harms = one.harms[layer]
        counts = (harms > 0).float()
        found = (harms / typical + floor[layer]) * torch.exp(-told_log.clamp(min=-30)) + told_log
        parts.append((found * counts).sum() / counts.sum().clamp(min=1))
    return torch.stack(parts).mean()


def _moved(guide: Guide) -> list[nn.Parameter]:
    """The parameters that the fit moves: those of the posterior of routes."""
    of_loads = {id(one) for one in guide.moves_loads}
    return [one for one in guide.parameters() if id(one) not in of_loads]


def _grouped(guide: Guide) -> list[dict[str, Any]]:
    """The same, of which only the weights of heads decay."""
    moved = _moved(guide)
    is_weight = [isinstance(guide, HeadsGuide) and one.dim() > 1 for one in moved]
    return [
        {
            "params": [one for one, ours in zip(moved, is_weight, strict=True) if ours == decays],
            "weight_decay": DECAY * decays,
        }
        for decays in (True, False)
    ]
