"""Draws of the routes on validation text, written for ArviZ.

    posterior       route [chain, draw, layer, token, mechanism]       draws of q(alpha | x)
    prior           route, likewise                                    draws of p(alpha)
    observed_data   next_token [token], input_token, text
    sample_stats    log_likelihood [chain, draw, token], kl [chain, draw, layer, token],
                    posterior_mean [layer, token, mechanism], nll_soft and nll_hard [token]

Every draw walks the network: the features of a layer depend on the routes drawn below it.
"""

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_meta.analysis import _arviz
from pyro_meta.evaluation import evaluating, token_nll
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.simplex import divergence, harden, uncertainty
from pyro_meta.transformer import Features
from pyro_meta.vocabulary import Vocabulary

DRAWS = 100


def write_posterior(
    path: Path,
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    vocabulary: Vocabulary,
    batch: int,
    seed: int,
    draws: int = DRAWS,
) -> None:
    """Write posterior.nc for tokens and targets [B, T] at `path`; independent draws, one chain."""
    network = model.network
    device = network.embedding.weight.device
    tokens, targets = (part.to(device) for part in windows)
    torch.manual_seed(seed)
    with evaluating(model, guide):
        routes, kl, nll = _draw_posterior(model, guide, tokens, targets, draws, batch)
        prior = _draw_prior(model, tokens, draws)
        mean, nll_soft = _walk_means(model, guide, tokens, targets, hard=False)
        _, nll_hard = _walk_means(model, guide, tokens, targets, hard=True)
    B, T = tokens.shape
    coords = {
        "chain": [0],
        "draw": np.arange(draws),
        "layer": np.arange(network.shape.layers),
        "token": np.arange(B * T),
        "mechanism": network.mechanism_names,
        "sequence": ("token", np.repeat(np.arange(B), T)),
        "position": ("token", np.tile(np.arange(T), B)),
    }
    route_dims = ("chain", "draw", "layer", "token", "mechanism")
    pieces = [piece for row in tokens.tolist() for piece in vocabulary.pieces(row)]
    shown = [piece.replace("\0", "\u2400") for piece in pieces]  # netCDF strings end at a NUL

    def group(**variables: tuple[tuple[str, ...], np.ndarray]) -> xr.Dataset:
        used = {dim for dims, _ in variables.values() for dim in dims}
        kept = {
            name: value
            for name, value in coords.items()
            if (value[0] if isinstance(value, tuple) else name) in used
        }
        return xr.Dataset(dict(variables), coords=kept)

    _arviz.save(
        {
            "posterior": group(route=(route_dims, routes[None])),
            "prior": group(route=(route_dims, prior[None])),
            "observed_data": group(
                next_token=(("token",), targets.cpu().numpy().ravel()),
                input_token=(("token",), tokens.cpu().numpy().ravel()),
                text=(("token",), np.array(shown, dtype=object)),
            ),
            "sample_stats": group(
                log_likelihood=(("chain", "draw", "token"), -nll[None]),
                kl=(("chain", "draw", "layer", "token"), kl[None]),
                posterior_mean=(("layer", "token", "mechanism"), mean),
                nll_soft=(("token",), nll_soft),
                nll_hard=(("token",), nll_hard),
            ),
        },
        path,
    )


def _draw_posterior(
    model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor, draws: int, batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Routes [S, L, N, K], KL [S, L, N] and -log p(y | alpha) [S, N] of S draws."""
    B, T = tokens.shape
    L, K = model.network.shape.layers, len(model.network.mechanisms)
    routes = np.empty((draws * B, L, T, K), np.float32)
    kl = np.empty((draws * B, L, T), np.float32)
    nll = np.empty((draws * B, T), np.float32)
    row_of = torch.arange(draws * B, device=tokens.device) % B
    for rows in torch.arange(draws * B).split(batch):
        span = slice(int(rows[0]), int(rows[-1]) + 1)

        def route(layer: int, features: Features, span: slice = span) -> Tensor:
            law = guide.posterior(layer, features)
            draw = law.rsample()
            routes[span, layer] = draw.cpu().numpy()
            prior = model.prior(layer, features.positions).expand(law.batch_shape)
            kl[span, layer] = divergence(law, prior, draw).cpu().numpy()
            return harden(draw, uncertainty(law), guide.hard_below)

        chosen = row_of[span]
        logits = model.network(tokens[chosen], route)
        nll[span] = token_nll(logits, targets[chosen]).cpu().numpy()

    def by_token(array: np.ndarray) -> np.ndarray:  # [S B, L, T, ...] -> [S, L, B T, ...]
        split = array.reshape(draws, B, *array.shape[1:])
        return np.moveaxis(split, 1, 2).reshape(draws, L, B * T, *array.shape[3:])

    return by_token(routes), by_token(kl), nll.reshape(draws, B * T)


def _draw_prior(model: LanguageModel, tokens: Tensor, draws: int) -> np.ndarray:
    """Routes [S, L, N, K] drawn from the prior."""
    B, T = tokens.shape
    positions = torch.arange(T, device=tokens.device)
    layers = [
        model.prior(layer, positions).expand(torch.Size([B, T])).sample(torch.Size([draws]))
        for layer in range(model.network.shape.layers)
    ]
    stacked = torch.stack(layers, 1)  # [S, L, B, T, K]
    return stacked.flatten(2, 3).float().cpu().numpy()


def _walk_means(
    model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor, hard: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means [L, N, K] along the mean route, and losses [N]."""
    follow = guide.mean_route(hard)
    means: list[Tensor] = []

    def route(layer: int, features: Features) -> Tensor:
        means.append(guide.posterior(layer, features).mean)
        return follow(layer, features)

    nll = token_nll(model.network(tokens, route), targets)
    stacked = torch.stack(means).flatten(1, 2)
    return stacked.float().cpu().numpy(), nll.flatten().cpu().numpy()
