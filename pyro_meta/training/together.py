"""What several processes do together: one acts or all do, and all hear of it, or of its refusal."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import as_line

T = TypeVar("T")


def processes() -> int:
    """How many there are, this one included."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the first of them."""
    return rank() == 0


def told_by_first(act: Callable[[], T]) -> T:
    """What `act` gives in the first process, in all of them; or its refusal.

    Raises
    ------
    UsageError
        The first process was refused. It raises its own error.
    """
    if processes() == 1:
        return act()
    found, refusal, error = _tried(act) if is_first() else (None, "", None)
    told: list[Any] = [(found, refusal)]
    dist.broadcast_object_list(told, src=0)
    if error is not None:
        raise error
    found, refusal = told[0]
    if refusal:
        raise UsageError(refusal)
    return cast(T, found)


def told_by_all(act: Callable[[], T]) -> list[T]:
    """What `act` gives in every process, in all of them; or the first refusal.

    Raises
    ------
    UsageError
        Another process was refused. One that was refused itself raises its own error.
    """
    if processes() == 1:
        return [act()]
    found, refusal, error = _tried(act)
    told: list[Any] = [None] * processes()
    dist.all_gather_object(told, (found, refusal))
    if error is not None:
        raise error
    for _, one in told:
        if one:
            raise UsageError(one)
    return [one for one, _ in told]


def _tried(act: Callable[[], T]) -> tuple[T | None, str, Exception | None]:
    """What `act` gives; or its error, as a line too."""
    try:
        return act(), "", None
    except Exception as error:
        return None, as_line(error), error
