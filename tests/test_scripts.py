"""The scripts of benchmarks/ say in one line what is wrong with their words, before they begin."""

import argparse
import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scripts

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import run_command

FOLDER = Path(scripts.__file__).parent
NAMES = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if '\nif __name__ == "__main' in path.read_text("utf-8")
)
OF_STUDIES = {"exhibit", "temperature"}
"""Scripts that hand words on to `ablate`, and are run as the commands of the package are."""
FREE = {"--command", "--pretrained", "--precision", "--only", "--parts"}
"""Options that take any text, or have choices."""
BAD = {
    "a_count": ["many", "0", "-3", "1.5", "nan"],
    "a_whole": ["many", "-1", "0.5"],
    "positive": ["much", "0", "-1", "inf", "nan"],
    "a_share": ["much", "0", "-0.1", "1.1", "nan"],
    "a_run": ["nowhere", "."],
    "a_text": ["nowhere", "empty", "nowhere/*.txt"],
    "a_folder": ["nowhere", "file", "empty"],
    "a_file": ["nowhere", "empty"],
    "a_file_to_write": ["file/x.json", "file/below/x.json", "empty", ""],
    "a_folder_to_write": ["file", "file/below", ""],
}
"""What each kind of option refuses, in a folder that holds `file` and an empty folder."""


class Seen(BaseException):
    """A parser that is about to read."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def main_of(name: str) -> Callable[[], Any]:
    main = importlib.import_module(name).main
    return (lambda: main(sys.argv[1:])) if name in OF_STUDIES else main


def parser_of(name: str) -> argparse.ArgumentParser:
    def show(parser: scripts.Parser, *words: Any) -> None:
        raise Seen(parser)

    main = main_of(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts.Parser, "parse_known_args", show)
        patch.setattr(sys, "argv", [name])
        with pytest.raises(Seen) as seen:
            main()
    return seen.value.parser


def refused(
    name: str, words: list[str], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line that a script says."""
    patch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as stop:
        scripts.run_script(main_of(name))
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and not out
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    return error.removeprefix("error: ")


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for name in ("config.yaml", "text.txt"):
        (tmp_path / "full" / name).write_text("")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)  # where some write by default
    (tmp_path / "benchmarks" / "results" / "file").write_text("")


def sound(kind: str) -> str:
    """A value that an option takes."""
    return {"a_file_to_write": "new.json", "a_folder_to_write": "new", "a_count": "1"}.get(
        kind, "full"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_value_is_refused_by_name_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = [one for one in parser_of(name)._actions if one.nargs != 0]
    before: list[str] = []  # positional words that are sound
    for action in actions:
        option = action.option_strings[0] if action.option_strings else None
        if option in FREE:
            continue
        kind = getattr(action.type, "__name__", "nothing")
        assert kind in BAD, f"{name}: {option or action.dest} takes whatever it is given"
        for bad in BAD[kind]:
            words = [f"{option}={bad}"] if option else [*before, bad]
            line = refused(name, words, monkeypatch, capsys)
            assert line.startswith(f"option {option}: " if option else f"{action.dest}: ")
        before += [] if option else [sound(kind)]


@pytest.mark.parametrize("name", NAMES)
def test_a_word_that_is_no_option_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(name)
    if needed := [one for one in parser._actions if one.required]:
        assert "is missing" in refused(name, [], monkeypatch, capsys)
    words = []
    for one in needed:
        kind = getattr(one.type, "__name__", "nothing")
        words += [*one.option_strings[:1], sound(kind)]
    if name not in (*OF_STUDIES, "report_memory"):  # which hand further words on
        line = refused(name, [*words, "--nothing=1"], monkeypatch, capsys)
        assert line.startswith("unknown option --nothing")


@pytest.mark.parametrize("name", NAMES)
def test_every_script_is_run_so_that_whatever_goes_wrong_is_one_line(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text("utf-8"))
    last = tree.body[-1]
    assert isinstance(last, ast.If)
    (call,) = last.body
    ways = {"run_script(main)", "run_command(main)"}
    assert ast.unparse(call) in ways and isinstance(call, ast.Expr)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UsageError("x: y given"), 2, "error: x: y given\n"),
        (FileNotFoundError(2, "No such file", "gone.json"), 2, "error: gone.json: No such file\n"),
        (KeyError("loss"), 2, "error: KeyError: 'loss' (--debug shows where)\n"),
        (SystemExit("no documents"), 2, "error: no documents\n"),
        (SystemExit(1), 1, ""),
        (SystemExit(), 0, ""),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_script_raises_is_one_line(
    raised: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise raised

    with pytest.raises(SystemExit) as stop:
        scripts.run_script(main)
    assert (stop.value.code, capsys.readouterr().err) == (code, line)


def test_the_folder_of_a_file_to_write_is_made_once_nothing_is_refused() -> None:
    parser = scripts.Parser("What it does.\n\nMore.")
    parser.add_argument("--json", type=scripts.a_file_to_write)
    parser.add_argument("--count", type=scripts.a_count)
    assert parser.description == "What it does."
    with pytest.raises(UsageError, match=r"^option --count: x given"):
        parser.parse_args(["--json=new/x.json", "--count=x"])
    with pytest.raises(UsageError, match=r"^unknown option --nothing"):
        parser.parse_args(["--json=new/x.json", "--nothing"])
    assert not Path("new").exists()
    assert parser.parse_args(["--json=new/x.json"]).json.parent.is_dir()


def test_a_command_that_fails_is_told_in_its_own_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        raise scripts.subprocess.CalledProcessError(2, ["x"], "", "loading\nerror: no such model\n")

    with pytest.raises(SystemExit):
        scripts.run_script(main)
    assert capsys.readouterr().err == "error: no such model\n"


def test_a_traceback_is_shown_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug"])
    with pytest.raises(SystemExit):
        scripts.run_script(lambda: int("three"))
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.splitlines()[-1].startswith("error: ValueError")


def runner_of(name: str) -> Callable[[Callable[..., Any]], None]:
    """What the last line of a script runs it by."""
    by_command = "run_command(main)" in (FOLDER / f"{name}.py").read_text("utf-8")
    return run_command if by_command else scripts.run_script


@pytest.mark.parametrize("name", NAMES)
def test_help_is_no_error(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runner_of(name)(importlib.import_module(name).main)
    out, error = capsys.readouterr()
    assert not stop.value.code and out.startswith("usage: ") and not error
