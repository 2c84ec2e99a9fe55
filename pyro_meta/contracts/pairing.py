"""From a class and its arguments to a subject that can be built, with a partner that fits."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from pyro_meta.attention import Mechanism
from pyro_meta.contracts.names import built_in, find, read_call
from pyro_meta.contracts.subjects import (
    MECHANISMS,
    SHAPE,
    BlockSubject,
    DepthGuideSubject,
    DepthPriorSubject,
    GuideSubject,
    MechanismSubject,
    PriorSubject,
    beside,
    gated_beside,
)
from pyro_meta.errors import UsageError
from pyro_meta.guides import BetaDepthGuide, DepthGuide, DirichletGuide, Guide
from pyro_meta.models import CostDirichlet, DepthPrior, Prior
from pyro_meta.network.blocks import Block

Subject = (
    MechanismSubject
    | BlockSubject
    | PriorSubject
    | GuideSubject
    | DepthPriorSubject
    | DepthGuideSubject
)
Either = TypeVar("Either", PriorSubject, GuideSubject)


def subject_of(found: type, arguments: dict[str, Any]) -> Subject:
    """A subject that has been built once.

    Parameters
    ----------
    found
        A mechanism, block, prior or guide.
    arguments
        For its constructor; and `prior` for a guide, `guide` for a prior of routes: its partner.

    Raises
    ------
    UsageError
        The class is of another kind, its constructor takes other arguments, or it or its partner
        refuses them.
    """
    arguments = dict(arguments)
    if issubclass(found, Mechanism):
        arguments = {"head_width": SHAPE.head_width, "window": SHAPE.window} | arguments
        _require_fitting(found, **arguments)
        subject = MechanismSubject(partial(found, **arguments))
        subject.build()
        return subject
    if issubclass(found, Block):
        _require_fitting(found, SHAPE, MECHANISMS, 0, **arguments)
        block = BlockSubject(partial(found, **arguments))
        block.build()
        return block
    if issubclass(found, Prior):
        guides = _partners(arguments.pop("guide", None), DirichletGuide, Guide)
        _require_fitting(found, None, **arguments)
        return _first_that_fits(
            PriorSubject(beside(partial(found, **arguments), guide)) for guide in guides
        )
    if issubclass(found, Guide):
        priors = _partners(arguments.pop("prior", None), CostDirichlet, Prior)
        _require_fitting(found, None, **arguments)
        return _first_that_fits(
            GuideSubject(beside(prior, partial(found, **arguments))) for prior in priors
        )
    if issubclass(found, DepthPrior | DepthGuide):
        _require_fitting(found, None, **arguments)
        return _of_gates(found, partial(found, **arguments))
    raise UsageError(
        "it is no subclass of pyro_meta's Mechanism, Block, Prior or Guide, "
        "nor of DepthPrior or DepthGuide"
    )


def _of_gates(found: type, make: Callable[..., Any]) -> Subject:
    """A prior over depth gates or a guide of them, beside what is built in."""
    routes = CostDirichlet, DirichletGuide
    subject: DepthPriorSubject | DepthGuideSubject
    if issubclass(found, DepthPrior):
        subject = DepthPriorSubject(gated_beside(*routes, make, BetaDepthGuide))
    else:
        subject = DepthGuideSubject(gated_beside(*routes, DepthPrior, make))
    subject.build()
    return subject


def _require_fitting(found: type, *given: Any, **arguments: Any) -> None:
    """Raise `UsageError` unless the constructor takes these arguments and misses none."""
    try:
        inspect.signature(found).bind(*given, **arguments)
    except TypeError as error:
        raise UsageError(f"its constructor: {error}") from error


def _partners(
    given: str | Callable[..., Any] | None, default: type, base: type
) -> list[Callable[..., Any]]:
    """What was given; else the default, and after it every built-in one as it comes."""
    if isinstance(given, str):
        name, arguments = read_call(given)
        return [partial(find(name), **arguments)]
    if given is not None:
        return [given]
    others = [found for found in built_in() if issubclass(found, base) and _needs_nothing(found)]
    return list(dict.fromkeys([default, *others]))


def _needs_nothing(found: type) -> bool:
    """Whether its constructor needs the network or the model alone."""
    try:
        _require_fitting(found, None)
    except UsageError:
        return False
    return True


def _first_that_fits(candidates: Iterable[Either]) -> Either:
    """The first pair that can be built; if there is none, what the first was refused for."""
    refusals: list[UsageError] = []
    for subject in candidates:
        try:
            subject.build()
        except UsageError as error:
            refusals.append(error)
        else:
            return subject
    raise refusals[0]
