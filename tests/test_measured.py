"""Files of figures say what made them, in the file and in the index above it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import record
import results_read
import tables

from pyro_meta import UsageError, bench, results_index
from pyro_meta.results_index import Entry, faults, publish, read
from pyro_meta.terminal.measured import entry_of, measured_by, seeds_named, write_measured

ROOT = Path(__file__).parents[1]


def test_a_file_of_figures_has_an_entry_where_there_is_an_index(tmp_path: Path) -> None:
    facts = measured_by(["python", "x.py", "a b"])
    alone = tmp_path / "alone" / "x.json"
    write_measured(alone, facts | {"figure": 1})
    assert [*alone.parent.iterdir()] == [alone], "no index is begun"
    folder = tmp_path / "results"
    publish(folder, "other", {"other/x.json": "{}"}, Entry())
    path = folder / "deep" / "x.json"
    picture = folder / "deep" / "x_one.png"
    for figure, beside in ((1, []), (2, [picture]), (3, [])):
        for one in beside:
            one.write_bytes(b"png")
        write_measured(path, facts | {"figure": figure}, beside=beside)
        entry = read(folder)["deep/x.json"]
        assert json.loads(path.read_text()) == facts | {"figure": figure}
        assert len(entry.files) == 1 + len(beside) and not [*faults(folder)]
    assert entry.command == "python x.py 'a b'" == facts["command"]
    assert {key: getattr(entry, key) for key in ("commit", "date", "hardware", "versions")} == {
        key: facts[key] for key in ("commit", "date", "hardware", "versions")
    }


def test_figures_are_not_lost_where_their_entry_cannot_be_written(tmp_path: Path) -> None:
    publish(tmp_path, "a", {"a/x.json": "{}"}, Entry())
    with pytest.raises(UsageError, match=r"x\.json is a file of the result a"):
        write_measured(tmp_path / "a" / "x.json", {"figure": 1})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"figure": 1}
    (tmp_path / "index.json").write_text("{")
    write_measured(tmp_path / "y.json", {"figure": 2})
    assert json.loads((tmp_path / "y.json").read_text()) == {"figure": 2}


@pytest.mark.parametrize(
    ("contents", "command", "seeds"),
    [
        ({"runs": [{"seed": 2}, {"summary": {"seed": 0}}]}, "", [0, 2]),
        ({"rows": {"routes-s1: hard, at 0.33": 0.2, "full": 0.1}}, "", [1]),
        ({}, "python lora.py runs/routes-s0 runs/routes-s12 --steps 3", [0, 12]),
        ({"differences": [{"by_seed": {"0": 0.1, "3": 0.2}}, {"by_seed": [0.1]}]}, "", [0, 3]),
        ({"seed": None, "seconds": 3, "by": {"window-sink": 1, "x-s": 2}}, "", []),
    ],
)
def test_seeds_are_those_that_are_named(contents: Any, command: str, seeds: list[int]) -> None:
    assert seeds_named(contents, command) == seeds


def test_an_older_file_says_what_it_can() -> None:
    found = {"command": ["python", "-m", "a", "b c"], "runs": {"x": {"versions": {"torch": "2"}}}}
    entry = entry_of(found, found)
    assert (entry.command, entry.versions) == ("python -m a 'b c'", {"torch": "2"})
    assert entry.commit is entry.date is entry.hardware is None


def test_what_bench_draws_again_stays_with_its_figures(tmp_path: Path) -> None:
    publish(tmp_path, "other", {"other/x.json": "{}"}, Entry())
    words = ["--what=routed", "--repeats=1", "--lengths=[64]", "--shares=[0.5]", "--layers=1"]
    bench.main([*words, "--parts=[attention]", "--device=cpu", f"--out={tmp_path}"])
    entry = read(tmp_path)["routed.json"]
    assert len(entry.files) == 3 and not [*faults(tmp_path)]
    bench.main(["--what=draw", f"--out={tmp_path}"])
    again = read(tmp_path)["routed.json"]
    assert not [*faults(tmp_path)] and again.command == entry.command


# -- what is brought by hand -----------------------------------------------------------------------


@pytest.fixture(name="checkout")
def checkout_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results in a checkout of its own, nothing entered: a study and two files."""
    folder = tmp_path / "results"
    (folder / "s").mkdir(parents=True)
    study = {"runs": [], "command": "c", "hardware": {}, "versions": {}}
    (folder / "s" / "study.json").write_text(json.dumps(study))
    for name in ("study.csv", "study.md", "study.yaml", "pareto.png"):
        (folder / "s" / name).write_text(name)
    (folder / "s" / "on_the_way.json").write_text('{"runs": {"a-s3": 1}}')
    (folder / "x.json").write_text('{"date": "2026-01-02"}')
    (folder / "x_by_length.png").write_text("png")
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "a")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "a@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(tmp_path, "init", "-q")
    return folder


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)
    return done.stdout.decode().strip()


