"""The generative side: the routed language model and its priors over routes and depth gates."""

from pyro_meta.models.budget import BudgetDirichlet
from pyro_meta.models.depth import DepthPrior
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.models.learned import LearnedDirichlet
from pyro_meta.models.logistic_normal import LogisticNormalPrior
from pyro_meta.models.priors import CostDirichlet, PaperDirichlet, Prior, SymmetricDirichlet

__all__ = [
    "BudgetDirichlet",
    "CostDirichlet",
    "DepthPrior",
    "LanguageModel",
    "LearnedDirichlet",
    "LogisticNormalPrior",
    "PaperDirichlet",
    "Prior",
    "SymmetricDirichlet",
]
