"""What an object was made with, so that one like it can be made from a file."""

import inspect
from typing import Any, Self


class MadeWith:
    """Keeps the arguments of its constructor behind the first, as they were given.

    Attributes
    ----------
    arguments
        By name.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        given: dict[str, Any] = {}
        try:
            bound = inspect.signature(cls.__init__).bind(made, *args, **kwargs)
        except TypeError:  # the constructor will say so; a copy is given none
            pass
        else:
            given = dict(list(bound.arguments.items())[2:])
        object.__setattr__(made, "arguments", given)
        return made
