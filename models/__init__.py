"""The generative side: the routed language model and its priors over routes."""

from pyro_meta.models.budget import BudgetDirichlet
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.models.learned import LearnedDirichlet
from pyro_meta.models.logistic_normal import LogisticNormalPrior
from pyro_meta.models.priors import CostDirichlet, PaperDirichlet, Prior, SymmetricDirichlet

__all__ = [
    "BudgetDirichlet",
    "CostDirichlet",
    "LanguageModel",
    "LearnedDirichlet",
    "LogisticNormalPrior",
    "PaperDirichlet",
    "Prior",
    "SymmetricDirichlet",
]
