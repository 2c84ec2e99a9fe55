"""The inference side: amortised posteriors over routes, one file a guide."""

from pyro_meta.guides.base import Guide
from pyro_meta.guides.dirichlet import DirichletGuide
from pyro_meta.guides.paper import PaperGuide
from pyro_meta.guides.point import PointGuide
from pyro_meta.guides.prior import PriorGuide

__all__ = ["DirichletGuide", "Guide", "PaperGuide", "PointGuide", "PriorGuide"]