def committed(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return git(folder, "rev-parse", "HEAD")


def test_what_was_brought_gets_its_entry_and_nothing_else_changes(checkout: Path) -> None:
    first = committed(checkout)
    assert record.record(checkout) == ["s", "s/on_the_way.json", "x.json"]
    entries = read(checkout)
    assert entries["s"].files.keys() == {
        f"s/{name}" for name in ("study.json", "study.csv", "study.md", "study.yaml", "pareto.png")
    }
    assert entries["s/on_the_way.json"].seeds == [3]
    assert entries["x.json"].files.keys() == {"x.json", "x_by_length.png"}
    assert entries["x.json"].date == "2026-01-02", "what it says itself goes before history"
    assert {entry.commit for entry in entries.values()} == {first}
    assert record.record(checkout) == [] and not [*faults(checkout)]

    committed(checkout)
    git(checkout, "mv", "x.json", "y.json")
    git(checkout, "mv", "x_by_length.png", "y_by_length.png")
    (checkout / "s" / "on_the_way.json").write_text("{}")
    third = committed(checkout)
    names = record.record(checkout, [("s/on_the_way.json", "more")])
    assert names == ["s/on_the_way.json", "x.json", "y.json"]
    entries = read(checkout)
    assert entries["y.json"].commit == first, "it was moved, and not changed"
    assert entries["s/on_the_way.json"].commit == third
    assert "x.json" not in entries and not [*faults(checkout)]
    (checkout / "s" / "on_the_way.json").write_text('{"more": 1}')
    assert record.record(checkout) == ["s/on_the_way.json"]
    assert read(checkout)["s/on_the_way.json"].command == "more", "what was told by hand stays"


def test_what_cannot_be_entered_is_told_and_the_index_stays(checkout: Path) -> None:
    committed(checkout)
    folder = f"--folder={checkout}"
    with pytest.raises(UsageError, match="option --command: none given"):
        record.main([folder, "--command", "none", "c"])
    (checkout / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"notes\.txt belongs to no study\.yaml, and to no JSON"):
        record.main([folder])
    assert not (checkout / "index.json").exists()
    (checkout / "notes.txt").unlink()
    assert record.main([folder]) == 0
    index = (checkout / "index.json").read_bytes()
    for path, text in (("x.json", "[]"), ("x.json", "{"), ("s/study.json", '{"runs": 3}')):
        before = (checkout / path).read_text()
        (checkout / path).write_text(text)
        with pytest.raises(UsageError, match=f"{path} is no JSON of figures"):
            record.main([folder])
        (checkout / path).write_text(before)
    assert (checkout / "index.json").read_bytes() == index


# -- what stands today -----------------------------------------------------------------------------


def test_what_stands_agrees_with_its_index() -> None:
    assert not [*faults(results_read.CURRENT)]
    for name, entry in read(results_read.CURRENT).items():
        assert entry.commit and entry.date, name


def test_every_result_is_told_of() -> None:
    """By its name, or that of the folder it stands in."""
    told = (ROOT / "benchmarks" / "README.md").read_text()
    for name in read(results_read.CURRENT):
        folder = name.rpartition("/")[0]
        assert f"`{name}`" in told or f"`{folder}/`" in told, name


def test_nothing_but_what_stands_is_committed() -> None:
    results = results_read.CURRENT.parent
    listed = git(ROOT, "ls-files", "--", str(results)) if (ROOT / ".git").exists() else ""
    others = [one for one in listed.splitlines() if "results/current/" not in one]
    assert not others


def test_tables_stop_where_files_and_entries_do_not_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (tables, results_read):
        monkeypatch.setattr(module, "CURRENT", tmp_path)
    publish(tmp_path, "a.json", {"a.json": "{}"}, Entry())
    for words in ([], ["--check"]):
        assert tables.main(words) == 2
        assert "has no entry with " in capsys.readouterr().err
    (tmp_path / "new.json").write_text("{}")
    for words in ([], ["--check"]):
        assert tables.main(words) == 2
        said = capsys.readouterr().err
        assert "new.json: it has no entry" in said and "record.py" in said
        assert len(said.splitlines()) == 1
    with pytest.raises(UsageError, match="no entries below pretrained/"):
        results_read.folder_of("pretrained")
    assert results_read.read("a.json") == {}
    assert (tmp_path / results_index.NAME).is_file()
