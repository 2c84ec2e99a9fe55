"""A guide of one's own with an option that may be text or a number."""

from typing import Any

from pyro_meta import DirichletGuide, LanguageModel


class Named(DirichletGuide):
    """A guide with a name."""

    def __init__(self, model: LanguageModel, name: Any = "") -> None:
        super().__init__(model)
        self.name = name
