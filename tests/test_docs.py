"""Pages name files, places, options and arguments that are there."""

import ast
import importlib
import inspect
import math
import re
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import run_here
from notebooks import text_of

import pyro_meta
from pyro_meta.__main__ import DOORS
from pyro_meta.posterior.token_figures import divergence, efficiency, ranks
from pyro_meta.study.description import KEYS, KINDS, Study
from pyro_meta.study.plan import expand
from pyro_meta.training.settings import train_parser

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
DEFINED = re.compile(r"^ {2}(?:-\w, )?--([a-z][\w.]*)", re.MULTILINE)
CHOICES = re.compile(r"^ {2}--([a-z][\w.]*)\s+\{([\w,.-]+)\}", re.MULTILINE)
GIVEN = re.compile(r"--([a-z][\w.]*)[ =]([^\s'\"-][^\s'\"`]*)")
WITH_COMMANDS = [
    *SITE,
    *(ROOT / one for one in ("SECURITY.md", "CONTRIBUTING.md", "benchmarks/README.md")),
]
HELPFUL = [door for door in DOORS if door != "contracts"]
"""Doors with options; `contracts` hands all but one to pytest."""
OWN_CLASS = re.compile(r"--(?:prior|guide|mechanisms|block|depth|data) [^`\n]*\bmy_\w+\.[A-Z]")
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
def help_of(command: str) -> str:
    return run_here(command, "--help").stdout


@cache
def options(command: str) -> frozenset[str]:
    """The options that a command's help lists, with those of runs where it takes them."""
    if command == "contracts":
        return frozenset(OPTION.findall(run_here("contracts.__main__", "--help").stdout))
    own = frozenset(DEFINED.findall(help_of(command)))
    return own | options("train") if command == "ablate" else own


@cache
def choices(command: str) -> dict[str, list[str]]:
    """What may be said of an option of which the help lists all that may."""
    return {name: said.split(",") for name, said in CHOICES.findall(help_of(command))}


def is_of_a_class(option: str) -> bool:
    """Whether it is an argument of a class of ours, as `--prior.rate` is, or asks for them."""
    group, _, last = option.partition(".")
    return group in OF_A_CLASS and last in {*arguments(), "help", "rate", "hidden"}


@cache
def arguments() -> frozenset[str]:
    """Arguments of every public class: options of `--prior`, `--guide` and `--data`."""
    kinds = (pyro_meta.Prior, pyro_meta.Guide, pyro_meta.Data)
    named_ones = [getattr(pyro_meta, one) for one in pyro_meta.__all__]
    classes = [one for one in named_ones if inspect.isclass(one) and issubclass(one, kinds)]
    return frozenset(argument for one in classes for argument in inspect.signature(one).parameters)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_every_option_of_a_command_is_there(page: Path) -> None:
    for command, words in COMMAND.findall(text_of(page)):
        if command in ("analysis", "pretrained"):
            continue
        for option in OPTION.findall(words):
            option = option.removeprefix("grid.")
            assert option in options(command) or is_of_a_class(option), f"{command} --{option}"


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_every_choice_of_a_command_is_there(page: Path) -> None:
    for command, words in COMMAND.findall(text_of(page)):
        if command in HELPFUL:
            known = choices("train") | choices(command) if command == "ablate" else choices(command)
            for option, value in GIVEN.findall(words):
                assert value in known.get(option, [value]), f"{command} --{option} {value}"


@pytest.mark.parametrize("command", HELPFUL)
def test_what_a_help_speaks_of_is_an_option(command: str) -> None:
    spoken = {option.rstrip(".") for option in OPTION.findall(help_of(command))}
    own = {"grid.OPTION", "OPTION"} if command == "ablate" else set()
    for option in spoken - own:
        assert option in options(command) or is_of_a_class(option), option


def test_every_option_that_prose_names_is_there() -> None:
    """Between backquotes: `--kl.weight`, `--harden.*`."""
    known = {option for one in HELPFUL for option in options(one)}
    groups = {option.partition(".")[0] for option in known}
    own = {"grid.OPTION", "constraint", "editable"}  # the latter two of pip
    missing = set()
    for page in [*SITE, ROOT / "SECURITY.md"]:
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


# -- what a page lists whole -----------------------------------------------------------------


def test_the_page_of_studies_lists_every_option_of_ablate() -> None:
    listed = {one for row in rows("docs/reference/studies.md", "Options")
              for one in OPTION.findall(row[0])}  # fmt: skip
    own = set(DEFINED.findall(help_of("ablate"))) - {"help", "version"}
    assert listed == own | {"grid.OPTION", "debug"}
    assert "--debug" in help_of("ablate"), "it is none of the parser's, for it may stand alone"


