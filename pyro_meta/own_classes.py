"""How a mistake in a person's own class is named in one line.

A class is somebody's own if it is no part of this package and we call it: a prior, guide, mechanism
and so on, or what these bring along. The frames of the traceback say who raised an error. They are
read only once it is raised, so that a run without errors pays nothing.
"""

import inspect
import math
import sysconfig
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from numbers import Number, Real
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple, TypeVar

from pyro_meta.errors import UsageError

Made = TypeVar("Made")

LONGEST = 300  # characters of a message that is not ours
LONGEST_WORD = 60  # of a value


# -- whose class it is -------------------------------------------------------------------------


def is_ours(kind: type) -> bool:
    """Whether this package ships a class."""
    return kind.__module__ == "pyro_meta" or kind.__module__.startswith("pyro_meta.")


def is_own(instance: object) -> bool:
    """Whether an instance is of somebody's own class, derived from one of this package."""
    lineage = type(instance).__mro__
    return not is_ours(lineage[0]) and any(map(is_ours, lineage))


def own_lineage(kind: type) -> list[type]:
    """The classes of a lineage that are neither ours nor what ours are derived from, if any is."""
    ours = [one for one in kind.__mro__ if is_ours(one)]
    if not ours:
        return []
    return [
        one
        for one in kind.__mro__
        if not is_ours(one) and not any(one in known.__mro__ for known in ours)
    ]


# -- what a class must have ----------------------------------------------------------------------


def require_defined(
    instance: object, base: type, *methods: str, more: Collection[str] = ()
) -> None:
    """Raise `UsageError` unless the class of `instance` overrides `methods` of `base`.

    Whatever it overrides, these or others, must take the arguments that it is called with.
    `more` names the methods that get one more behind them.
    """
    kind = type(instance)
    missing = [name for name in methods if getattr(kind, name) is getattr(base, name)]
    if missing:
        raise UsageError(
            f"{kind.__name__} does not define {', '.join(missing)}; "
            f"a {base.__name__} defines {', '.join(methods)}"
        )
    if is_own(instance):
        for name, promised in vars(base).items():
            if inspect.isfunction(promised) and not name.startswith("_"):
                _require_taking(kind, name, promised, int(name in more))


def _require_taking(kind: type, name: str, promised: Callable[..., Any], behind: int) -> None:
    """Raise `UsageError` unless a method takes what that of the base class is called with."""
    owner = next(one for one in kind.__mro__ if name in vars(one))
    found = vars(owner)[name]
    if is_ours(owner) or not inspect.isfunction(found):  # a wrapped one is found out later
        return
    parameters = inspect.signature(promised).parameters.values()
    given = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    try:
        inspect.signature(found).bind(*given, *range(behind))
    except TypeError as error:
        raise UsageError(
            f"{kind.__name__}: {name}{inspect.signature(found)} at {_place(found.__code__)}: "
            f"{error}; it is called as {name}({', '.join(given[1:])})"
        ) from error


