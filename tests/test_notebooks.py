"""The tutorials are notebooks that run from top to bottom, and the site holds what came out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="the extra `dev` is not installed")
pytest.importorskip("ipykernel", reason="the extra `dev` is not installed")
pytest.importorskip("nbconvert", reason="the extra `docs` is not installed")

import nbformat
import run_notebooks
from run_notebooks import NOTEBOOKS, ROOT, WARNS, cleaned, complaints, kinds

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
TUTORIALS = ["ablation", "first_run", "own_guide", "own_mechanism", "own_prior", "pretrained"]
LARGEST = 60_000
"""Bytes of a picture, and of the text that a cell gives."""
OF_A_MACHINE = re.compile(r"/(?:tmp|home|root|work|Users)/|site-packages")


def code(path: Path) -> list[Any]:
    return [one for one in nbformat.read(path, as_version=4).cells if one.cell_type == "code"]


@pytest.mark.long  # `make notebooks` runs them, in CI too
@each
def test_a_notebook_runs_in_a_fresh_folder(path: Path, tmp_path: Path) -> None:
    """Without an exception or an unexpected warning, to outputs such as those in the file."""
    found = run_notebooks.run(path, tmp_path)
    assert not complaints(found)
    assert kinds(found) == kinds(nbformat.read(path, as_version=4))


def test_there_is_a_notebook_for_each_task() -> None:
    assert [path.stem for path in NOTEBOOKS] == TUTORIALS


@each
def test_a_notebook_is_whole_and_clean(path: Path) -> None:
    """As `--write` leaves it: valid, run once in order, small, and of no machine."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert not complaints(notebook)
    assert not OF_A_MACHINE.search(path.read_text(encoding="utf-8"))
    for cell in code(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            for kind, value in output.get("data", {}).items():
                size = len(value) * 3 // 4 if kind == "image/png" else len(str(value))
                assert size < LARGEST, cell.source
                assert kind != "image/png" or cell.metadata.get("alt"), "a picture is described"
    assert cleaned(nbformat.read(path, as_version=4)) == notebook


@each
def test_a_notebook_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "pip install --editable" in text and "jupyterlab" in text


def printed(text: str, tags: tuple[str, ...] = ()) -> Any:
    output = nbformat.v4.new_output("stream", name="stderr", text=text)
    cell = nbformat.v4.new_code_cell("f()", outputs=[output], metadata={"tags": list(tags)})
    return nbformat.v4.new_notebook(cells=[cell])


def test_a_warning_is_a_complaint_unless_the_text_speaks_of_it() -> None:
    warned = "a.py:3: UserWarning: it is slow\n  f()\n"
    assert complaints(printed(warned)) and complaints(printed("step 1\n", (WARNS,)))
    assert not complaints(printed(warned, (WARNS,))) and not complaints(printed("step 1\n"))


def test_pieces_of_a_stream_are_joined_in_their_order() -> None:
    pieces = [("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", f"{ROOT}/d")]
    outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("f()", outputs=outputs)])
    found = [(one.name, one.text) for one in cleaned(notebook).cells[0].outputs]
    assert found == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


def test_what_came_out_is_compared_in_kind() -> None:
    def giving(*kinds: str) -> Any:
        data = dict.fromkeys(kinds, "x")
        output = nbformat.v4.new_output("execute_result", data=data)
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])

    assert kinds(giving("text/plain")) == kinds(giving("text/plain"))
    assert kinds(giving("text/plain")) != kinds(giving("text/plain", "image/png"))
    assert kinds(giving("text/plain")) != kinds(printed("x"))


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_notebooks.main(["frist_run"])
    assert stop.value.code == 2
    assert "frist_run given; ablation, first_run" in capsys.readouterr().err


def test_notebooks_are_json_that_git_shows_line_by_line() -> None:
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        assert text == json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
