"""A guide of one's own with an option that may be text or a number."""

from typing import Any

from pyro_meta import DirichletGuide, LanguageModel


class Named(DirichletGuide):
    """A guide with a name."""

    def __init__(self, model: LanguageModel, name: Any = "") -> None:
        super().__init__(model)
        self.name = name


class Sized(DirichletGuide):
    """A guide with a size that may be none, and is not unless it is said."""

    def __init__(self, model: LanguageModel, size: int | None = 5, name: str | None = "a") -> None:
        super().__init__(model)
        self.size, self.label = size, name
