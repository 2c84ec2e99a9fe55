"""Draws of the routes of one text, in the groups of ArviZ.

    posterior            route [chain, draw, layer, group, token, mechanism]   draws of q(alpha | x)
    prior                route, likewise                                       draws of p(alpha)
    posterior_predictive next_token [chain, draw, token]    drawn from p(y_t | x_{<=t}, alpha_{<=t})
    log_prior            route, and what else the draws are charged by site, nats
    log_likelihood       next_token [chain, draw, token]   log p(y_t | x_{<=t}, alpha_{<=t}), nats
    observed_data        next_token, input_token [token]

With loads `load` [chain, draw, layer, group, mechanism], and with depth gates `depth` [chain, draw,
layer, token] stand in prior and posterior, too. The log likelihoods of a draw sum to that of the
text: tokens are not independent of each other, so that leaving one out by weights (LOO) means
nothing here.

Shapes: S draws, T tokens, L layers, G groups of heads, K mechanisms.
"""

from typing import Any

import numpy as np
import torch
import xarray
from torch import Tensor

from pyro_meta.guides import Guide
from pyro_meta.interactive.labels import coordinates
from pyro_meta.posterior import text_draws
from pyro_meta.posterior.text_draws import Loads

OF_ROUTES = ("chain", "draw", "layer", "group", "token", "mechanism")
OF_LOADS = ("chain", "draw", "layer", "group", "mechanism")
OF_GATES = ("chain", "draw", "layer", "token")
OF_TOKENS = ("chain", "draw", "token")

Values = dict[str, tuple[tuple[str, ...], Any]]


def groups_of_draws(
    guide: Guide, tokens: Tensor, targets: Tensor, pieces: list[str], draws: int, batch: int
) -> dict[str, xarray.Dataset]:
    """The groups for tokens and targets [T]; `batch` draws go through the network at a time."""
    model = guide.model
    loads = text_draws.draw_loads(guide, draws)
    prior_loads = text_draws.draw_loads(guide, draws, from_prior=True)
    text = text_draws.draw_text(guide, tokens, targets, loads, draws, batch)
    positions = torch.arange(len(tokens), device=tokens.device)
    routes, gates = text_draws.draw_prior(model, positions, prior_loads, draws)
    of_token = {"next_token": targets, "input_token": tokens}
    groups: dict[str, Values] = {
        "posterior": _latents(text.routes, text.gates, loads, bool(model.gated)),
        "prior": _latents(routes, gates, prior_loads, bool(model.gated)),
        "posterior_predictive": {"next_token": (OF_TOKENS, _one_chain(text.predicted))},
        "log_prior": {
            name: ((OF_GATES if name == "depth" else OF_ROUTES[:-1]), _one_chain(value))
            for name, value in text.log_prior.items()
        },
        "log_likelihood": {"next_token": (OF_TOKENS, _one_chain(text.log_likelihood))},
        "observed_data": {name: (("token",), ids.cpu().numpy()) for name, ids in of_token.items()},
    }
    if (densities := text_draws.log_density_of_loads(guide, loads)) is not None:
        groups["log_prior"]["load"] = (OF_LOADS[:-1], _one_chain(densities[0].cpu()))
    labels = coordinates(model.network, pieces)
    labels |= {"chain": np.arange(1), "draw": np.arange(draws)}
    return {name: _labelled(values, labels) for name, values in groups.items()}


def _latents(routes: Tensor, gates: Tensor, loads: Loads, is_gated: bool) -> Values:
    """Draws of a posterior or prior: routes [S, L, G, T, K], gates [S, L, T] and loads."""
    found: Values = {"route": (OF_ROUTES, _one_chain(routes))}
    if is_gated:
        found["depth"] = (OF_GATES, _one_chain(gates))
    known = [load for load in loads if load is not None]
    if known:
        by_group = [load.reshape(len(load), -1, load.shape[-1]) for load in known]
        found["load"] = (OF_LOADS, _one_chain(torch.stack(by_group, 1).cpu()))
    return found


def _one_chain(values: Tensor) -> np.ndarray:
    return values[None].numpy()


def _labelled(values: Values, labels: dict[str, Any]) -> xarray.Dataset:
    """With the labels of the dimensions that there are."""
    dims = {dim for of_value, _ in values.values() for dim in of_value}
    kept = {name: label for name, label in labels.items() if name in dims}
    if "token" in dims:
        kept["text"] = labels["text"]
    return xarray.Dataset(values, kept)
