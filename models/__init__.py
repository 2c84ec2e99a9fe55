"""The generative side: the routed language model and its priors over routes and depth gates."""

from pyro_meta.models.compute import ComputePotential
from pyro_meta.models.depth import DepthPrior
from pyro_meta.models.language_model import LanguageModel
from pyro_meta.models.learned import LearnedDirichlet
from pyro_meta.models.loads import LoadCategorical, LoadDirichlet, LoadPrior
from pyro_meta.models.logistic_normal import LogisticNormalPrior
from pyro_meta.models.priors import (
    CostCategorical,
    CostDirichlet,
    PaperDirichlet,
    Prior,
    SymmetricDirichlet,
)

__all__ = [
    "ComputePotential",
    "CostCategorical",
    "CostDirichlet",
    "DepthPrior",
    "LanguageModel",
    "LearnedDirichlet",
    "LoadCategorical",
    "LoadDirichlet",
    "LoadPrior",
    "LogisticNormalPrior",
    "PaperDirichlet",
    "Prior",
    "SymmetricDirichlet",
]
