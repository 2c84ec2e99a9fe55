"""Pages name files, places, options and arguments that are there."""

import ast
import importlib
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path

import pytest
from commands import run_here
from notebooks import text_of

import pyro_meta

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]*)\)")
PAGES = sorted(
    page
    for glob in ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "benchmarks/**/*.md")
    for page in ROOT.glob(glob)
)
SITE = [page for page in PAGES if page.is_relative_to(ROOT / "docs") or page == ROOT / "README.md"]
CODE = re.compile(r"^```.*?^```$|^<!--.*?-->$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:python -m pyro_meta\.|pyro-meta )(\w+)((?:\\\n|[^\n#])*)")
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.]*)")
OF_A_CLASS = ("prior", "guide", "data")
"""Options of these are arguments of a class that the command line names."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def places(page: Path) -> set[str]:
    """Anchors of a page: its headings, as a forge and the site make them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", text_of(page)), re.MULTILINE)
    kept = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", words) for words in kept}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_and_place_that_a_page_links_to_is_there(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", text_of(page))):
        path, _, place = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if place:
            assert place in places(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_waits_for_its_figures(page: Path) -> None:
    assert "@@" not in text_of(page)


@pytest.mark.parametrize("page", SITE, ids=name)
def test_numbers_have_leading_zeros(page: Path) -> None:
    prose = CODE.sub("", text_of(page))
    assert not re.findall(r"(?<![\w.)\]])\.\d+", prose)


@cache
def options(command: str) -> frozenset[str]:
    """What a command's help names."""
    return frozenset(OPTION.findall(run_here(command, "--help").stdout))


@cache
def arguments() -> frozenset[str]:
    """Arguments of every public class: options of `--prior`, `--guide` and `--data`."""
    kinds = (pyro_meta.Prior, pyro_meta.Guide, pyro_meta.Data)
    named_ones = [getattr(pyro_meta, one) for one in pyro_meta.__all__]
    classes = [one for one in named_ones if inspect.isclass(one) and issubclass(one, kinds)]
    return frozenset(argument for one in classes for argument in inspect.signature(one).parameters)


@pytest.mark.parametrize("page", SITE, ids=name)
def test_every_option_of_a_command_is_there(page: Path) -> None:
    for command, words in COMMAND.findall(text_of(page)):
        if command in ("contracts", "analysis", "pretrained"):
            continue
        known = options(command) | (options("train") if command == "ablate" else frozenset())
        for option in OPTION.findall(words):
            option = option.removeprefix("grid.")
            group, _, last = option.partition(".")
            if last and group in OF_A_CLASS:
                assert last in {*arguments(), "help", "rate", "hidden"}, f"{command} --{option}"
            else:
                assert option in known, f"{command} --{option}"


def test_every_option_that_prose_names_is_there() -> None:
    """Between backquotes: `--kl.weight`, `--harden.*`."""
    known = {option for one in ("train", "ablate", "report", "generate", "evaluate", "bench")
             for option in options(one)}  # fmt: skip
    groups = {option.partition(".")[0] for option in known}
    own = {"help", "version", "constraint", "editable"}  # the first two of all, the others of pip
    missing = set()
    for page in SITE:
        for option in re.findall(r"`[^`\n]*?--([a-z][\w.*]*)", CODE.sub("", text_of(page))):
            group, _, last = option.partition(".")
            if last == "*":
                assert group in groups, f"{page}: --{option}"
            elif group in OF_A_CLASS and last:
                if last not in {*arguments(), "help"}:
                    missing.add(f"{name(page)}: --{option}")
            elif option not in known | own:
                missing.add(f"{name(page)}: --{option}")
    assert not missing


PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in SITE if PYTHON.search(text_of(page))], ids=name)
def test_python_on_a_page_is_python_and_imports_what_is_there(page: Path) -> None:
    for block in PYTHON.findall(text_of(page)):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pyro_meta"):
                module = importlib.import_module(str(node.module))
                missing = [one.name for one in node.names if not hasattr(module, one.name)]
                assert not missing, f"from {node.module}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "pyro_meta":
                    assert hasattr(pyro_meta, node.attr), f"pyro_meta.{node.attr}"


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading of a page."""
    text = (ROOT / page).read_text().partition(f"## {heading}\n")[2].partition("\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_arguments_of_priors_are_those_of_the_classes() -> None:
    table = {row[0].split("`")[1]: row[2] for row in rows("docs/choosing.md", "Priors")}
    every = {
        one for one in pyro_meta.__all__
        if inspect.isclass(getattr(pyro_meta, one))
        and issubclass(getattr(pyro_meta, one), pyro_meta.Prior)
        and not inspect.isabstract(getattr(pyro_meta, one))
    } - {"Prior", "LoadPrior"}  # fmt: skip
    assert set(table) == every
    for prior, cell in table.items():
        said = set(re.findall(r"`(\w+)`", cell))
        if "LoadCategorical" in said:
            said = said - {"LoadCategorical"} | named(pyro_meta.LoadCategorical)
        assert said == named(getattr(pyro_meta, prior)), prior


def named(one: type) -> set[str]:
    return set(inspect.signature(one).parameters) - {"network"}


def test_every_guide_is_to_be_chosen() -> None:
    text = "\n".join(row[0] for row in rows("docs/choosing.md", "Guides"))
    every = {
        one for one in pyro_meta.__all__
        if one.endswith("Guide") and issubclass(getattr(pyro_meta, one), pyro_meta.Guide)
    } - {"Guide"}  # fmt: skip
    assert every <= set(re.findall(r"`(\w+)`", text))


def test_the_readme_is_short() -> None:
    """Prose: without code, tables and marks."""
    text = CODE.sub("", (ROOT / "README.md").read_text())
    prose = [line for line in text.splitlines() if not line.startswith(("|", "    "))]
    assert len(" ".join(prose).split()) <= 700
