"""Guides with given loads, as simple as can be."""

from pyro_meta.guides import PriorGuide
from pyro_meta.models import LanguageModel


class Fixed(PriorGuide):
    def __init__(self, model: LanguageModel, loads: list[list[float]]) -> None:
        super().__init__(model)


class Random(Fixed):
    pass
