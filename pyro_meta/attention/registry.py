"""Mechanisms by name: those that are built in, and a user's own by import path."""

from collections.abc import Sequence

from torch import nn

from pyro_meta.attention.chunks.mechanisms import Chunk, ChunkLearned, ChunkSentence, ChunkSliding
from pyro_meta.attention.mechanisms import Full, Linear, Mechanism, Window, carries
from pyro_meta.attention.momentum import LinearMomentum
from pyro_meta.attention.sizes import Sizes
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import made
from pyro_meta.terminal.naming import find_kind

BUILT_IN: dict[str, type[Mechanism]] = {
    "full": Full,
    "window": Window,
    "linear": Linear,
    "linear_momentum": LinearMomentum,
    "chunk": Chunk,
    "chunk_sliding": ChunkSliding,
    "chunk_sentence": ChunkSentence,
    "chunk_learned": ChunkLearned,
}


def find_mechanism(name: str) -> type[Mechanism]:
    """The class that `name` stands for: a built-in's name, or an import path `module.Class`.

    Raises
    ------
    UsageError
        No such name (near matches are given), or the class is not a `Mechanism`.
    """
    return find_kind(name, BUILT_IN, Mechanism, "mechanisms")


def build_mechanisms(names: Sequence[str], sizes: Sizes) -> nn.ModuleList:
    """One instance of each named mechanism, in order; names must be distinct and not empty."""
    if not names:
        raise UsageError("mechanisms: none given; at least one is needed")
    built = [
        made(Mechanism, "abilities", "mechanisms", find_mechanism(name).of_sizes, sizes)
        for name in names
    ]
    labels = [mechanism.name for mechanism in built]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise UsageError(f"mechanisms: {', '.join(repeated)} given twice; each is allowed once")
    carrying = [mechanism.name for mechanism in built if carries(mechanism)]
    if len(carrying) > 1:
        raise UsageError(
            f"mechanisms: {', '.join(carrying)} each carry a momentum; one of a kind is allowed"
        )
    return nn.ModuleList(built)
