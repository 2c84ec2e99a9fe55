"""Tables of README and docs are what the committed JSON says."""

from pathlib import Path

import figures
import pytest
import tables
from matplotlib.figure import Figure
from table_blocks import BlockError, filled, named
from table_cells import number, percent, spread, times


def test_every_table_is_what_the_json_says() -> None:
    assert tables.main(["--check"]) == 0


def test_a_figure_of_other_numbers_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A curve that lies a little higher is another figure; so is one that is not there."""
    monkeypatch.setattr(figures, "FIGURES", {"one.png": lambda path: drawn(path, 0.5)})
    assert list(figures.differing(tmp_path)) == [tmp_path / "one.png"]
    drawn(tmp_path / "one.png", 0.5)
    assert not figures.differing(tmp_path)
    drawn(tmp_path / "one.png", 0.53)
    assert list(figures.differing(tmp_path)) == [tmp_path / "one.png"]


def drawn(path: Path, height: float) -> None:
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.plot([0, 1, 2], [0.2, height, 0.4], lw=2)
    axes.set_ylim(0, 1)
    figure.savefig(path)


def test_every_figure_stands_on_a_page() -> None:
    text = "".join(page.read_text() for page in tables.pages())
    assert all(Path(name).name in text for name in figures.FIGURES)


def test_every_table_stands_on_a_page() -> None:
    asked = {name for page in tables.pages() for name in named(page.read_text())}
    assert asked == set(tables.TABLES)


def copy_of(page: str, tmp_path: Path) -> Path:
    copy = tmp_path / Path(page).name
    copy.write_text((tables.ROOT / page).read_text())
    return copy


def test_a_changed_cell_is_found_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy_of("README.md", tmp_path)
    right = page.read_text()
    page.write_text(right.replace("1.669", "1.569", 1))
    assert page.read_text() != right
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    monkeypatch.setattr(figures, "FIGURES", {})
    assert tables.main(["--check"]) == 1
    assert "README.md: a table is not what the JSON says" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert page.read_text() == right
    assert tables.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- table: nobody -->\n<!-- end -->", "table: nobody"),
        ("<!-- table: planted -->\n| a |\n", "has no `<!-- end -->`"),
    ],
)
def test_a_mark_that_is_wrong_is_refused(text: str, says: str) -> None:
    with pytest.raises(BlockError, match=says):
        filled(text, tables.TABLES)


def test_cells() -> None:
    assert number(0.0334) == "0.033" and number(None) == ""
    assert number(-0.0001, sign=True) == "0.000" and number(0.002, sign=True) == "+0.002"
    assert percent(1.0, 1) == "100%" and percent(0.9857, 1) == "98.6%" and percent(0.0) == "0%"
    assert percent(1.0) == "100%"
    assert times(2.663) == "2.66" and times(18.41) == "18.4"
    assert spread({"mean": 1.5, "deviation": 0.01, "seeds": 3}) == "1.500\u00a0±\u00a00.010"
    assert spread({"mean": 1.5, "deviation": None, "seeds": 1}) == "1.500"
