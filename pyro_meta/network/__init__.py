"""The network that a route steers: its layers, their sizes and what they cost."""

from pyro_meta.network.blocks import Block, MomentumBlock, PlainMomentumBlock, ResidualBlock
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import Transformer, pinned

__all__ = [
    "Block",
    "Decision",
    "Features",
    "MomentumBlock",
    "PlainMomentumBlock",
    "ResidualBlock",
    "Route",
    "Shape",
    "Transformer",
    "pinned",
]
