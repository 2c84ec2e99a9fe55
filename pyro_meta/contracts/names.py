"""Which class is meant: of a built-in name, an import path, or a call written out."""

import ast
from typing import Any

import pyro_meta
from pyro_meta.attention import BUILT_IN, Mechanism
from pyro_meta.errors import UsageError
from pyro_meta.guides import DepthGuide, Guide
from pyro_meta.models import DepthPrior, LoadPrior, Prior
from pyro_meta.network.blocks import BLOCKS, Block
from pyro_meta.terminal.naming import NoSuchClass, find_class


def built_in() -> list[type]:
    """Every mechanism, block, prior and guide of this package."""
    exported = [getattr(pyro_meta, name) for name in pyro_meta.NAMED_BY_FILES]
    bases = (Mechanism, Block, Prior, Guide, DepthGuide)
    ours = [
        found
        for found in exported
        if isinstance(found, type)
        and issubclass(found, (*bases, DepthPrior))
        and found not in (*bases, LoadPrior)  # what has to be subclassed
    ]
    return list(dict.fromkeys([*BUILT_IN.values(), *BLOCKS.values(), *ours]))


def find(name: str) -> type:
    """The class of a built-in's name, or of an import path `module.Class`.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    known: dict[str, type] = {**BUILT_IN, **BLOCKS}
    known |= {found.__name__: found for found in built_in()}
    try:
        return find_class(name, known, "my_file.MyGuide")
    except NoSuchClass as error:
        raise UsageError(str(error)) from error


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of `my_file.MyGuide` or of `my_file.MyGuide(hidden=8)`.

    Raises
    ------
    UsageError
        It is neither, or an argument is no literal.
    """
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call):
            return text, {}
        if node.args or any(word.arg is None for word in node.keywords):
            raise ValueError("arguments are given by name")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        return ast.unparse(node.func), arguments
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"cannot read {text!r}: {error}; my_file.MyGuide or "
            "'my_file.MyGuide(hidden=8)' is allowed"
        ) from error
