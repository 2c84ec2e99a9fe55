"""Full attention in every layer, as a route whose gradient tells what leaving it would do.

Shapes: B sequences, T tokens, L layers, G groups of heads, K mechanisms.
"""

import torch
from torch import Tensor

from pyro_meta.errors import UsageError
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route


def fully(network: Network, tokens: Tensor) -> list[Tensor]:
    """Weights of `full` alone by layer, [B, T, K] or [B, T, G, K], whose gradients are kept.

    Raises
    ------
    UsageError
        `full` is none of the mechanisms.
    """
    names = network.mechanism_names
    if "full" not in names:
        raise UsageError(f"mechanisms: {', '.join(names)} given; full has to be among them")
    one = torch.zeros(*tokens.shape, *network.shape.of_groups, len(names), device=tokens.device)
    one[..., names.index("full")] = 1.0
    return [one.clone().requires_grad_() for _ in range(network.shape.layers)]


def along(weights: list[Tensor]) -> Route:
    """The route of given weights or choices, by layer."""

    def route(layer: int, features: Features) -> Decision:
        return Decision(weights[layer])

    return route
