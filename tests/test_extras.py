"""Packages of extras that are missing: one line that names the extra, and exit code 2."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import scripts
from test_scripts import FOLDER, NAMES

from pyro_meta.terminal.commands import USAGE_ERROR, as_line
from pyro_meta.terminal.extras import EXTRA_OF

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OF_TOOLS = {"docs", "dev"}
"""Extras of whoever works on the package: but for what scripts import, nothing imports them."""
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRA_OF)}))\n"
"""Makes each of them a package that is not installed."""
IMPORT_ALL = """
import importlib, pkgutil
from pathlib import Path
import pyro_meta
from pyro_meta.terminal.commands import as_line
sys.path.insert(0, sys.argv[1])
names = [found.name for found in pkgutil.walk_packages(
    pyro_meta.__path__, "pyro_meta.", onerror=lambda name: None)]
for name in [*names, *sys.argv[2:]]:
    if name.endswith("__main__") or ".triton" in name:  # which torch brings on some machines alone
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {as_line(error)}")
"""


def said_of(extra: str) -> str:
    return f"is not installed; pip install 'pyro-meta[{extra}]'"


def test_the_table_is_that_of_the_extras() -> None:
    named = {
        re.split(r"[>\[]", requirement)[0]: extra
        for extra, requirements in EXTRAS.items()
        for requirement in requirements
    }
    assert all(named[package] == extra for package, extra in EXTRA_OF.items())
    ours = {package for package, extra in named.items() if extra not in OF_TOOLS}
    assert ours <= set(EXTRA_OF)


@cache
def unimportable() -> dict[str, str]:
    """Modules of the package and scripts that cannot be imported without extras, and why not."""
    words = [sys.executable, "-c", BLOCKED + IMPORT_ALL, str(FOLDER), *NAMES]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.long
def test_doors_and_scripts_begin_without_any_extra() -> None:
    doors = {f"pyro_meta.{path.stem}" for path in (ROOT / "pyro_meta").glob("*.py")}
    assert not {*doors, *NAMES} & set(unimportable())


@pytest.mark.long
def test_whatever_needs_an_extra_names_it() -> None:
    assert "pyro_meta.pretrained" in unimportable()
    for module, line in unimportable().items():
        assert line.endswith(said_of("pretrained")), module


@pytest.mark.parametrize("package", EXTRA_OF)
def test_an_import_that_fails_is_a_line_that_names_the_extra(package: str) -> None:
    for name in (package, f"{package}.inside"):
        line = as_line(ModuleNotFoundError(f"No module named {name!r}", name=name))
        assert line == f"{package} {said_of(EXTRA_OF[package])}"
    other = as_line(ModuleNotFoundError(f"No module named 'x{package}'", name=f"x{package}"))
    assert "pip install" not in other


@pytest.mark.parametrize("name", NAMES)
def test_a_script_imports_what_may_be_missing_where_it_is_told_in_one_line(name: str) -> None:
    """Within a function, which `run_script` calls: above it there is nobody to tell it."""
    for node in ast.parse((FOLDER / f"{name}.py").read_text("utf-8")).body:
        modules = (
            [one.name for one in node.names] if isinstance(node, ast.Import)
            else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        )  # fmt: skip
        for module in modules:
            assert module.partition(".")[0] not in EXTRA_OF, module
            assert not module.startswith("pyro_meta.pretrained"), module


def test_adapters_without_peft_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lora

    (tmp_path / "config.yaml").write_text("")
    words = [str(tmp_path), f"--documents={tmp_path}", f"--json={tmp_path / 'found.json'}"]
    monkeypatch.setattr(sys, "argv", ["lora.py", *words])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SystemExit) as stop:
        scripts.run_script(lora.main)
    assert stop.value.code == USAGE_ERROR
    assert capsys.readouterr().err == f"error: peft {said_of('dev')}\n"


def test_a_command_of_a_package_that_cannot_be_imported_is_one_line() -> None:
    run = (
        "import runpy; sys.argv = ['-m', '--help']; runpy.run_module('pyro_meta.pretrained.unpack')"
    )
    words = [sys.executable, "-c", BLOCKED + run]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    line = f"error: pretrained: transformers {said_of('pretrained')}\n"
    assert (done.returncode, done.stderr) == (USAGE_ERROR, line)
