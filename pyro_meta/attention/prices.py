"""What mechanisms say they cost, read in the one form that we reckon with.

A mechanism may answer with a tensor or an array, one price for each position, or with one number
for all; integers mean the same as floats. Shapes: B sequences, T positions.
"""

import torch
from torch import Tensor

from pyro_meta.attention.mechanisms import Mechanism
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import described


def macs_at(mechanism: Mechanism, position: Tensor) -> Tensor:
    """Multiply-accumulates per head of one query at each of `position` [T], floats [T].

    Raises
    ------
    UsageError
        `macs` gave no number, or not one for each position. Whether prices are finite and at least
        0 is not looked at here, which would wait for a GPU: see `require_prices`.
    """
    return _read(mechanism.macs(position), mechanism, "macs", position)


def kick_macs_at(mechanism: Mechanism, position: Tensor) -> Tensor:
    """The part of them that `kick` takes, [T]; errors as of `macs_at`."""
    return _read(mechanism.kick_macs(position), mechanism, "kick_macs", position)


def macs_of_text(mechanism: Mechanism, position: Tensor, k: Tensor, *more: Tensor) -> Tensor:
    """The same as `macs_at` for a given text, see `Mechanism.macs_of`: [B, T] or [T]."""
    return _read(mechanism.macs_of(position, k, *more), mechanism, "macs_of", position)


def require_prices(mechanism: Mechanism, position: Tensor) -> None:
    """Raise `UsageError` unless `macs` and `kick_macs` are finite and at least 0 at `position`."""
    for name, macs in (
        ("macs", macs_at(mechanism, position)),
        ("kick_macs", kick_macs_at(mechanism, position)),
    ):
        is_wrong = ~(torch.isfinite(macs) & (macs >= 0))
        if is_wrong.any():
            first = int(is_wrong.nonzero()[0, 0])
            raise UsageError(
                f"mechanisms: {type(mechanism).__name__}.{name}() gives {float(macs[first])} at "
                f"position {float(position[first]):g}; a finite number of at least 0 is needed"
            )


def _read(found: object, mechanism: Mechanism, name: str, position: Tensor) -> Tensor:
    """What a method of a mechanism gave for `position`, as a tensor like it."""
    macs = found
    if not isinstance(macs, Tensor) or macs.dtype != position.dtype:
        try:
            if isinstance(found, bool | str | bytes):
                raise TypeError("no number")
            macs = torch.as_tensor(found, dtype=position.dtype, device=position.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_price(found, mechanism, name, position) from error
    if not macs.dim():
        macs = macs.expand(len(position))
    is_of_text = name == "macs_of" and macs.dim() == 2 and macs.shape[1] in (1, len(position))
    if macs.shape != position.shape and not is_of_text:
        raise _no_price(found, mechanism, name, position)
    return macs


def _no_price(found: object, mechanism: Mechanism, name: str, position: Tensor) -> UsageError:
    return UsageError(
        f"mechanisms: {type(mechanism).__name__}.{name}() gives {described(found)} for "
        f"{len(position)} positions; one float for each is needed, or one number for all"
    )
