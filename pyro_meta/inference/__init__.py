"""Stochastic variational inference: the objective, its schedules and controllers.

The schedules need no PyTorch, and what does is imported on first use: the command line reads the
options of the schedules before it pays for PyTorch.
"""

from typing import TYPE_CHECKING, Any

from pyro_meta.inference.schedules import (
    HardeningSchedule,
    KLSchedule,
    Optimisation,
    ShortFirst,
)

if TYPE_CHECKING:
    from pyro_meta.inference.elbo import ELBOTerms, Objective, RouteELBO

__all__ = [
    "ELBOTerms",
    "HardeningSchedule",
    "KLSchedule",
    "Objective",
    "Optimisation",
    "RouteELBO",
    "ShortFirst",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from pyro_meta.inference import elbo

        return getattr(elbo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