def require_price(value: object, what: str) -> float:
    """A price that an own class names, as a float; `what` begins an error.

    Any real number is one, also of numpy or as a tensor without dimensions.

    Raises
    ------
    UsageError
        It is no number, NaN, infinite or negative.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf:
        return float(value)
    raise UsageError(f"{what} is {described(value)}; a number of at least 0 is needed")


def require_kind(found: object, kind: type, giver: object, call: str) -> None:
    """Raise `UsageError` unless what a call of `giver` gave is a `kind`."""
    if not isinstance(found, kind):
        raise UsageError(
            f"{type(giver).__name__}.{call}() gives {described(found)}; a {kind.__name__} is needed"
        )


def made(
    base: type[Made], sign: str, option: str, make: Callable[..., Any], *given: Any, **named: Any
) -> Made:
    """What `make` builds: an instance of `base` whose constructor was called.

    Parameters
    ----------
    base
        What is needed.
    sign
        An attribute that the constructor of `base` sets.
    option
        Where the class was named; errors begin with it.
    make, given, named
        A class, or a function that makes an instance, and its arguments.

    Raises
    ------
    UsageError
        It takes other arguments, raises something, or gives something else.
    """
    with own_classes_named():
        try:
            instance = make(*given, **named)
        except TypeError as error:
            if blame(error) is not None or not _is_own_call(error):
                raise
            raise UsageError(f"{option}: {said(error)}") from error
    if not isinstance(instance, base):
        raise UsageError(
            f"{option}: {_named(make)} gives {described(instance)}; a {base.__name__} is needed"
        )
    if not hasattr(instance, sign):
        raise UsageError(
            f"{option}: the constructor of {type(instance).__name__} does not call "
            "super().__init__(...), with which it has to begin"
        )
    return instance


def _is_own_call(error: BaseException) -> bool:
    """Whether a call was refused at its door: nothing was raised further inside."""
    trace = error.__traceback__
    return trace is not None and all(_is_of_us(one) for one in _frames(trace))


def _named(make: Callable[..., Any]) -> str:
    return getattr(make, "__qualname__", type(make).__name__)


# -- what it raised ------------------------------------------------------------------------------


@contextmanager
def own_classes_named() -> Iterator[None]:
    """Turn whatever is raised inside somebody's own class into a `UsageError` that `blame` writes.

    What is raised elsewhere passes as it is, and so do signals and exceptions of ours.
    """
    try:
        yield
    except BaseException as error:
        line = blame(error)
        if line is None:
            raise
        raise UsageError(line) from error


def blame(error: BaseException) -> str | None:
    """In one line, which own class raised `error`: the call, what came, and what is expected.

    None if it was raised by nobody's own class, or says by itself what is wrong (`UsageError`).
    """
    seen: set[int] = set()
    frames: list[_Frame] = []
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if passes(at):
            return None
        frames += _frames(at.__traceback__)  # that of a cause begins where it was caught
        found = _own_call(frames)
        if found is not None:
            return _told(_root(at), *found)
        is_raised_by_us = bool(frames) and _is_of_us(frames[-1])
        at = at.__cause__ or (None if is_raised_by_us else at.__context__)
    return None


def said(error: BaseException) -> str:
    """Kind and message of an exception in one line, whatever its message is."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a message that raises
        text = "its message cannot be read"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def described(value: object) -> str:
    """Type, shape and what else is worth knowing of a value, in a few words."""
    try:
        return _described(value)
    except Exception:  # whatever an own class does when it is looked at
        return type(value).__name__


def _described(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | bool | Number):
        text = repr(value)
        return text if len(text) <= LONGEST_WORD else f"{text[:LONGEST_WORD]}..."
    if hasattr(value, "batch_shape"):
        return f"{name} of batch {list(value.batch_shape)} and event {list(value.event_shape)}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        where = str(getattr(value, "device", "cpu"))
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{name} {list(value.shape)} {dtype}" + f" on {where}" * (where != "cpu")
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
        return f"{name}({', '.join(f'{key}={described(part)}' for key, part in parts)})"
    if isinstance(value, list | tuple | dict | set):
        return f"{name} of {len(value)}"
    return name


class _Frame(NamedTuple):
    """A frame of a traceback and the line where it stood."""

    frame: FrameType
    line: int

    @property
    def code(self) -> CodeType:
        return self.frame.f_code


