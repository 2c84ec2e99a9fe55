"""Draws of all latents of a whole text, each with its log prior, log guide and log likelihood.

    pi ~ q(pi),  alpha, g ~ q(alpha, g | x),  y ~ p(y | alpha, g)

Loads belong to all texts and are drawn once (`draw_loads`); given them texts are independent. From
the log densities of the parts anybody can ask how the draws would move if the prior or the
likelihood counted more (see `pyro_meta.analysis.sensitivity`). Densities of Dirichlets are taken in
float64: with a concentration of 0.05, one draw in a hundred has a component below the least number
of float32.

Shapes: S draws, L layers, G groups of heads, T tokens, K mechanisms, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.evaluation.figures import token_nll
from pyro_meta.guides import Guide, walk
from pyro_meta.guides.walk import Latents, Router, Walked
from pyro_meta.models import LanguageModel
from pyro_meta.models.language_model import Draw
from pyro_meta.network.route import Decision, Features
from pyro_meta.posterior.drawing import has_density, in_double

Loads = list[Tensor | None]
"""By layer: [S, 1, K], or [S, 1, G, K] of several groups; None where the prior has none."""


class Text(NamedTuple):
    """Draws of one text."""

    routes: Tensor
    """alpha, [S, L, G, T, K]."""
    gates: Tensor
    """g, [S, L, T]; 1 where every token runs the layer."""
    log_prior: dict[str, Tensor]
    """By site: `route` and `compute` [S, L, G, T], `depth` [S, L, T]; NaN without a density."""
    log_guide: Tensor
    """log q(alpha, g | x), [S]; NaN without a density."""
    log_likelihood: Tensor
    """log p(y_t | alpha, g), [S, T]."""
    predicted: Tensor
    """y_t drawn from p(y_t | alpha, g), [S, T]."""
    averaged: Tensor
    """p(y_t | alpha, g) averaged over draws, [T, V]."""


def draw_loads(guide: Guide, draws: int, from_prior: bool = False) -> Loads:
    """Loads of every layer, drawn from their posterior or from their prior."""
    found: Loads = []
    for layer in range(guide.model.network.shape.layers):
        of_prior = guide.model.load_dist(layer) if guide.model.has_loads else None
        dist = of_prior if from_prior else guide.load_dist(layer)
        found.append(None if dist is None else dist.sample(torch.Size([draws, 1])))
    return found


def log_density_of_loads(guide: Guide, loads: Loads) -> tuple[Tensor, Tensor] | None:
    """log p(pi) and log q(pi) of `draw_loads`, [S, L, G] each; None where the prior has none."""
    if not guide.model.has_loads:
        return None
    both = []
    for layer, load in enumerate(loads):
        assert load is not None
        dists = guide.model.load_dist(layer), guide.load_dist(layer)
        of_layer = [in_double(dist).log_prob(load.double()) for dist in dists if dist is not None]
        both.append(torch.stack(of_layer).flatten(2))  # [2, S, G]: one group has no dimension
    prior, posterior = torch.stack(both, 2)  # [S, L, G]
    return known(prior), known(posterior)


def draw_text(
    guide: Guide, tokens: Tensor, targets: Tensor, loads: Loads, draws: int, batch: int
) -> Text:
    """Draw S times what is latent in one text, tokens and targets [T].

    To be called in evaluation mode, without gradients.

    Parameters
    ----------
    guide
        Who is drawn from.
    tokens, targets
        x and y, [T].
    loads
        Draws of the loads, that the prior of the routes is given.
    draws
        S.
    batch
        Draws of one forward pass.
    """
    model = guide.model
    parts, averaged = [], None
    for span in torch.arange(draws).split(batch):
        x, y = (part.expand(len(span), -1) for part in (tokens, targets))
        some = [None if load is None else load[span] for load in loads]
        walked = walk(model, guide, x, _in_double, loads=some)
        p = walked.logits.float().softmax(-1)  # [s, T, V]
        share = p.sum(0) / draws
        averaged = share if averaged is None else averaged + share
        parts.append(
            {
                "routes": _by_group([draw.route for draw in walked.draws], model).float(),
                "gates": torch.stack(
                    [draw.gate for draw in walked.draws if draw.gate is not None], 1
                ),
                "log_guide": _log_guide(walked),
                "log_likelihood": -token_nll(walked.logits, y).double(),
                "predicted": torch.multinomial(p.flatten(0, 1), 1).view(len(span), -1),
            }
            | {f"prior/{name}": value for name, value in _log_prior(walked).items()}
        )
    assert averaged is not None
    joined = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    log_prior = {
        name.removeprefix("prior/"): value
        for name, value in joined.items()
        if name.startswith("prior/")
    }
    return Text(
        joined["routes"],
        joined["gates"],
        log_prior,
        joined["log_guide"],
        joined["log_likelihood"],
        joined["predicted"],
        averaged.cpu(),
    )


def draw_prior(
    model: LanguageModel, positions: Tensor, loads: Loads, draws: int
) -> tuple[Tensor, Tensor]:
    """Routes [S, L, G, T, K] and gates [S, L, T] at `positions` [T] from the prior, given loads."""
    size = torch.Size([draws, len(positions), *model.network.shape.of_groups])
    routes, gates = [], []
    for layer, load in enumerate(loads):
        of_mean = model.route_dist(layer, positions)
        of_gate = model.gate_dist(layer, positions, of_mean).expand(torch.Size([len(positions)]))
        dist = of_mean if load is None else model.route_dist(layer, positions, load)
        routes.append(dist.expand(size).sample())
        gates.append(of_gate.sample(torch.Size([draws])))
    return _by_group(routes, model).float().cpu(), torch.stack(gates, 1).float().cpu()


def known(log_density: Tensor) -> Tensor:
    """Log densities, NaN where there is none."""
    return torch.where(log_density.isfinite(), log_density, torch.nan)


def _in_double(
    guide: Router, layer: int, features: Features, posterior: Latents
) -> tuple[Draw, Decision]:
    """Draw every latent, of a Dirichlet in float64; each draw decides for itself what runs."""
    model = guide.model
    route, gate = in_double(posterior.route).rsample(), posterior.gate.rsample()
    runs = model.execution.of_draw(route.to(features.state.dtype))
    return Draw(route, gate), Decision(runs, model.gate_execution.of_draw(gate))


def _log_prior(walked: Walked) -> dict[str, Tensor]:
    """Log densities of the sites of the model, by layer."""
    model = walked.model
    routes, charges, gates = [], [], []
    for at, prior, draw in zip(walked.positions, walked.priors, walked.draws, strict=True):
        assert draw.gate is not None
        routes.append(in_double(prior.route).log_prob(draw.route))
        charges.append(-model.charge(at, draw))
        gates.append(prior.gate.log_prob(draw.gate))
    found = {
        "route": known(_by_group(routes, model)),
        "compute": _by_group(charges, model),
    }
    return found | ({"depth": known(torch.stack(gates, 1))} if model.gated else {})


def _log_guide(walked: Walked) -> Tensor:
    """log q of the routes and gates of a whole text, [S]; NaN without a density."""
    total = torch.zeros(len(walked.logits), dtype=torch.float64, device=walked.logits.device)
    for q, draw in zip(walked.posteriors, walked.draws, strict=True):
        assert draw.gate is not None
        if not has_density(q.route):
            return torch.full_like(total, torch.nan)
        total += in_double(q.route).log_prob(draw.route).double().flatten(1).sum(1)
        total += q.gate.log_prob(draw.gate).double().sum(1)
    return known(total)


def _by_group(layers: list[Tensor], model: LanguageModel) -> Tensor:
    """Layers of [S, T, ..], or [S, T, G, ..] of several groups, as [S, L, G, T, ..]."""
    stacked = torch.stack(layers, 1)
    if model.network.shape.groups == 1:
        return stacked.unsqueeze(2)
    return stacked.transpose(2, 3)
