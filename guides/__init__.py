"""The inference side: amortised posteriors over routes and depth gates, one file a guide."""

from pyro_meta.guides.base import Guide
from pyro_meta.guides.categorical import CategoricalGuide
from pyro_meta.guides.concrete import ConcreteGuide
from pyro_meta.guides.depth import BetaDepthGuide, DepthGuide, PointDepthGuide
from pyro_meta.guides.dirichlet import DirichletGuide
from pyro_meta.guides.fixed_loads import FixedGuide, LayersGuide, PeriodicGuide, RandomGuide
from pyro_meta.guides.load import LoadGuide
from pyro_meta.guides.logistic_normal import LogisticNormalGuide
from pyro_meta.guides.networks import of_own_token
from pyro_meta.guides.paper import PaperGuide
from pyro_meta.guides.point import PointGuide
from pyro_meta.guides.prior import PriorGuide
from pyro_meta.guides.table import TokenTableGuide
from pyro_meta.guides.walk import Walked, along_means, drawn, mean_route, walk

__all__ = [
    "BetaDepthGuide",
    "CategoricalGuide",
    "ConcreteGuide",
    "DepthGuide",
    "DirichletGuide",
    "FixedGuide",
    "Guide",
    "LayersGuide",
    "LoadGuide",
    "LogisticNormalGuide",
    "PaperGuide",
    "PeriodicGuide",
    "PointDepthGuide",
    "PointGuide",
    "PriorGuide",
    "RandomGuide",
    "TokenTableGuide",
    "Walked",
    "along_means",
    "drawn",
    "mean_route",
    "of_own_token",
    "walk",
]
