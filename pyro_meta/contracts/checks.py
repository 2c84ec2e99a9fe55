"""What clauses are written with: a failure that explains itself, tolerances, a quiet room."""

import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_meta.own_classes import described

EXACT = 1e-9  # float64, equal but for the order of sums
ROUNDING = 1e-4  # float32, in another order
STANDARD_ERRORS = 4.0  # Monte Carlo, at a fixed seed


class Broken(AssertionError):
    """A clause of the contract does not hold."""


class DoesNotApply(Exception):
    """A clause asks for something that a class need not have, and does not have."""


def applies(asked: bool, otherwise: str) -> None:
    """Raise `DoesNotApply`, and say why in `otherwise`, unless the clause is `asked` of a class."""
    if not asked:
        raise DoesNotApply(otherwise)


def require(holds: bool, message: str) -> None:
    """Raise `Broken` unless the clause `holds`."""
    __tracebackhide__ = True
    if not holds:
        raise Broken(message)


def require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raise `Broken` where values differ by more than `tolerance`, relative to the greatest."""
    __tracebackhide__ = True
    require(
        found.shape == expected.shape,
        f"{what}: its shape is {list(found.shape)}, not {list(expected.shape)}",
    )
    if not found.numel():
        return
    difference = (found - expected).detach()
    gap = float(difference.abs().max() / expected.detach().abs().max().clamp(min=1.0))
    if not math.isfinite(gap):  # else NaN would pass for whatever is looked for here
        require_finite(expected, f"what was to be compared ({what})")
        require_finite(found, f"what was compared ({what})")
    require(gap <= tolerance, f"{what}, by {gap:.2g}")


def require_tensor(found: object, shape: Sequence[int], like: Tensor, what: str) -> None:
    """Raise `Broken` unless `found` is a finite tensor [shape] of the kind and device of `like`."""
    __tracebackhide__ = True
    needed = f"{list(shape)} of {_word(like.dtype)} on {like.device} is needed"
    require(isinstance(found, Tensor), f"{what} is {described(found)}; a tensor {needed}")
    assert isinstance(found, Tensor)
    require(tuple(found.shape) == tuple(shape), f"{what} is {list(found.shape)}; {needed}")
    require(found.dtype == like.dtype, f"{what} is {_word(found.dtype)}; {needed}")
    require(found.device == like.device, f"{what} is on {found.device}; {needed}")
    require_finite(found, what)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def require_same_again(
    call: Callable[[], Tensor], between: Callable[[], object], what: str
) -> None:
    """Raise `Broken` unless `call` gives the same twice, also with another call `between`."""
    __tracebackhide__ = True
    first, again = call(), call()
    if not torch.equal(first, again):
        require_finite(first, what)
        seeded = []
        for _ in range(2):
            reseed()
            seeded.append(call())
        is_random = torch.equal(*seeded)
        why = "it draws random numbers" if is_random else "something is kept from call to call"
        raise Broken(f"two calls in evaluation mode give two outputs of {what}: {why}")
    between()
    require(
        torch.equal(first, call()),
        f"{what} is another after a call with other inputs: something is kept from call to call",
    )


def reseed(number: int = 0) -> None:
    """Begin the generators of a room anew: torch's of the CPU, numpy's and Python's."""
    torch.default_generator.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002 -- whatever a class draws from
    random.seed(number)


def require_left_alone(before: Sequence[Tensor], after: Sequence[Tensor], what: str) -> None:
    """Raise `Broken` if `after`, inputs of a call, are not what they were `before` it."""
    __tracebackhide__ = True
    for one, other in zip(before, after, strict=True):
        require(torch.equal(one, other), f"{what} changes what it is given, in place")


def require_registered(module: nn.Module, beside: Iterable[nn.Module] = ()) -> None:
    """Raise `Broken` if a parameter is held where neither training nor a checkpoint finds it.

    That is in a list, a tuple or a dictionary, or as a plain tensor that asks for a gradient.
    Parameters of modules `beside` are known there.
    """
    __tracebackhide__ = True
    known = {id(one) for whole in (module, *beside) for one in whole.parameters()}
    for owner in module.modules():
        for name, value in vars(owner).items():
            if name in ("_parameters", "_modules", "_buffers"):
                continue
            lost = [one for one in _parameters_in(value) if id(one) not in known]
            require(
                not lost,
                f"{type(owner).__name__}.{name} holds {len(lost)} parameters that are not "
                "registered, so they are neither trained nor saved; an nn.Parameter, "
                "nn.ModuleList or nn.ModuleDict is needed",
            )


def _parameters_in(value: object, depth: int = 3) -> Iterator[Tensor]:
    """Whatever could be learned in a value: parameters, also those of modules, also in lists."""
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif depth and isinstance(value, list | tuple | set | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _parameters_in(one, depth - 1)


def require_finite(values: Tensor, what: str) -> None:
    """Raise `Broken` if anything in `values` is NaN or infinite."""
    __tracebackhide__ = True
    if isinstance(values, Tensor) and values.is_meta:  # which holds no numbers
        return
    bad = values.numel() - int(torch.isfinite(values).sum())
    require(bad == 0, f"{bad} of {values.numel()} numbers are NaN or infinite in {what}")


def require_gradients(parameters: Mapping[str, nn.Parameter], when: str) -> None:
    """Raise `Broken` unless every parameter has a gradient that is finite and not all zero."""
    __tracebackhide__ = True
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        require(parameter.grad is not None, f"parameter {name} gets no gradient {when}")
        assert parameter.grad is not None
        require_finite(parameter.grad, f"the gradient of {name} {when}")
        require(bool(parameter.grad.any()), f"the gradient of {name} is zero {when}")


def rms_ratio(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    difference = (found - expected).detach().double().pow(2).mean().sqrt()
    return float(difference / expected.detach().double().pow(2).mean().sqrt().clamp(min=1e-6))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build and compute in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _forked_generators() -> Iterator[None]:
    """Draw from generators that stand where they stood afterwards: torch's, numpy's, Python's."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):  # `seed` moves that of the CPU alone
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def quiet_room(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """The same for every clause: seed, precision, validation on; nothing of it is left behind."""
    with (
        _forked_generators(),
        pyro.get_param_store().scope(),
        default_dtype(dtype),
        pyro.validation_enabled(True),
        pyro.settings.context(module_local_params=True),
        warnings.catch_warnings(),
    ):
        # a one-hot route, or a hard gate, has no density; Pyro computes one besides the KL
        no_density = r"Encountered.*(route|depth)_"
        warnings.filterwarnings("ignore", message=no_density, category=UserWarning)
        reseed()
        yield
