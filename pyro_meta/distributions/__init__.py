"""Distributions of routes, on the simplex, and of depth gates; and how they turn hard."""

from pyro_meta.distributions.gates import PointGate
from pyro_meta.distributions.simplex import Hardened, Point
from pyro_meta.distributions.softmax import Concrete, LogisticNormal

__all__ = ["Concrete", "Hardened", "LogisticNormal", "Point", "PointGate"]
