"""The report in HTML, Markdown and JSON: the same figures, whole files, several runs in one."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import error_line, run_here

from pyro_meta import checksums, report
from pyro_meta.analysis import about, of_run, options
from pyro_meta.analysis.estimates import State
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.plots import PICTURES, drawing, power_scaling, training
from pyro_meta.analysis.plots.style import NARROW, narrow, styled
from pyro_meta.analysis.reading import Reading
from pyro_meta.folders import write_together

Rows = list[list[str]]
SHORT = ("load_by_layer", "entropy_over_training", "k_hat")
"""Pictures that are drawn where it does not matter which."""


@pytest.fixture(scope="module")
def run(read_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, so that nobody else's report is written."""
    folder = tmp_path_factory.mktemp("formats") / "one|run *a*"
    shutil.copytree(read_out, folder, ignore=shutil.ignore_patterns("report"))
    return folder


@pytest.fixture(scope="module")
def other(run: Path) -> Path:
    """Another run, of another seed, by its files."""
    folder = run.with_name("other")
    shutil.copytree(run, folder)
    text = (folder / "config.yaml").read_text()
    changed = re.sub(r"(?m)^dropout: .*$", "dropout: 0.25", text)
    assert changed != text
    (folder / "config.yaml").write_text(changed)
    losses = json.loads((folder / "sequences.json").read_text())
    losses["hard"] = [loss + 0.5 for loss in losses["hard"]]
    (folder / "sequences.json").write_text(json.dumps(losses))
    checksums.renew(folder, "config.yaml", "sequences.json")
    return folder


@pytest.fixture(autouse=True)
def one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "now", lambda: datetime(2030, 4, 5, 6, 7, tzinfo=UTC))


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [picture for picture in PICTURES if picture.name in SHORT]
    monkeypatch.setattr("pyro_meta.posterior.report.PICTURES", few)


# -- reading reports back ------------------------------------------------------------------------


