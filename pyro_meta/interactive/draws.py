"""Draws of the routes of one text, in the groups of ArviZ.

    posterior       route [chain, draw, layer, group, token, mechanism]   draws of q(alpha | x)
    prior           route, likewise                                       draws of p(alpha)
    log_likelihood  next_token [chain, draw, token]   log p(y_t | x_{<=t}, alpha_{<=t}), nats
    observed_data   next_token, input_token [token]

and with depth gates `depth` [chain, draw, layer, token] in the first two. A draw of the loads is
not kept. The log likelihoods of a draw sum to that of the text: tokens are not independent of each
other, so that leaving one out by weights (LOO) means nothing here.

Shapes: S draws, T tokens, L layers, G groups of heads, K mechanisms.
"""

from typing import Any

import numpy as np
import torch
import xarray
from torch import Tensor

from pyro_meta.evaluation.figures import by_group, token_nll
from pyro_meta.guides import Guide, drawn, walk
from pyro_meta.interactive.labels import coordinates
from pyro_meta.posterior.readout import draw_prior

OF_ROUTES = ("chain", "draw", "layer", "group", "token", "mechanism")
OF_GATES = ("chain", "draw", "layer", "token")


def groups_of_draws(
    guide: Guide, tokens: Tensor, targets: Tensor, pieces: list[str], draws: int, batch: int
) -> dict[str, xarray.Dataset]:
    """The groups for tokens and targets [T]; `batch` draws go through the network at a time."""
    model = guide.model
    routes, gates, likelihood = _draw(guide, tokens, targets, draws, batch)
    G = model.network.shape.groups
    prior_routes, prior_gates = draw_prior(model, len(tokens), draws)  # [S, L G, T, K], [S, L G, T]
    labels = coordinates(model.network, pieces)
    of_tokens = {name: labels[name] for name in ("token", "text")}
    groups = {
        "posterior": (routes, gates),
        "prior": (prior_routes.unflatten(1, (-1, G)), prior_gates[:, ::G]),
    }
    found = {}
    for name, (route, gate) in groups.items():
        values: dict[str, tuple[tuple[str, ...], Any]] = {"route": (OF_ROUTES, route[None].numpy())}
        if model.gated:
            values["depth"] = (OF_GATES, gate[None].numpy())
        found[name] = xarray.Dataset(values, labels | _counted(draws))
    found["log_likelihood"] = xarray.Dataset(
        {"next_token": (("chain", "draw", "token"), likelihood[None].numpy())},
        of_tokens | _counted(draws),
    )
    observed = {"next_token": targets, "input_token": tokens}
    found["observed_data"] = xarray.Dataset(
        {name: (("token",), ids.cpu().numpy()) for name, ids in observed.items()}, of_tokens
    )
    return found


def _counted(draws: int) -> dict[str, np.ndarray]:
    return {"chain": np.arange(1), "draw": np.arange(draws)}


def _draw(
    guide: Guide, tokens: Tensor, targets: Tensor, draws: int, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Routes [S, L, G, T, K], gates [S, L, T] and log likelihoods [S, T]."""
    routes, gates, likelihood = [], [], []
    for span in torch.arange(draws).split(batch):
        x, y = tokens.expand(len(span), -1), targets.expand(len(span), -1)
        walked = walk(guide.model, guide, x, drawn)
        by_layer = [by_group(one.route, 4).transpose(1, 2).float().cpu() for one in walked.draws]
        routes.append(torch.stack(by_layer, 1))
        open_gate = torch.ones(len(span), len(tokens))
        of_gates = [open_gate if d.gate is None else d.gate.float().cpu() for d in walked.draws]
        gates.append(torch.stack([gate.expand_as(open_gate) for gate in of_gates], 1))
        likelihood.append(-token_nll(walked.logits, y).double().cpu())
    return torch.cat(routes), torch.cat(gates), torch.cat(likelihood)