def _frames(trace: TracebackType | None) -> list[_Frame]:
    """From the outermost to where the exception was raised."""
    found = []
    while trace is not None:
        found.append(_Frame(trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _own_call(frames: list[_Frame]) -> tuple[_Frame, _Frame] | None:
    """The innermost call that we made into own code, and where own code stood at last."""
    was_ours, call, place = False, None, None
    for one in frames:
        if _is_of_us(one):
            was_ours = True
        elif _is_of_own(one):
            if was_ours:
                call = one
            place = one
            was_ours = False
    return None if call is None or place is None else (call, place)


def _told(error: BaseException, call: _Frame, place: _Frame) -> str:
    instance = _instance(call)
    code = call.code
    name = code.co_name
    if instance is None:
        kind, expected = None, ""
        who = f"{call.frame.f_globals.get('__name__')}.{code.co_qualname}"
    else:
        kind = instance if isinstance(instance, type) else type(instance)
        who, expected = f"{kind.__name__}.{name}", _expected(kind, name)
    what = "sys.exit() was called" if isinstance(error, SystemExit) else said(error)
    return (
        f"{who}({_arguments(call)}) failed at {_place(place.code, place.line)}: {what}"
        + f"; expected: {expected}" * bool(expected)
    )


def _expected(kind: type, name: str) -> str:
    """What our own class promises of a method, or else what its constructor is for."""
    for one in kind.__mro__:
        promised = vars(one).get(name)
        if is_ours(one) and promised is not None and getattr(promised, "__doc__", None):
            line = str(promised.__doc__).strip().partition("\n\n")[0]
            return " ".join(line.split()).rstrip(".")
    return ""


def _arguments(call: _Frame) -> str:
    """What a call was given, without the instance."""
    code, values = call.code, call.frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    first = 1 if names and _instance(call) is not None else 0
    text = ", ".join(
        f"{name}={described(values[name])}" for name in names[first:] if name in values
    )
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _instance(call: _Frame) -> Any:
    """What a method was called on; None for a function."""
    code = call.code
    if not code.co_argcount:
        return None
    first = call.frame.f_locals.get(code.co_varnames[0])
    kind = first if isinstance(first, type) else type(first)
    owners = {one.__qualname__ for one in kind.__mro__}
    is_method = code.co_varnames[0] == "self" or code.co_qualname.rpartition(".")[0] in owners
    return first if is_method else None


def _is_of_own(one: _Frame) -> bool:
    """Whether a frame runs somebody's own code, and no library's."""
    instance = _instance(one)
    if instance is not None:
        kind = instance if isinstance(instance, type) else type(instance)
        module = one.frame.f_globals.get("__name__")
        if any(owner.__module__ == module for owner in own_lineage(kind)):
            return True
    return not _is_of_a_library(one.code.co_filename)


def _is_of_us(one: _Frame) -> bool:
    """Whether a frame runs code of this package, also where that was started by `python -m`."""
    module = one.frame.f_globals
    spec = module.get("__spec__")
    name = spec.name if module.get("__name__") == "__main__" and spec else module.get("__name__")
    return str(name).partition(".")[0] == "pyro_meta"


@cache
def _is_of_a_library(file: str) -> bool:
    if file.startswith("<") and not file.startswith("<ipython"):
        return True
    parts = Path(file).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return any(file.startswith(f"{sysconfig.get_path(kind)}/") for kind in ("stdlib", "platstdlib"))


def _root(error: BaseException) -> BaseException:
    """What Pyro, or a generator, raised anew with more words behind it."""
    cause = error.__cause__
    if cause is None or passes(cause):
        return error
    is_generator = isinstance(error, RuntimeError) and isinstance(cause, StopIteration)
    try:
        is_same = type(error) is type(cause) and str(error).startswith(str(cause))
    except Exception:  # a message that raises
        is_same = False
    return _root(cause) if is_same or is_generator else error


def passes(error: BaseException) -> bool:
    """Whether an exception is for others to tell: ours, Ctrl-C, or memory that is not enough."""
    kind = type(error)
    is_memory = isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError"
    return is_ours(kind) or isinstance(error, KeyboardInterrupt) or is_memory


def _place(code: CodeType, line: int | None = None) -> str:
    """File and line, as short as the current folder allows."""
    file = Path(code.co_filename)
    with suppress(OSError, ValueError):
        file = file.relative_to(Path.cwd())
    return f"{file}:{line or code.co_firstlineno}"