class Page(HTMLParser):
    """Tables by name, alternative texts, captions and all words of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, Rows] = {}
        self.alternatives: list[str] = []
        self.words: list[str] = []
        self.differing: list[str] = []
        self._rows: Rows | None = None
        self._differs = self._in_cell = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        of = dict(attributes)
        if tag == "table":
            self._rows = self.tables[(of["id"] or "").removeprefix("table-")] = []
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
            self._differs = of.get("class") == "differs"
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")
            self._in_cell = True
        elif tag == "img":
            self.alternatives.append(of["alt"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None
        elif tag in ("td", "th"):
            self._in_cell = False
        elif tag == "tr" and self._rows and self._differs:
            self.differing.append(self._rows[-1][0])

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._rows and self._in_cell:
            self._rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def plain(markdown: str) -> str:
    return re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", markdown)


def markdown_tables(text: str) -> list[Rows]:
    found: list[Rows] = []
    for block in text.split("\n\n"):
        if block.startswith("| "):
            lines = [line.removeprefix("| ").removesuffix(" |") for line in block.split("\n")]
            rows = [re.split(r"(?<!\\) \| ", line) for line in lines]
            cells = [[plain(cell.strip()) for cell in row] for row in rows]
            assert set("".join(cells[1])) <= set("-: "), "a line below the names of the columns"
            found.append([cells[0], *cells[2:]])
    return found


def is_shown_as(value: Any, text: str) -> bool:
    """Whether a text is a number, or a word, of JSON as people read it."""
    if value is None:
        return text == ""
    if isinstance(value, str):
        return value == text
    scale = 100 if text.endswith("%") else 1
    digits = text.removesuffix("%").replace(",", "")
    last = digits.partition("e")[0].partition(".")[2]
    power = int(digits.partition("e")[2] or 0)
    half = 0.5 * 10.0 ** (power - len(last)) / scale
    if "." not in digits and "e" not in digits and isinstance(value, float):
        half = max(half, 0.006 * abs(value))  # three digits of it
    return abs(float(digits) / scale - value) <= half * (1 + 1e-9)


def written(runs: list[Path], into: Path, form: str) -> dict[str, Any]:
    report.main([*map(str, runs), f"--out={into}", f"--format={form}", "--belief=false"])
    name = "report" if len(runs) == 1 else "comparison"
    found: dict[str, Any] = json.loads((into / f"{name}.json").read_text("utf-8"))
    return found


def assert_tables_agree(page: Page, markdown: str, numbers: dict[str, Any]) -> None:
    tables = numbers["tables"]
    assert list(page.tables) == [table["name"] for table in tables] and len(tables) >= 3
    in_markdown = [rows for rows in markdown_tables(markdown) if rows[0] != ["fact", "value"]]
    for table, rows in zip(tables, in_markdown, strict=True):
        name, on_page = table["name"], page.tables[table["name"]]
        strip = [[rows[0][0], *rows[0][1:]], *([r[0].removeprefix("≠ "), *r[1:]] for r in rows[1:])]
        assert [[" ".join(c.split()) for c in r] for r in on_page] == [
            [" ".join(c.split()) for c in r] for r in strip
        ], name
        assert on_page[0] == table["columns"]
        for shown, values in zip(on_page[1:], table["rows"], strict=True):
            for text, value in zip(shown, values, strict=True):
                assert is_shown_as(value, text), (name, shown[0], text, value)


# -- one run -------------------------------------------------------------------------------------


def test_page_markdown_and_json_hold_the_same(run: Path, tmp_path: Path) -> None:
    numbers = written([run], tmp_path / "page", "html")
    assert written([run], tmp_path / "text", "md").keys() == numbers.keys()
    page = Page(tmp_path / "page" / "report.html")
    markdown = (tmp_path / "text" / "report.md").read_text("utf-8")
    assert_tables_agree(page, markdown, numbers)
    words = " ".join(plain(markdown).split())
    for line in numbers["verdicts"]:
        assert line["reason"] in words and line["reason"] in page.text
        assert f"{line['question']} {line['answer'].capitalize()}." in words
        for name, state in line["states_by_layer"]:
            assert f"{name}: {state}" in words and f"{name}: {state}" in page.text
    assert numbers["headline"] in words and numbers["headline"] in page.text
    says = [one["says"] for one in numbers["pictures"]]
    assert page.alternatives == says and len(says) == len(SHORT)
    for one in numbers["pictures"]:
        assert one["says"] in words and one["how"] in words and one["how"] in page.text
    facts = numbers["about"]
    assert {"data", "model", "steps", "seed", "trained", "versions"} <= facts.keys()
    for name, value in facts.items():
        assert value in words and value in page.text, name
    assert facts["read"].startswith("2030-04-05 06:07 UTC by pyro-meta ")
    links = re.findall(r"!\[.*?(?<!\\)\]\((.*?)\)", markdown)
    assert len(links) == len(SHORT) + 1
    assert all((tmp_path / "text" / link).is_file() for link in links)


LOAD = re.compile(r"\bloads?\b", re.IGNORECASE)


def test_what_is_counted_is_called_a_share(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A load is the parameter pi of a prior, of which a report says nothing."""
    written([run, other], tmp_path, "md")
    pages = {path.name: path.read_text("utf-8") for path in tmp_path.rglob("*.md")}
    assert len(pages) > 1
    pictures = [f"{one.title}. {one.how}" for one in PICTURES]
    says = [one.says for one in drawing.said(Findings(Reading.of(run)), PICTURES)]
    for text in (*pages.values(), capsys.readouterr().out, *pictures, *says):
        assert not LOAD.search(text)
    assert "shares" in " ".join(pictures) and LOAD.search("The load of it"), "this can fail"


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (
            "yy",
            "decides which mechanism runs in 2 of 2 layers; of all choices 75.0% are full, 25.0% b",
        ),
        ("yn", "decides which mechanism runs in 1 of 2 layers; "),
        ("nu", "decides which mechanism runs in none of 2 layers; "),
        ("y", "decides which mechanism runs; "),
        ("n", "does not decide which mechanism runs; "),
    ],
)
def test_the_headline_says_what_was_found(states: str, said: str) -> None:
    layers = len(states)
    choice = np.zeros((layers, 8), int)
    choice[:, :2] = 1
    reading = SimpleNamespace(
        checks=[SimpleNamespace(states=[STATES[one] for one in states])],
        means=np.full((layers, 8, 2), 0.5), choice=choice, mechanisms=["full", "b"],
        facts={"groups": 1}, shares_among=lambda mask: np.array([0.75, 0.25]),
    )  # fmt: skip
    findings = Findings(reading)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Findings, "judgements", lambda self: [None])
        line = findings.headline()
        assert line.startswith(f"The token {said}") and line.endswith("; no other check failed.")
        reading.choice = np.full_like(choice, -1)
        assert "; of a mixture 75.0% is full, 25.0% b; " in findings.headline()


