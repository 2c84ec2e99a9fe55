"""From a class to the clauses of its contract, and from those to a test."""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyro_meta
from pyro_meta.attention import BUILT_IN, Mechanism
from pyro_meta.contracts import guides, mechanisms, priors
from pyro_meta.contracts.checks import quiet_room
from pyro_meta.contracts.subjects import SHAPE, GuideSubject, MechanismSubject, PriorSubject
from pyro_meta.errors import UsageError
from pyro_meta.guides import DirichletGuide, Guide
from pyro_meta.models import CostDirichlet, LanguageModel, Prior
from pyro_meta.transformer import Transformer

Subject = MechanismSubject | PriorSubject | GuideSubject
R = TypeVar("R", PriorSubject, GuideSubject)


@dataclass(frozen=True)
class Clause:
    """One promise, to be kept by one subject."""

    promise: Callable[[Any], None]
    subject: Subject

    def check(self) -> None:
        """Raise `Broken`, or whatever the class itself raises, unless the promise is kept."""
        __tracebackhide__ = True
        with quiet_room():
            self.promise(self.subject)

    def __str__(self) -> str:
        return self.promise.__name__


def contract(target: type | str, /, **arguments: Any) -> Callable[..., None]:
    """A pytest test of a class, with one case per clause: `test_mine = contract("my.Guide")`.

    Parameters
    ----------
    target
        A mechanism, prior or guide: the class, its import path, or the name of a built-in.
    arguments
        For its constructor. A guide also takes `prior`, a prior `guide`: the partner that it is
        tested with, a class, a name, or a function of the network or model that builds it. By
        default that is the first built-in one that fits.

    Raises
    ------
    UsageError
        There is no such class, or it cannot be built from these arguments.
    """
    import pytest

    @pytest.mark.parametrize("clause", clauses(target, **arguments), ids=str)
    def test(clause: Clause) -> None:
        clause.check()

    return test


def broken(target: type | str, /, **arguments: Any) -> dict[str, str]:
    """The clauses that a class breaks, and how; `target` and `arguments` as of `contract`."""
    failures = {}
    for clause in clauses(target, **arguments):
        try:
            clause.check()
        except Exception as error:  # whatever a person's class raises
            failures[str(clause)] = f"{type(error).__name__}: {error}"
    return failures


def clauses(target: type | str, /, **arguments: Any) -> list[Clause]:
    """What a class promises; `target` and `arguments` as of `contract`."""
    found = find(target) if isinstance(target, str) else target
    promises, prepare = _contract_of(found)
    with quiet_room():
        try:
            subject = prepare(found, dict(arguments))
        except UsageError as error:
            raise UsageError(f"{found.__name__}: {error}") from error
        except Exception as error:  # whatever a person's class raises
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"{found.__name__} cannot be built: {reason}") from error
    return [Clause(promise, subject) for promise in promises]


def built_in() -> list[type]:
    """Every mechanism, prior and guide of this package."""
    exported = [getattr(pyro_meta, name) for name in pyro_meta.__all__]
    bases = (Mechanism, Prior, Guide)
    routers = [
        one
        for one in exported
        if isinstance(one, type) and issubclass(one, bases) and one not in bases
    ]
    return list(dict.fromkeys([*BUILT_IN.values(), *routers]))


def find(name: str) -> type:
    """The class of a built-in's name, or of an import path `module.Class`.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    known = {one.__name__: one for one in built_in()} | BUILT_IN
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(
            f"no class {name!r}; built-in names and import paths such as "
            f"my_file.MyGuide are allowed{hint}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a person's module raises
        raise UsageError(f"cannot import {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise UsageError(f"{name!r} is no class")
    return found


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of `my_file.MyGuide` or of `my_file.MyGuide(hidden=8)`."""
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call):
            return text, {}
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("arguments are given by name")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        return ast.unparse(node.func), arguments
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"cannot read {text!r}: {error}; my_file.MyGuide or "
            "'my_file.MyGuide(hidden=8)' is allowed"
        ) from error


def _contract_of(found: type) -> tuple[tuple[Callable[[Any], None], ...], Callable[..., Subject]]:
    if issubclass(found, Mechanism):
        return mechanisms.CLAUSES, _mechanism
    if issubclass(found, Prior):
        return priors.CLAUSES, _prior
    if issubclass(found, Guide):
        return guides.CLAUSES, _guide
    raise UsageError(f"{found.__name__} is no subclass of pyro_meta's Mechanism, Prior or Guide")


def _mechanism(found: type[Mechanism], arguments: dict[str, Any]) -> MechanismSubject:
    sizes = {"head_width": SHAPE.head_width, "window": SHAPE.window}
    _require_fitting(found, **sizes | arguments)
    subject = MechanismSubject(partial(found, **sizes | arguments))
    subject.build()
    return subject


def _prior(found: type[Prior], arguments: dict[str, Any]) -> PriorSubject:
    partner = arguments.pop("guide", None)
    make: Callable[[Transformer], Prior] = partial(found, **arguments)
    _require_fitting(found, None, **arguments)
    return _first_that_fits(
        PriorSubject(make, guide) for guide in _partners(partner, DirichletGuide, Guide)
    )


def _guide(found: type[Guide], arguments: dict[str, Any]) -> GuideSubject:
    partner = arguments.pop("prior", None)
    make: Callable[[LanguageModel], Guide] = partial(found, **arguments)
    _require_fitting(found, None, **arguments)
    return _first_that_fits(
        GuideSubject(prior, make) for prior in _partners(partner, CostDirichlet, Prior)
    )


def _require_fitting(found: type, *given: Any, **arguments: Any) -> None:
    """Raise `UsageError` unless the constructor takes these arguments and misses none."""
    try:
        inspect.signature(found).bind(*given, **arguments)
    except TypeError as error:
        raise UsageError(f"its constructor: {error}") from error


def _partners(
    given: type | str | Callable[..., Any] | None, default: type, base: type
) -> list[Callable[..., Any]]:
    """What was given; else the default, and after it every built-in one as it comes."""
    if given is not None:
        return [find(given) if isinstance(given, str) else given]
    others = [one for one in built_in() if issubclass(one, base) and _is_built_of_one(one)]
    return list(dict.fromkeys([default, *others]))


def _is_built_of_one(found: type) -> bool:
    """Whether its constructor needs nothing but the network or the model."""
    try:
        _require_fitting(found, None)
    except UsageError:
        return False
    return True


def _first_that_fits(candidates: Iterable[R]) -> R:
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
