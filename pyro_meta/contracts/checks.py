"""What clauses are written with: a failure that explains itself, tolerances, a quiet room."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor, nn

EXACT = 1e-9  # float64, equal but for the order of sums
STANDARD_ERRORS = 4.0  # Monte Carlo, at a fixed seed


class Broken(AssertionError):
    """A clause of the contract does not hold."""


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
    difference = (found - expected).detach()
    gap = float(difference.abs().max() / expected.detach().abs().max().clamp(min=1.0))
    require(gap <= tolerance, f"{what}, by {gap:.2g}")  # NaN is not <= anything


def require_finite(values: Tensor, what: str) -> None:
    """Raise `Broken` if anything in `values` is NaN or infinite."""
    __tracebackhide__ = True
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
def quiet_room() -> Iterator[None]:
    """The same for every clause: seed, float32, validation on; nothing of it is left behind."""
    with (
        torch.random.fork_rng(devices=[]),  # everything is on the CPU
        default_dtype(torch.float32),
        pyro.validation_enabled(True),
        pyro.settings.context(module_local_params=True),
        warnings.catch_warnings(),
    ):
        # a one-hot route, or a hard gate, has no density; Pyro computes one besides the KL
        no_density = r"Encountered.*(route|depth)_"
        warnings.filterwarnings("ignore", message=no_density, category=UserWarning)
        torch.manual_seed(0)
        yield
