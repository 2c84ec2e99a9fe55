"""From a class to the clauses of its contract, and from those to a test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_meta.contracts import blocks, guides, mechanisms, priors
from pyro_meta.contracts.checks import Broken, DoesNotApply, quiet_room
from pyro_meta.contracts.names import find
from pyro_meta.contracts.pairing import Subject, subject_of
from pyro_meta.contracts.subjects import (
    BlockSubject,
    DepthGuideSubject,
    DepthPriorSubject,
    GuideSubject,
    MechanismSubject,
    PriorSubject,
)
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import blame, said

PROMISES: dict[type, tuple[Callable[[Any], None], ...]] = {
    MechanismSubject: mechanisms.CLAUSES,
    BlockSubject: blocks.CLAUSES,
    PriorSubject: priors.CLAUSES,
    GuideSubject: guides.CLAUSES,
    DepthPriorSubject: priors.CLAUSES,
    DepthGuideSubject: guides.OF_GATES,
}


class Raised(Broken):
    """A clause could not be judged, since the class raised something."""


@dataclass(frozen=True)
class Clause:
    """One promise, to be kept by one subject."""

    promise: Callable[[Any], None]
    subject: Subject | Callable[[], Any]
    """Or what makes a model of transformers."""

    def check(self) -> None:
        """Raise `Broken` unless the promise is kept; what the class itself raises is told in it.

        Raises
        ------
        DoesNotApply
            It is a promise of something optional, and the class does not define that.
        """
        __tracebackhide__ = True
        try:
            with quiet_room():
                self.promise(self.subject)
        except DoesNotApply:
            raise
        except BaseException as error:
            line = blame(error)
            if line is None:
                raise
            raise Raised(line) from None

    def tested(self) -> None:
        """The same in pytest, where a promise is skipped that does not apply."""
        __tracebackhide__ = True
        import pytest

        try:
            self.check()
        except DoesNotApply as reason:
            pytest.skip(str(reason))

    def __str__(self) -> str:
        return self.promise.__name__


def contract(target: type | str, /, **arguments: Any) -> Callable[..., None]:
    """A pytest test of a class, with one case per clause: `test_mine = contract("my.Guide")`.

    Parameters
    ----------
    target
        A mechanism, block, prior or guide, of routes or depth gates: the class, its import path, or
        the name of a built-in one.
    arguments
        For its constructor. A guide of routes also takes `prior`, a prior over them `guide`: the
        partner that it is tested with, as a class, a name, a call in a string, or a function of the
        network or model that builds it. By default that is the first built-in one that fits.

    Raises
    ------
    UsageError
        There is no such class, or it cannot be built from these arguments.
    """
    import pytest

    @pytest.mark.parametrize("clause", clauses(target, **arguments), ids=str)
    def test(clause: Clause) -> None:
        __tracebackhide__ = True
        clause.tested()

    return test


def pretrained_clauses(make: Callable[[], Any]) -> list[Clause]:
    """What holds of a model of transformers; `make` gives it, in single precision, ever anew."""
    from pyro_meta.contracts import pretrained

    return [Clause(promise, make) for promise in pretrained.CLAUSES]


def broken(target: type | str, /, **arguments: Any) -> dict[str, str]:
    """The clauses that a class breaks, and how; `target` and `arguments` as of `contract`."""
    failures = {}
    for clause in clauses(target, **arguments):
        try:
            clause.check()
        except DoesNotApply:
            continue
        except Exception as error:  # whatever comes of what a person's class gave
            failures[str(clause)] = f"{type(error).__name__}: {error}"
    return failures


def clauses(target: type | str, /, **arguments: Any) -> list[Clause]:
    """What a class promises; `target` and `arguments` as of `contract`."""
    found = find(target) if isinstance(target, str) else target
    with quiet_room():
        try:
            subject = subject_of(found, arguments)
        except UsageError as error:
            raise UsageError(f"{found.__name__}: {error}") from error
        except Exception as error:  # whatever a person's class raises
            reason = blame(error) or said(error)
            raise UsageError(f"{found.__name__} cannot be built: {reason}") from error
    return [Clause(promise, subject) for promise in PROMISES[type(subject)]]


def require_answer(asked: list[Clause]) -> None:
    """Raise `UsageError` if a class raises something when it is asked first.

    No clause can say more then, and each would say the same.
    """
    try:
        asked[0].check()
    except DoesNotApply:
        return
    except Broken as error:
        if isinstance(error, Raised):
            raise UsageError(str(error)) from error
