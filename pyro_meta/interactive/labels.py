"""Labels of arrays: layers, groups of heads, tokens with their text, mechanisms."""

from collections.abc import Sequence
from typing import Any

from pyro_meta.analysis.posterior_file import as_text
from pyro_meta.network.protocol import Network


def coordinates(network: Network, pieces: Sequence[str]) -> dict[str, Any]:
    """Coordinates of xarray: tokens are counted from 0, and `text` is what each adds."""
    return {
        "layer": range(network.shape.layers),
        "group": range(network.shape.groups),
        "token": range(len(pieces)),
        "mechanism": network.mechanism_names,
        "text": ("token", as_text(pieces)),
    }


def row_names(network: Network) -> list[str]:
    """What people call each layer; of several groups of heads, each group of each layer."""
    L, G = network.shape.layers, network.shape.groups
    if G == 1:
        return [f"layer {layer}" for layer in range(L)]
    return [f"layer {layer}, heads {group}" for layer in range(L) for group in range(G)]