def studies(page: str) -> list[dict]:
    """The studies that stand on a page as YAML."""
    blocks = re.findall(
        r"^```(?:yaml)?\n(.*?)^```$", text_of(ROOT / page), re.DOTALL | re.MULTILINE
    )
    return [yaml.safe_load(block) for block in blocks if re.match(r"(?:base|grid):", block)]


def test_the_page_of_studies_has_every_key_of_one() -> None:
    (given,) = studies("docs/reference/studies.md")
    assert set(given) == set(KEYS) and set(given["baselines"]) == {*KINDS, "seeds"}
    Study.read(given, "page")
    groups = expand(Study.read(given | {"baselines": False}, "page"))
    assert {one.reference.label for one in groups if one.reference} == {given["reference"]}


def test_the_tutorial_of_studies_has_every_opponent() -> None:
    page = "docs/tutorials/ablation.ipynb"
    (given,) = studies(page)
    Study.read(given, "page")
    table = text_of(ROOT / page).partition("## The opponents")[2].partition("\n#")[0]
    named_ones = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) - {"baselines"}
    assert named_ones == {*KINDS} - {"also"}
    assert all(one in help_of("ablate") for one in named_ones)


@pytest.mark.parametrize(
    ("heading", "data"),
    [("Recall", pyro_meta.Recall), ("Datasets of Hugging Face", pyro_meta.HuggingFace)],
)
def test_the_page_of_runs_lists_every_option_of_data(heading: str, data: type) -> None:
    cells = [row[0] for row in rows("docs/reference/runs.md", heading)]
    assert set(re.findall(r"`(\w+)`", "".join(cells))) == set(inspect.signature(data).parameters)


def test_defaults_on_a_page_are_those_of_the_command() -> None:
    defaults = {one: action.default for action in train_parser()._actions
                for one in action.option_strings}  # fmt: skip
    table = rows("docs/how/temperature.md", "How it moves")
    assert len(table) > 2
    for named_ones, said, _ in table:
        found = [str(float(defaults[one])) for one in re.findall(r"`(--[\w.]+)`", named_ones)]
        assert found == [str(float(number)) for number in said.split(", ")], named_ones


def test_every_page_of_a_class_of_ones_own_says_that_its_runs_need_trust() -> None:
    pages = [page for page in SITE if OWN_CLASS.search(text_of(page))]
    assert len(pages) > 4
    for page in pages:
        assert "trust" in text_of(page), page


def test_what_opens_a_run_is_named_by_the_page_of_security() -> None:
    text = " ".join((ROOT / "SECURITY.md").read_text().split())
    listed = text.partition("Opening one (")[2].partition(")")[0]
    for command in HELPFUL:
        is_named = f"`{command}" in listed or (command == "train" and "`--resume`" in listed)
        assert is_named == ("trust" in DEFINED.findall(help_of(command))), command


def test_a_line_is_read_aloud_with_its_own_numbers() -> None:
    """Every figure of the worked reading, from p and q as the page gives them."""
    page = (ROOT / "docs/how/posterior.md").read_text()
    section = page.partition("## A line, read aloud\n")[2].partition("\n## ")[0]
    given = dict(re.findall(r"(\bp|\bq) = \(([\d., ]+)\)", section))
    p, q = (np.array([float(one) for one in given[name].split(",")]) for name in "pq")
    assert p.sum() == pytest.approx(1) and q.sum() == pytest.approx(1)
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if " | " in line]
    here, aloud = ({cell[0]: cell[at] for cell in cells} for at in (1, 2))
    kl = float(divergence(np.log(q), np.log(p)))
    assert float(here["effective share of draws"]) == round(
        float(efficiency(np.log(q), np.log(p))), 2
    )
    assert float(here["KL to it, nats"]) == round(kl, 2)
    assert f"e^{kl:.2f} = {math.exp(kl):.2f} times" in aloud["KL to it, nats"]
    assert float(here["total variation"]) == pytest.approx(np.abs(p - q).sum() / 2)
    assert int(here["whole routes"]) == 3**4 and "3 mechanisms and 4 lay" in aloud["whole routes"]
    assert here["rank"] == "2 of 81" and f"a guess has {(81 + 1) // 2}" in aloud["rank"]
    assert ranks(np.log(q), np.log(p[::-1])) == 2  # another is likelier than its favourite


def test_the_readme_is_short() -> None:
    """Prose: without code, tables and marks."""
    text = CODE.sub("", (ROOT / "README.md").read_text())
    prose = [line for line in text.splitlines() if not line.startswith(("|", "    "))]
    assert len(" ".join(prose).split()) <= 700
