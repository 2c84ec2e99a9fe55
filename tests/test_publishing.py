"""A study that is published is a whole result of its own, and nothing is lost on the way."""

import errno
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import (  # noqa: F401 -- fixtures
    WORDS,
    faked_fixture,
    held_fixture,
    own_guides,
)

from pyro_meta import UsageError, ablate, results_index
from pyro_meta.results_index import Entry, faults, publish, read
from pyro_meta.study import cluster


@pytest.mark.usefixtures("faked")
def test_a_study_is_published_with_its_entry_and_again_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tables, its picture and study.yaml; no runs. What others have published stays."""
    folder = tmp_path / "results"
    publish(folder, "other", {"other/x.json": "{}"}, Entry())
    words = [*WORDS, "--seeds=2", "--baselines=false", f"--out={tmp_path / 'priors'}"]
    assert ablate.main([*words, f"--publish={folder}"]) == 0
    assert "published in" in capsys.readouterr().out
    names = {path.name for path in (folder / "priors").iterdir()}
    assert names == {"study.json", "study.csv", "study.md", "study.yaml", "pareto.png"}
    for name in names:
        ours, theirs = (one / name for one in (tmp_path / "priors", folder / "priors"))
        assert ours.read_bytes() == theirs.read_bytes()
    entry = read(folder)["priors"]
    assert entry.seeds == [0, 1] and entry.hardware and entry.versions and entry.command
    assert entry.command.startswith("python -m pyro_meta.ablate --context=16")
    assert entry.date == "2026-01-02" and entry.commit == ["a" * 40, "b" * 40]
    assert not [*faults(folder)]
    more = [*WORDS, "--seeds=1", "--baselines=false", words[-1]]
    assert ablate.main(more) == 0
    assert read(folder)["priors"] == entry, "nobody has asked"
    assert ablate.main([*words[-1:], "--report_only", "--publish", str(folder)]) == 0
    assert read(folder)["priors"].seeds == [0] and not [*faults(folder)]
    assert read(folder)["other"].files


@pytest.mark.usefixtures("faked")
def test_a_shard_of_a_study_publishes_what_there_is(tmp_path: Path) -> None:
    folder, out = tmp_path / "results", tmp_path / "study"
    words = [*WORDS, "--seeds=2", "--baselines=false", f"--out={out}", f"--publish={folder}"]
    for index, seeds in ((1, [0]), (2, [0, 1])):
        assert ablate.main([*words, f"--shard={index}/2"]) == 0
        assert read(folder)["study"].seeds == seeds and not [*faults(folder)]


@pytest.mark.usefixtures("faked")
def test_where_a_study_is_published_is_looked_at_before_anything_is_done(tmp_path: Path) -> None:
    out, taken, foreign = tmp_path / "study", tmp_path / "taken", tmp_path / "foreign"
    (taken / "study").mkdir(parents=True)
    (taken / "study" / "notes.txt").write_text("mine")
    foreign.mkdir()
    (foreign / "index.json").write_text("{}")
    (tmp_path / "file").write_text("")
    words = [*WORDS, "--seeds=1", "--baselines=false", f"--out={out}"]
    for folder, message in (
        (tmp_path, "in which the study itself lies"),
        (taken, r"notes\.txt is there already"),
        (foreign, "is no index of results"),
        (tmp_path / "file", "is no folder"),
    ):
        with pytest.raises(UsageError, match=f"option --publish: .*{message}"):
            ablate.main([*words, f"--publish={folder}"])
        assert not out.exists()
    with pytest.raises(UsageError, match="option --publish: it does nothing with --dry_run"):
        ablate.main([*words, f"--publish={taken}", "--dry_run"])


@pytest.mark.usefixtures("faked")
def test_a_study_that_cannot_be_published_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "study", tmp_path / "results"
    words = [*WORDS, "--seeds=1", "--baselines=false", f"--out={out}", f"--publish={folder}"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "study"))

    with monkeypatch.context() as patched:
        patched.setattr(results_index, "publish", full)
        with pytest.raises(UsageError, match=r"option --publish: cannot write .*No space left"):
            ablate.main(words)
    assert (out / "study.json").is_file()
    assert ablate.main([f"--out={out}", "--report_only", f"--publish={folder}"]) == 0
    assert not [*faults(folder)]


def test_an_interrupted_study_is_published_by_the_command_that_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    held: Callable[[], int],
) -> None:
    out, folder = tmp_path / "study", tmp_path / "results"
    words = [*WORDS, "--seeds=1", "--baselines=false", f"--out={out}", f"--publish={folder}"]
    threading.Thread(target=lambda: (held(), os.kill(os.getpid(), signal.SIGTERM))).start()
    assert ablate.main(words) == 130
    said = " ".join(capsys.readouterr().out.split())
    assert not folder.exists()
    monkeypatch.delenv("FAKE_HOLD")
    (on,) = re.findall(r"go on with python -m pyro_meta.ablate (.*)", said)
    assert ablate.main(shlex.split(on)) == 0
    assert read(folder)["study"].seeds == [0] and not [*faults(folder)]


@pytest.mark.usefixtures("faked")
def test_jobs_of_a_launcher_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []

    def submit(launcher: str, logs: Path, commands: list[list[str]], asked: object) -> list[str]:
        handed.extend(commands)
        return ["77"] * len(commands)

    monkeypatch.setattr(cluster, "submit", submit)
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "--seeds=2", "--baselines=false", "--out=study", "--publish=results"]
    assert ablate.main([*words, "--launcher=slurm", "--workers=2"]) == 0
    assert not Path("results").exists()
    for command in handed:
        assert ablate.main(command[2:]) == 0
    assert read(Path("results"))["study"].seeds == [0, 1]
