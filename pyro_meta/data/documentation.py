"""The text that every Python carries: documentation topics, and docstrings of its library."""

import ast
import io
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip",
    "turtledemo", "pydoc_data", "__pycache__",
}  # fmt: skip


def describe_python() -> list[str]:
    """What its documentation depends on."""
    return ["python", sys.version, str(_stdlib())]


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def read_python() -> Iterator[str]:
    """The documentation topics, then every docstring of the standard library, file by file."""
    try:
        from pydoc_data.topics import topics

        yield "\n\n".join(topics[name] for name in sorted(topics)) + "\n\n"
    except ImportError:  # some distributions leave the topics out; the docstrings remain
        pass
    root = _stdlib()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if any(part in LEFT_OUT or part.startswith("config-") for part in parts):
            continue
        found = io.StringIO()
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # template files that are no Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if docstring := ast.get_docstring(node):
                    found.write(docstring.encode("utf-8", "replace").decode() + "\n\n")
        if text := found.getvalue():
            yield text
