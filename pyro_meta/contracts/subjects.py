"""What is put to the test: how to build it, small and repeatable, and what it gives.

Shapes: B sequences, T tokens, K mechanisms.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_meta.attention import Mechanism
from pyro_meta.contracts.checks import EXACT, reseed
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import DepthGuide, Guide, along_means, walk
from pyro_meta.guides.walk import Latents
from pyro_meta.models import DepthPrior, LanguageModel, Prior
from pyro_meta.network.blocks import Block
from pyro_meta.network.route import Features
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import Transformer

SHAPE = Shape(vocabulary=13, context=64, width=16, layers=2, heads=2, window=5)
MECHANISMS = ("full", "window", "linear")
B, T, K = 3, 20, len(MECHANISMS)


@dataclass(frozen=True)
class Size:
    """How large what is tested is, and how exactly it is computed."""

    shape: Shape = SHAPE
    mechanisms: int = K
    rows: int = B
    length: int = T
    ends: tuple[int, ...] = (1, 2, 7, 16, 19)
    """Where texts are cut."""
    dtype: torch.dtype = torch.float64
    """Where outputs are compared."""
    tolerance: float = EXACT
    ways: tuple[bool, ...] = (False, True)
    """Along soft routes, along hard ones."""

    def text(self, seed: int = 7) -> tuple[Tensor, Tensor]:
        """Random tokens and targets [rows, length]."""
        generator = torch.Generator().manual_seed(seed)
        size = (self.rows, self.length + 1)
        both = torch.randint(self.shape.vocabulary, size, generator=generator)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def others(self, tokens: Tensor) -> Tensor:
        """Another token in place of each."""
        return (tokens + 1) % self.shape.vocabulary

    def features(self, seed: int = 7) -> Features:
        """Random features of a layer, of [rows, length] tokens."""
        generator = torch.Generator().manual_seed(seed)
        size = (2, self.rows, self.length, self.shape.width)
        state, normed = torch.randn(size, generator=generator).to(torch.get_default_dtype())
        return Features(self.text(seed)[0], state, normed, torch.arange(self.length))


SMALL = Size()


@dataclass(frozen=True)
class MechanismSubject:
    """A mechanism; by itself of heads 8 wide and, if it has one, a window of 5."""

    make: Callable[[], Mechanism]

    def build(self, seed: int = 0) -> Mechanism:
        reseed(seed)
        return self.make()


@dataclass(frozen=True)
class BlockSubject:
    """A block, in a network of two layers, one of whose mechanisms carries a momentum."""

    make: Callable[[Shape, Sequence[str], int], Block]
    shape: Shape = SHAPE

    @property
    def size(self) -> Size:
        """What it is tested on."""
        return Size(self.shape)

    def build(self, seed: int = 0) -> Transformer:
        reseed(seed)
        return Transformer(self.shape, ("full", "window", "linear_momentum"), self.make)


Pair = tuple[LanguageModel, Guide]


def beside(
    make_prior: Callable[[Transformer], Prior], make_guide: Callable[[LanguageModel], Guide]
) -> Callable[[], Pair]:
    """Makes a model of two layers and its guide."""

    def make() -> Pair:
        network = Transformer(SHAPE, MECHANISMS)
        model = LanguageModel(network, make_prior(network))
        return model, make_guide(model)

    return make


def gated_beside(
    make_prior: Callable[[Transformer], Prior],
    make_guide: Callable[[LanguageModel], Guide],
    make_depth_prior: Callable[[Transformer], DepthPrior],
    make_depth_guide: Callable[[LanguageModel], DepthGuide],
) -> Callable[[], Pair]:
    """The same with depth gates."""

    def make() -> Pair:
        network = Transformer(SHAPE, MECHANISMS)
        model = LanguageModel(network, make_prior(network), make_depth_prior(network))
        guide = make_guide(model)
        guide.depth = make_depth_guide(model)
        return model, guide

    return make


@dataclass(frozen=True)
class Router(ABC):
    """A prior and a guide that accepts it, in a model; one of both is the subject."""

    make: Callable[[], Pair]
    size: Size = SMALL

    call: ClassVar[str] = "forward()"
    """What of the subject is asked."""
    is_of_text: ClassVar[bool] = False
    """Whether its distributions have a batch of tokens [B, T], and not of positions [T]."""

    @property
    def event(self) -> tuple[int, ...]:
        """Event shape of its distributions."""
        return (self.size.mechanisms,)

    @property
    def layers(self) -> range:
        """Layers that have such a distribution."""
        return range(self.size.shape.layers)

    def build(self, seed: int = 0) -> Pair:
        reseed(seed)
        return self.make()

    def prior_at(self, model: LanguageModel, layer: int, positions: Tensor) -> Distribution:
        """The prior, or what the subject is a posterior of, at `positions` [T]."""
        return model.route_dist(layer, positions)

    def of(self, latents: Latents) -> Distribution:
        """The distribution of the subject's latent among those of a layer."""
        return latents.route

    def walk(
        self, model: LanguageModel, guide: Guide, tokens: Tensor, hard: bool = False
    ) -> tuple[list[Distribution], Tensor]:
        """The posterior of each layer along the mean route, and the logits at its end."""
        walked = walk(model, guide, tokens, along_means(hard))
        return [self.of(walked.posteriors[layer]) for layer in self.layers], walked.logits

    @abstractmethod
    def module(self, model: LanguageModel, guide: Guide) -> nn.Module:
        """The subject itself."""

    @abstractmethod
    def distributions(
        self, model: LanguageModel, guide: Guide, tokens: Tensor
    ) -> list[Distribution]:
        """The subject's distribution of each layer for tokens [B, T], as it is."""

    @abstractmethod
    def distribution_at(
        self, model: LanguageModel, guide: Guide, layer: int, features: Features
    ) -> Distribution:
        """The subject's distribution where a layer has these features."""


