"""What all parts of the routed benchmark share: sizes, device, precision, routes.

Shapes: B = 1 sequence, T tokens, L layers, H heads, d head width, D = H d.
"""

import dataclasses
import itertools
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention import Inputs, Mechanism, Sizes, build_mechanisms
from pyro_meta.attention.clock import Calls, captured, interleaved
from pyro_meta.guides import DirichletGuide, Guide
from pyro_meta.models import CostDirichlet, LanguageModel
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import Transformer
from pyro_meta.speed import MECHANISMS

FULL, WINDOW, LINEAR = range(3)
MIX = 0.10
"""The share of full attention that the targets speak of."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """Sizes and conditions of the routed benchmark; B = 1 throughout."""

    device: str = "cpu"
    precision: str = "float32"
    """float32 or bfloat16 (by autocast, as in training)."""
    repeats: int = 7
    layers: int = 4
    width: int = 256
    heads: int = 8
    window: int = 64
    vocabulary: int = 256
    seed: int = 0
    graphs: bool = False
    """Whether each call is launched as one CUDA graph."""
    mechanisms: tuple[str, ...] = MECHANISMS
    """What routes choose from, `full` first; of `MECHANISMS`."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def shape(self, length: int) -> Shape:
        return Shape(
            self.vocabulary, length, self.width, self.layers, self.heads, window=self.window
        )

    def autocast(self) -> AbstractContextManager[Any]:
        is_half = self.precision == "bfloat16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=is_half)

    def time(self, calls: Calls, repeats: int | None = None) -> dict[str, list[float]]:
        """Interleaved seconds on this device."""
        if self.graphs:
            calls = {name: captured(call) for name, call in calls.items()}
        return interleaved(
            calls, repeats or self.repeats, 1, self.device, longer_s=self.repeats / 2
        )

    def choices(self, share: float, length: int) -> Tensor:
        """Hard routes [L, 1, T]: `share` of the tokens of each layer full, at random places.

        The numbers are exact; the other mechanisms share the other tokens alike. The same share and
        length always give the same routes.
        """
        full, others = round(share * length), len(self.mechanisms) - 1
        ends = [(length - full) * number // others for number in range(others + 1)]
        counts = torch.tensor([full, *(b - a for a, b in itertools.pairwise(ends))])
        kinds = torch.arange(len(self.mechanisms)).repeat_interleave(counts)
        generator = torch.Generator().manual_seed(self.seed)
        rows = [kinds[torch.randperm(length, generator=generator)] for _ in range(self.layers)]
        return torch.stack(rows)[:, None].to(self.device)

    def gates(self, share: float, length: int) -> Tensor:
        """Hard depth gates [L, 1, T]: tokens skip `share` of all layers, at random places.

        Nobody skips the first layer; the numbers in the others are alike, and exact. More than
        (L - 1) / L cannot be had. The same share and length always give the same gates.
        """
        shut = round(share * length * self.layers / max(1, self.layers - 1))
        generator = torch.Generator().manual_seed(self.seed + 1)
        first = torch.ones(length, dtype=torch.bool)
        others = [
            torch.randperm(length, generator=generator) >= shut for _ in range(self.layers - 1)
        ]
        return torch.stack([first, *others])[:, None].to(self.device)

    def network(self, length: int) -> tuple[LanguageModel, Guide]:
        """A model of random weights and its router, in evaluation mode."""
        torch.manual_seed(self.seed)
        network = Transformer(self.shape(length), self.mechanisms)
        model = LanguageModel(network, CostDirichlet(network))
        guide = DirichletGuide(model)
        return model.to(self.device).eval(), guide.to(self.device).eval()

    def tokens(self, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.vocabulary, (1, length), generator=generator).to(self.device)


class Attention(NamedTuple):
    """Attention of one layer, without projections."""

    mechanisms: list[Mechanism]
    gain: Tensor
    inputs: Inputs

    @classmethod
    def of(cls, scene: Scene, length: int) -> "Attention":
        generator = torch.Generator().manual_seed(scene.seed)
        size = (3, 1, scene.heads, length, scene.head_width)
        q, k, v = torch.randn(size, generator=generator).to(scene.device, scene.dtype)
        built = build_mechanisms(scene.mechanisms, Sizes(scene.head_width, scene.window))
        mechanisms: list[Any] = list(built.to(scene.device))
        gain = torch.ones(len(mechanisms), scene.width, device=scene.device)
        return cls(mechanisms, gain, Inputs(q, k, v, q, k))

    def alone(self, index: int) -> Tensor:
        """One mechanism on all tokens, [1, T, D]: no gain, no dispatch."""
        mechanism = self.mechanisms[index]
        return mechanism(*self.inputs.read_by(mechanism)).transpose(1, 2).flatten(2)
