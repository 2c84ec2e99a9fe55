"""The small networks that posteriors come from: one of a single hidden layer for each layer."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from pyro_meta.network.protocol import Network
from pyro_meta.network.shape import Shape


def default_width(shape: Shape) -> int:
    """Width of the hidden layer: an eighth of the model's, about 1% of its parameters."""
    return max(1, shape.width // 8)


def make_heads(inputs: int, hidden: int, bias: Sequence[Sequence[float]]) -> nn.ModuleList:
    """One network for each row of `bias`, which is what its outputs are near at the start."""

    def head(start: Sequence[float]) -> nn.Sequential:
        first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, len(start))
        nn.init.normal_(last.weight, std=0.02)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(start))
        return nn.Sequential(first, nn.GELU(), last)

    return nn.ModuleList(map(head, bias))


CLOSE_BEHIND = 0.5  # logits by which the second follows the first at the start


Posterior = TypeVar("Posterior", bound=Callable[..., Any])


def of_own_token(posterior: Posterior) -> Posterior:
    """Declare that a `posterior` looks at each token's own features, tokens or position alone.

    Then generation asks it for the newest token, and not for the whole text again with every one.
    A subclass that defines another posterior declares it anew, or not.
    """
    setattr(posterior, "is_of_own_token", True)  # noqa: B010
    return posterior


def leads(network: Network, lead: float) -> list[list[float]]:
    """Logits [L][K] at the start: those lead that the network names (`leading_mechanisms`)."""
    close = lead, max(0.0, lead - CLOSE_BEHIND)
    ahead = [dict(zip(names, close, strict=False)) for names in network.leading_mechanisms]
    return [[layer.get(name, 0.0) for name in network.mechanism_names] for layer in ahead]


FLOOR = 0.05  # below this, float32 draws of a Dirichlet are clamped and their gradients wild


LEAST_TOTAL, MOST_TOTAL = 1.0, 900.0  # above, the closed-form KL loses digits in float32
