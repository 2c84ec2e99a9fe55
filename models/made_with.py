"""What an object was made with, so that one like it can be made from a file."""

import inspect
from typing import Any, Self


class MadeWith:
    """Keeps the arguments of its constructor behind the first, as they were given.

    Attributes
    ----------
    arguments
        By name; those of `*more` under that name, which no keyword can give back.
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
            kinds = {name: one.kind for name, one in bound.signature.parameters.items()}
            for name, value in list(bound.arguments.items())[2:]:
                if kinds[name] is inspect.Parameter.VAR_KEYWORD:
                    given |= value
                elif kinds[name] is inspect.Parameter.VAR_POSITIONAL:
                    given[f"*{name}"] = list(value)
                else:
                    given[name] = value
        object.__setattr__(made, "arguments", given)
        return made
