"""Positive numbers kept between two bounds by a sigmoid on their logarithm."""

import math

import torch
from torch import Tensor


def bounded(x: Tensor, least: float, most: float) -> Tensor:
    """least (most / least)^sigmoid(x): any real x to between `least` and `most`."""
    return least * (torch.sigmoid(x) * math.log(most / least)).exp()


def unbounded(value: float, least: float, most: float) -> float:
    """The x at which `bounded` gives `value`, strictly between `least` and `most`."""
    share = math.log(value / least) / math.log(most / least)
    return math.log(share / (1 - share))
