"""Stochastic variational inference: the objective, its schedules and controllers."""

from pyro_meta.inference.elbo import ELBOTerms, Objective, RouteELBO
from pyro_meta.inference.schedules import (
    HardeningSchedule,
    KLSchedule,
    Optimisation,
    ShortFirst,
)

__all__ = [
    "ELBOTerms",
    "HardeningSchedule",
    "KLSchedule",
    "Objective",
    "Optimisation",
    "RouteELBO",
    "ShortFirst",
]
