"""Distributions of routes, on the simplex, and of depth gates; and how they turn hard."""

from pyro_meta.distributions.choice import Choice
from pyro_meta.distributions.gates import PointGate
from pyro_meta.distributions.hardening import GateExecution, RouteExecution
from pyro_meta.distributions.simplex import Point
from pyro_meta.distributions.softmax import Concrete, LogisticNormal

__all__ = [
    "Choice",
    "Concrete",
    "GateExecution",
    "LogisticNormal",
    "Point",
    "PointGate",
    "RouteExecution",
]
