"""What model, guides, evaluation, read-out, study and report ask of a network, and no more."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyro_meta.attention import Cache, Mechanism
from pyro_meta.network.route import Route
from pyro_meta.network.shape import Shape


class Network(Protocol):
    """A causal language model, an `nn.Module`, whose every layer asks a route what to do.

    Shapes: B sequences, T tokens, D width, V vocabulary.
    """

    shape: Shape
    """Its sizes: layers, width, heads, groups of heads, vocabulary, context."""

    @property
    def mechanisms(self) -> list[Mechanism]:
        """The mechanisms of a layer, in the order of the weights, each with its costs."""

    @property
    def mechanism_names(self) -> list[str]: ...

    @property
    def layers(self) -> Sequence[nn.Module]:
        """What runs one after the other, layer by layer."""

    @property
    def leading_mechanisms(self) -> list[tuple[str, ...]]:
        """Which mechanisms each of L layers should begin with: the first, and who comes second."""

    @property
    def shows_near(self) -> bool:
        """Whether features tell what window attention gives (`Features.near`)."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(
        self,
        tokens: Tensor,
        route: Route,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of the next token, [B, T, V], for tokens [B, T]; see `Transformer.forward`."""

    def states(
        self,
        tokens: Tensor,
        route: Route,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """What `readout` turns into logits, [B, T, D]."""

    def readout(self, states: Tensor) -> Tensor:
        """Logits [.., V] of states [.., D]."""

    def new_cache(self, rows: int, keeps_features: bool = True) -> Cache:
        """An empty cache for texts in `rows` rows."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights; what requires no gradient stays as it is."""

    def dense_macs(self, skipped: float = 0.0) -> float:
        """MACs of one token outside attention and router; `skipped` is the mean number of layers
        that it skips."""

    def compile_blocks(self) -> None:
        """Compile every layer in place."""

    def describe(self) -> dict[str, Any]:
        """What has to agree for weights to mean the same, in types of JSON."""
