"""What a user's type checker sees of the installed package."""

import ast
import sys
from pathlib import Path

import pytest
from processes import finish

import pyro_meta

STUB = Path(pyro_meta.__file__).with_suffix(".pyi")

USER = """
import pyro_meta
from pyro_meta import DirichletGuide, LanguageModel, Shape
from pyro_meta.analysis.reading import Reading

reveal_type(pyro_meta.LanguageModel)
reveal_type(DirichletGuide)
reveal_type(Reading.of)
Shape("many")
"""
SETTINGS = """
[mypy]
[mypy-torch.*,pyro.*,xarray.*,numpy.*,arviz.*]
follow_imports = skip
"""


def test_the_stub_names_what_the_package_does() -> None:
    stub = ast.parse(STUB.read_text(encoding="utf-8"))
    imported = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
    known = {name: f"pyro_meta.{home}" for name, home in pyro_meta._HOME.items()}
    assert imported == known | dict.fromkeys(pyro_meta._PACKAGES, "pyro_meta")
    called = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert called == {*pyro_meta._DOORS}
    (exported,) = (
        ast.literal_eval(node.value)
        for node in stub.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert exported == pyro_meta.__all__


@pytest.mark.long
def test_public_names_are_typed_where_the_package_is_installed(tmp_path: Path) -> None:
    """In a folder of its own: nothing of the checkout is near but by the installation."""
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    (tmp_path / "user.py").write_text(USER)
    done = finish([sys.executable, "-m", "mypy", "--strict", "user.py"], cwd=tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith("user.py")]
    model = "pyro_meta.models.language_model.LanguageModel"
    assert len(said) == 4, done.stdout + done.stderr
    assert f'-> {model}"' in said[0] and "network: pyro_meta.network.protocol.Network" in said[0]
    assert f"def (model: {model}" in said[1]
    assert '-> pyro_meta.analysis.reading.Reading"' in said[2]
    assert 'Argument 1 to "Shape" has incompatible type "str"; expected "int"' in said[3]
