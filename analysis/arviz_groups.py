"""Parts of a run as ArviZ's own functions take them.

posterior.nc holds routes token by token. What one compares and draws are figures of a whole draw,
such as the share that each mechanism has of a layer's tokens.

Shapes: S draws, L layers (and groups), M drawn tokens, K mechanisms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from pyro_meta.analysis import arviz_versions
from pyro_meta.analysis.diversity import Array
from pyro_meta.analysis.reading import Reading

SEED = 0


def shares_by_draw(reading: Reading) -> Array:
    """Shares in every draw of the posterior, over all drawn tokens, [S, L, K]."""
    return reading.draws.mean(2, dtype=float)


def of_shares(
    reading: Reading, rows: Sequence[int], mechanisms: Sequence[int], label: Callable[[str], str]
) -> Any:
    """Shares in posterior and prior draws, `share` [1, S, layer, mechanism], of some of both.

    `label` makes a mechanism's name fit to be shown.
    """
    groups = {"posterior": shares_by_draw(reading), "prior": reading.prior_draw_shares}
    names = {
        "layer": [reading.layer_names[row].removeprefix("layer ") for row in rows],
        "mechanism": [label(reading.mechanisms[k]) for k in mechanisms],
    }
    dims = {"share": ("layer", "mechanism")}
    return arviz_versions.from_datasets(
        {
            name: dataset({"share": values[:, rows][..., mechanisms]}, dims, names)
            for name, values in groups.items()
        },
        {},
    )


def dataset(
    values: Mapping[str, Array],
    dims: Mapping[str, tuple[str, ...]],
    names: Mapping[str, Sequence[Any]] | None = None,
) -> xr.Dataset:
    """A group of one chain from values [S, ..], whose further dimensions are named."""
    given = {
        name: (("chain", "draw", *dims.get(name, ())), value[None])
        for name, value in values.items()
    }
    found = xr.Dataset(given).assign_coords(names or {})
    known = {dim: np.arange(size) for dim, size in found.sizes.items() if dim not in found.coords}
    return found.assign_coords(known)


def of_predictions(reading: Reading) -> Any:
    """What came and what was predicted, as ranks of ids by frequency: `rank` [M], [1, S, M].

    Ids are names and have no order. Ranked by how often they come, 0 the commonest, they do. Among
    those of one rank chance decides: each lies anywhere between it and the next, so that the rank
    of what came among the predictions is uniform if they are right (a randomised PIT, Czado et al.
    2009, Biometrics 65).
    """
    rng = np.random.default_rng(SEED)
    everywhere = [reading.ids, reading.targets, reading.predicted.ravel()]
    found, which = np.unique(np.concatenate(everywhere), return_inverse=True)
    counts = np.bincount(which[: len(reading.ids)], minlength=len(found))
    rank = np.empty(len(found))
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(found))
    _, came, drawn = np.split(rank[which], np.cumsum([len(one) for one in everywhere[:2]]))
    predicted = drawn.reshape(reading.predicted.shape)
    predicted += rng.random(predicted.shape)
    came += rng.random(came.shape)
    observed = xr.Dataset({"rank": ("token", came)}, coords={"token": np.arange(len(came))})
    return arviz_versions.from_datasets(
        {
            "posterior_predictive": dataset({"rank": predicted}, {"rank": ("token",)}),
            "observed_data": observed,
        },
        {},
    )