class PriorSubject(Router):
    """A prior over routes, beside a guide."""

    def module(self, model: LanguageModel, guide: Guide) -> nn.Module:
        return model.prior

    def distributions(
        self, model: LanguageModel, guide: Guide, tokens: Tensor
    ) -> list[Distribution]:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return [self.prior_at(model, layer, positions) for layer in self.layers]

    def distribution_at(
        self, model: LanguageModel, guide: Guide, layer: int, features: Features
    ) -> Distribution:
        return self.prior_at(model, layer, features.positions)


class GuideSubject(Router):
    """A guide of routes, beside a prior."""

    call = "posterior()"
    is_of_text = True

    def module(self, model: LanguageModel, guide: Guide) -> nn.Module:
        return guide

    def distributions(
        self, model: LanguageModel, guide: Guide, tokens: Tensor
    ) -> list[Distribution]:
        return self.walk(model, guide, tokens)[0]

    def distribution_at(
        self, model: LanguageModel, guide: Guide, layer: int, features: Features
    ) -> Distribution:
        return guide.posterior(layer, features)


class _Gated(Router):
    """A prior over depth gates and a guide of them, beside a prior and a guide of routes."""

    @property
    def event(self) -> tuple[int, ...]:
        return ()

    @property
    def layers(self) -> range:
        return range(1, self.size.shape.layers)

    def prior_at(self, model: LanguageModel, layer: int, positions: Tensor) -> Distribution:
        return model.gate_dist(layer, positions, model.route_dist(layer, positions))

    def of(self, latents: Latents) -> Distribution:
        return latents.gate


class DepthPriorSubject(_Gated, PriorSubject):
    """A prior over depth gates."""

    def module(self, model: LanguageModel, guide: Guide) -> nn.Module:
        assert model.depth is not None
        return model.depth


class DepthGuideSubject(_Gated, GuideSubject):
    """A guide of depth gates."""

    def module(self, model: LanguageModel, guide: Guide) -> nn.Module:
        assert guide.depth is not None
        return guide.depth

    def distribution_at(
        self, model: LanguageModel, guide: Guide, layer: int, features: Features
    ) -> Distribution:
        assert guide.depth is not None
        return guide.depth.posterior(layer, features)


def still_distributions(subject: Router, pair: Pair, tokens: Tensor) -> list[Distribution]:
    """The subject's distributions in evaluation mode, without gradients, expanded to [B, T]."""
    with evaluating(*pair):
        distributions = subject.distributions(*pair, tokens)
        return [dist.expand(tokens.shape) for dist in distributions]
