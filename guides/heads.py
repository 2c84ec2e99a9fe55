"""The small networks that posteriors come from: one of a single hidden layer for each layer."""

from collections.abc import Sequence

import torch
from torch import nn

from pyro_meta.shape import Shape


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
