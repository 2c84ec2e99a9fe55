"""The generative side: the routed language model and its priors over routes."""

from pyro_meta.models.language_model import LanguageModel
from pyro_meta.models.priors import CostDirichlet, PaperDirichlet, Prior, SymmetricDirichlet

__all__ = ["CostDirichlet", "LanguageModel", "PaperDirichlet", "Prior", "SymmetricDirichlet"]
