"""What is installed is what is there."""

import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]


def folder(package: str) -> Path:
    return ROOT / package.replace(".", "/")


def test_every_package_is_installed() -> None:
    linked = [
        ROOT / "pyro_meta",
        *(ROOT / "pyro_meta" / n for n in ("models", "guides", "analysis")),
    ]
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for top in linked
        for init in (*top.glob("__init__.py"), *top.glob("**/__init__.py"))
    }
    assert sorted(found) == sorted(PACKAGES)


def test_every_file_that_code_reads_is_installed() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    installed = {path for name, globs in data.items() for glob in globs
                 for path in folder(name).glob(glob)}  # fmt: skip
    others = {
        path
        for package in PACKAGES
        for path in folder(package).glob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    presets = {path for package in PACKAGES for path in folder(package).glob("templates/*")}
    assert others | presets <= installed


def test_extras_of_the_tests_are_extras() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (named,) = (one for one in extras["dev"] if one.startswith("pyro-meta["))
    assert set(named.partition("[")[2].rstrip("]").split(",")) <= extras.keys()


def test_templates_of_issues_are_whole() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert form["name"] and form["description"] and form["body"]
