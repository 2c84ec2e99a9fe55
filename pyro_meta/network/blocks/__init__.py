"""Layers of the transformer, by name; one of a person's own is named by its import path."""

from pyro_meta.network.blocks.base import Block, Stream
from pyro_meta.network.blocks.momentum import MomentumBlock, PlainMomentumBlock
from pyro_meta.network.blocks.residual import ResidualBlock
from pyro_meta.network.blocks.routed_attention import MLP, RoutedAttention, Surroundings
from pyro_meta.terminal.naming import find_kind

__all__ = [
    "BLOCKS",
    "MLP",
    "Block",
    "MomentumBlock",
    "PlainMomentumBlock",
    "ResidualBlock",
    "RoutedAttention",
    "Stream",
    "Surroundings",
    "find_block",
]

BLOCKS: dict[str, type[Block]] = {
    "residual": ResidualBlock,
    "momentum": MomentumBlock,
    "plain_momentum": PlainMomentumBlock,
}


def find_block(name: str) -> type[Block]:
    """The class that `name` stands for: a built-in's name, or an import path `module.Class`.

    Raises
    ------
    UsageError
        No such name (near matches are given), or the class is not a `Block`.
    """
    return find_kind(name, BLOCKS, Block, "block")