STATES = {"y": State.YES, "n": State.NO, "u": State.UNDECIDED}


def test_tables_are_of_the_raw_figures(run: Path, tmp_path: Path) -> None:
    numbers = written([run], tmp_path, "json")
    tables = {table["name"]: table for table in numbers["tables"]}
    by_layer = np.array([row[1:] for row in tables["by_layer"]["rows"]], float)
    keys = ("effective_by_load", "effective_per_token", "information", "total", "expected",
            "epistemic", "kl", "marginal_kl")  # fmt: skip
    raw = [[row[key] for key in keys] for row in numbers["diversity_by_layer"]]
    np.testing.assert_array_equal(by_layer, raw)
    losses = [row[1] for row in tables["results"]["rows"][:2]]
    assert losses == [numbers["summary"][f"val_nll_{how}"] for how in ("soft", "hard")]
    states = [[row[-1].split()[-1] for row in tables[f"check_{n}"]["rows"]] for n in (1, 2, 3)]
    assert states == [one["states"] for one in numbers["collapse"]["checks_by_layer"]]


def test_a_figure_that_is_another_is_told() -> None:
    """The comparison above can fail."""
    assert is_shown_as(0.1234, "0.123") and not is_shown_as(0.1236, "0.123")
    assert is_shown_as(0.4567, "45.7%") and not is_shown_as(0.4567, "45.6%")
    assert is_shown_as(None, "") and not is_shown_as(1.0, "1.001")


def test_json_alone_draws_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_meta.analysis.plots.drawing.as_png", None)
    numbers = written([run], tmp_path / "numbers", "json")
    assert os.listdir(tmp_path / "numbers") == ["report.json"]
    assert [one["name"] for one in numbers["pictures"]] == [
        one.name for one in PICTURES if one.name in SHORT
    ]


@pytest.mark.parametrize("form", ["pdf", "", "HTML"])
def test_another_format_is_one_line(run: Path, form: str) -> None:
    said = error_line(run_here("report", run, f"--format={form}"))
    assert "option --format" in said and all(name in said for name in ("html", "md", "json"))
    assert form in said and not (run / "report").exists()


def test_the_terminal_has_the_marks_of_the_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = written([run], tmp_path, "json")
    said = capsys.readouterr().out
    assert numbers["headline"] in said
    marks = {True: "✓", False: "✗", None: "–"}
    for line in numbers["verdicts"]:
        assert f"{marks[line['is_good']]} {line['question']} {line['answer']}: " in said


def test_sequences_of_the_passage_are_divided(run: Path) -> None:
    findings = Findings(Reading.of(run))
    sequence = findings.reading.sequence[: of_run.PASSAGE_TOKENS]
    found = of_run.passage(findings, None)  # type: ignore[arg-type]
    for _, tokens in found.layers:
        begins = [token.begins for token in tokens]
        assert [one for one in begins if one] == list(range(1, len(set(sequence)) + 1))
        assert np.flatnonzero(begins).tolist() == np.unique(sequence, return_index=True)[1].tolist()


def test_every_axis_has_one_quantity_and_no_bar_stands_on_a_log(run: Path) -> None:
    findings = Findings(Reading.of(run))
    with styled():
        figure = training.entropy_over_training(findings.reading)
        assert len({axes.get_title(loc="center") for axes in figure.axes}) == 4
        assert [len(axes.lines) for axes in figure.axes][1:] == [0, 1, 1]
        assert findings.sensitivity is not None
        reacts = power_scaling.power_scaling(findings.reading, findings.sensitivity)
        assert reacts.axes[0].get_xscale() == "log" and not reacts.axes[0].patches


def test_pictures_for_phones_are_narrow(run: Path) -> None:
    findings = Findings(Reading.of(run))
    for picture in PICTURES:
        if not picture.applies(findings):
            continue
        with styled(), narrow():
            figure = picture.draw(findings)
            assert figure.get_figwidth() <= NARROW, picture.name


