"""An index of results is whole at every moment, and agrees with its files or says where not."""

import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyro_meta import results_index
from pyro_meta.errors import UsageError
from pyro_meta.results_index import Entry, faults, publish, read, require_place, withdraw
from pyro_meta.terminal.checkout import commit

FIRST = {"a/one.json": "{}", "a/two.md": "two", "a/deep/three.png": b"\x89PNG"}
SECOND = {"a/one.json": "[1]", "a/four.md": "four"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, but the index."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != results_index.NAME
    }


def encoded(files: dict[str, str | bytes]) -> dict[str, bytes]:
    return {path: one if isinstance(one, bytes) else one.encode() for path, one in files.items()}


def test_a_result_is_there_with_its_entry_and_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    made_by = Entry(commit="c" * 40, command="python x", seeds=[0, 2], date="2026-01-01")
    publish(folder, "a", FIRST, made_by)
    publish(folder, "b.json", {"b.json": "{}"}, Entry())
    assert [*read(folder)] == ["a", "b.json"] and not [*faults(folder)]
    entry = read(folder)["a"]
    assert (entry.commit, entry.command, entry.seeds) == ("c" * 40, "python x", [0, 2])
    assert contents(folder) == encoded(FIRST | {"b.json": "{}"})
    publish(folder, "a", SECOND, made_by)
    assert contents(folder) == encoded(SECOND | {"b.json": "{}"}), "what it had before is gone"
    assert not [*faults(folder)]
    withdraw(folder, ["b.json"])
    assert [*faults(folder)] == ["b.json: it has no entry"]
    with pytest.raises(UsageError, match=r"no entry b\.json"):
        withdraw(folder, ["b.json"])


def die_before(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End this process where a file is renamed or removed after so many others were."""
    left = iter(range(moment))

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*words: Any, **more: Any) -> Any:
            if next(left, None) is None:
                os._exit(9)
            return call(*words, **more)

        return watched

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))


@pytest.mark.parametrize("before", [{}, FIRST])
def test_a_kill_at_any_moment_leaves_what_publishing_again_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, str | bytes]
) -> None:
    """Killed before each rename and removal, one after the other."""
    other = encoded({"b.json": "{}"})
    for moment in range(20):
        folder = tmp_path / str(moment)
        if before:
            publish(folder, "a", before, Entry())
        publish(folder, "b.json", {"b.json": "{}"}, Entry())
        child = os.fork()
        if child == 0:
            die_before(moment, monkeypatch)
            publish(folder, "a", SECOND, Entry())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert read(folder)["b.json"].files, "what is of others stays"
        if os.waitstatus_to_exitcode(status) == 0:
            assert moment > 3 and not [*faults(folder)]
            break
        named = [*faults(folder)]
        now = {path: one for path, one in contents(folder).items() if ".partial-" not in path}
        old, new = encoded(before) | other, encoded(SECOND) | other
        assert named or now in (old, new, old | new), "the old is known until it is gone"
        require_place(folder, "a")
        publish(folder, "a", SECOND, Entry())
        assert not [*faults(folder)]
        assert contents(folder) == encoded(SECOND) | other, "and nothing half written"
    else:
        pytest.fail("publishing takes more moments than are tried")


def _publish_some(folder: Path, one: int) -> None:
    for time in range(5):
        publish(folder, f"r{one}", {f"r{one}/x.json": f"[{time}]"}, Entry(seeds=[one]))


def test_of_many_who_publish_at_once_all_are_there(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_publish_some, args=(tmp_path, n)) for n in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert {name: entry.seeds for name, entry in read(tmp_path).items()} == {
        f"r{n}": [n] for n in range(6)
    }
    assert not [*faults(tmp_path)]


def test_what_does_not_agree_is_named(tmp_path: Path) -> None:
    publish(tmp_path, "a", FIRST, Entry())
    (tmp_path / "a" / "one.json").write_text("{} ")
    (tmp_path / "a" / "two.md").unlink()
    (tmp_path / "new.json").write_text("{}")
    assert [*faults(tmp_path)] == [
        "a/one.json: it is not the file that the entry a is of",
        "a/two.md: the entry a names it, and it is not there",
        "new.json: it has no entry",
    ]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("../a", {}), ("/a", {}), ("", {}), ("a/../../b", {}), ("a//b", {}), (".a", {}),
        ("index.json", {}), ("a", {"../x": ""}), ("a", {"a/.x": ""}), ("a", {"index.json": ""}),
    ],
)  # fmt: skip
def test_nothing_is_written_outside_the_folder(
    tmp_path: Path, name: str, files: dict[str, str | bytes]
) -> None:
    folder = tmp_path / "results"
    with pytest.raises(UsageError, match="is no name in a folder of results"):
        publish(folder, name, files, Entry())
    assert not folder.exists() and not [*tmp_path.iterdir()]


def test_a_file_of_another_result_is_not_taken(tmp_path: Path) -> None:
    publish(tmp_path, "a", FIRST, Entry())
    with pytest.raises(UsageError, match=r"one\.json is a file of the result a"):
        publish(tmp_path, "b", {"a/one.json": "mine"}, Entry())
    assert contents(tmp_path) == encoded(FIRST) and not [*faults(tmp_path)]


def test_what_nobody_knows_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt is there already"):
        require_place(tmp_path, "a")
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UsageError, match="f is a file"):
        require_place(tmp_path, "f")
    require_place(tmp_path, "b")
    require_place(tmp_path / "none", "b")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"format": 1}', "[" * 5000, "\ud800",
        json.dumps({"format": results_index.FORMAT}),
        json.dumps({"format": results_index.FORMAT, "results": []}),
        json.dumps({"format": results_index.FORMAT, "results": {"a": {"files": ["x"]}}}),
        json.dumps({"format": results_index.FORMAT, "results": {"a": {"files": {"x": "y"}}}}),
        json.dumps({"format": results_index.FORMAT, "results": {"a": {"unknown": 1}}}),
        json.dumps(
            {"format": results_index.FORMAT, "results": {"a": {"files": {"../x": "0" * 64}}}}
        ),
    ],
)  # fmt: skip
def test_somebody_elses_index_is_refused_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "index.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = path.read_bytes()
    for call in (
        lambda: read(tmp_path),
        lambda: publish(tmp_path, "a", FIRST, Entry()),
        lambda: require_place(tmp_path, "a"),
    ):
        with pytest.raises(UsageError, match=r"index\.json is no index of results: "):
            call()
    assert path.read_bytes() == before and not contents(tmp_path)
    assert results_index.folder_of(tmp_path / "x.json") is None


def test_the_nearest_index_above_a_file_is_found(tmp_path: Path) -> None:
    publish(tmp_path, "a", FIRST, Entry())
    assert results_index.folder_of(tmp_path / "a" / "deep" / "new.json") == tmp_path
    assert results_index.folder_of(tmp_path.parent / "new.json") is None


def test_the_commit_is_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that were written since do not make it another."""
    assert commit(tmp_path / "none") is None
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) is None
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        for name in ("code.py", "result.json"):
            (tmp_path / name).write_text("1")
        subprocess.run([*git, *words], check=True)
    found = commit(tmp_path)
    assert found is not None and len(found) == 40
    (tmp_path / "result.json").write_text("2")
    (tmp_path / "new.py").write_text("2")
    assert commit(tmp_path) == found
    (tmp_path / "code.py").write_text("2")
    assert commit(tmp_path) == f"{found}-modified"
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None, "there is no git"