# -- options of a run that may come from anybody --------------------------------------------------


@pytest.mark.parametrize("text", ["[1, 2]", "a: !x [1]", "a: {", "a: 1\na: 2", ""])
def test_options_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        options.read(tmp_path / "config.yaml")


def test_options_have_dotted_names(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "prior:\n  class_path: pyro_meta.Mine\n  init_args: {rate: 2.0, of: null}\n"
        "kl: {weight: 0.5}\nmechanisms: [full, window]\ncompile: false\n"
    )
    assert options.read(tmp_path / "config.yaml") == {
        "prior": "Mine", "prior.rate": "2.0", "prior.of": "none", "kl.weight": "0.5",
        "mechanisms": "full, window", "compile": "false",
    }  # fmt: skip


# -- the disk ------------------------------------------------------------------------------------


def fail_at(count: int) -> Callable[[Path, bytes], int]:
    """`Path.write_bytes` that finds the disk full at one of its calls."""
    there, calls = Path.write_bytes, iter(range(10**6))

    def write(path: Path, data: bytes) -> int:
        if next(calls) == count:
            there(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return there(path, data)

    return write


@pytest.mark.parametrize("count", [0, 1, 2])
def test_several_files_are_written_together_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    names = ("a", "b", "c")
    write_together({tmp_path / name: "old" for name in names})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail_at(count))
        with pytest.raises(OSError, match="No space left") as raised:
            write_together({tmp_path / name: b"new" for name in names})
    assert raised.value.filename in {str(tmp_path / name) for name in names}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        names, "old"
    )
    write_together({tmp_path / name: b"new" for name in names})
    assert all((tmp_path / name).read_text() == "new" for name in names)


@pytest.mark.long
def test_a_full_disk_leaves_the_report_of_before(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    written([run], out, "html")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", fail_at(3))
    said = error_line(run_here("report", run, f"--out={out}", "--belief=false"))
    assert "No space left on device" in said and str(out) in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# -- several runs --------------------------------------------------------------------------------


@pytest.mark.long
def test_several_runs_are_side_by_side(run: Path, other: Path, tmp_path: Path) -> None:
    numbers = written([run, other], tmp_path / "page", "html")
    written([run, other], tmp_path / "text", "md")
    page = Page(tmp_path / "page" / "comparison.html")
    markdown = (tmp_path / "text" / "comparison.md").read_text("utf-8")
    assert_tables_agree(page, markdown, numbers)
    names = [run.name, other.name]
    assert numbers["runs"] == names
    for table in ("runs", "verdicts", "figures"):
        assert page.tables[table][0][1:] == names, table
    assert page.differing == ["--dropout"] and "| ≠ --dropout |" in plain(markdown)
    answers = page.tables["verdicts"][2:]
    assert len(answers) == 8 and all(row[1] == row[2] for row in answers[:3])
    (pair,) = page.tables["pairs"][1:]
    assert pair[1:] == ["-0.5000", "-0.5000", "-0.5000", f"{run.name} is better"]
    of_each = [text for text in page.alternatives if text.startswith(tuple(names))]
    assert len(of_each) == 2 * len(SHORT) + 2, "of each run, and two of both"
    for place, form, pattern in (
        ("page", "html", r'href="([^#"][^"]*report\.html)"'),
        ("text", "md", r"\[The report of .*\]\((.*)\)"),
    ):
        text = (tmp_path / place / f"comparison.{form}").read_text("utf-8")
        links = re.findall(pattern, text)
        assert links == ["one%7Crun%20%2Aa%2A/report." + form, "other/report." + form]
    pictures = re.findall(r"!\[.*?(?<!\\)\]\((.*?)\)", markdown)
    assert len(pictures) == 2 * len(SHORT) + 2
    from urllib.parse import unquote

    assert all((tmp_path / "text" / unquote(path)).is_file() for path in pictures)


def test_a_page_of_several_runs_replaces_nobody_elses(
    run: Path, other: Path, tmp_path: Path
) -> None:
    (tmp_path / "comparison.md").write_text("mine")
    said = error_line(run_here("report", run, other, "--belief=false", f"--out={tmp_path}"))
    assert "option --out" in said and "comparison.md" in said
    assert os.listdir(tmp_path) == ["comparison.md"]
