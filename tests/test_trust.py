"""What is opened is data: nothing of it is run, nothing outside it is read, and damage is seen."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import MOMENT, command, error_line, run_here, train
from harm import harmed
from processes import finish, others_may_read
from slow import long

from pyro_meta import checksums
from pyro_meta.errors import UsageError
from pyro_meta.terminal.trust import as_opened
from pyro_meta.training.run import Run

FOREIGN = """
from pathlib import Path

Path(__file__).with_name("was_run").write_text("yes")

from pyro_meta import (BetaDepthGuide, CostDirichlet, DirichletGuide, ResidualBlock, Text, Window)

class Guide(DirichletGuide): pass
class Prior(CostDirichlet): pass
class Data(Text): pass
class Mechanism(Window): name = "mine"
class Block(ResidualBlock): pass
class Depth(BetaDepthGuide): pass
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Importable code whose import leaves a file."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "evil.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path / "code" / "was_run"


def edit(folder: Path, option: str, value: Any) -> None:
    """Change config.yaml, and seal the run again, as somebody who sends it would."""
    path = folder / "config.yaml"
    options = yaml.safe_load(path.read_text())
    options[option] = value
    text = yaml.safe_dump(options, sort_keys=False)
    path.write_text(text)
    state_path = next(folder.glob("checkpoint/*/state.json"))
    state = checksums.unsealed(state_path)
    state_path.write_text(checksums.sealed(state | {"config": text}))
    if (folder / "summary.json").is_file():
        checksums.seal(folder)


NAMED: list[tuple[str, Any]] = [
    ("guide", {"class_path": "evil.Guide"}),
    ("guide", "evil.Guide"),
    ("prior", {"class_path": "evil.Prior", "init_args": {}}),
    ("data", {"class_path": "evil.Data", "init_args": {"path": "text.txt"}}),
    ("mechanisms", ["full", "evil.Mechanism", "linear"]),
    ("mechanisms", "[full, evil.Mechanism]"),
    ("block", "evil.Block"),
    ("depth", "evil.Depth"),
    ("guide.class_path", "evil.Guide"),
    ("guide", {"class_path": "pyro_meta.DirichletGuide",
               "init_args": {"hidden": {"class_path": "evil.Guide"}}}),
]  # fmt: skip


@pytest.mark.parametrize("door", ["resume", "longer", "from", "generate", "report", "reread"])
def test_opening_a_run_imports_nothing_foreign(finished: Path, foreign: Path, door: str) -> None:
    words = {
        "resume": ["train", "--resume", finished],
        "longer": ["train", "--resume", finished, "--steps=20"],
        "from": ["train", "--from", finished, "--out", finished.with_name("new")],
        "generate": ["generate", finished, "--max_tokens=1"],
        "report": ["report", finished],
        "reread": ["report", finished, "--reread"],
    }[door]
    config = (finished / "config.yaml").read_text()
    for option, value in NAMED:
        (finished / "config.yaml").write_text(config)
        edit(finished, option, value)
        if door == "resume":
            (finished / "summary.json").unlink(missing_ok=True)
        line = error_line(run_here(*words))
        assert "evil." in line, (option, line)
        assert line.endswith("add --trust true (in Python: trust=True)"), (option, line)
        assert not foreign.exists(), option


def test_a_run_that_is_trusted_is_opened(
    tmp_path: Path,
    text_file: Path,
    foreign: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the command line a class is the person's own wish; of a run, once it is trusted."""
    folder = tmp_path / "mine"
    assert train(*MOMENT, f"--data.path={text_file}", "--guide=evil.Guide", "--out", folder) == 0
    said = capsys.readouterr().out
    (told,) = re.findall(r"read the posterior: python -m pyro_meta.report (.*)", said)
    assert told == f"{folder} --trust true", "what a run says to do next is not refused"
    assert train("--resume", folder, "--trust") == 0
    assert f"longer with --resume {told} --steps" in capsys.readouterr().out
    foreign.unlink()
    words = ["generate", folder, "--max_tokens=1"]
    assert "--trust" in error_line(run_here(*words))
    assert run_here(*words, "--trust").returncode == 0
    monkeypatch.setenv("PYRO_META_TRUST", "1")
    assert run_here(*words).returncode == 0
    monkeypatch.setenv("PYRO_META_TRUST", "yes")
    assert "PYRO_META_TRUST is 'yes'; 0 or 1 is allowed" in error_line(run_here(*words))


def test_a_run_of_our_classes_is_told_without_trust(tmp_path: Path) -> None:
    for options, words in (("guide: DirichletGuide", ""), ("guide: mine.Guide", " --trust true"),
                           ("mechanisms: [full, a.B]", " --trust true"), ("[", "")):  # fmt: skip
        (tmp_path / "config.yaml").write_text(options)
        assert as_opened(tmp_path) == f"{tmp_path}{words}"
    assert as_opened(tmp_path / "not there") == f"'{tmp_path}/not there'"


def test_a_folder_of_the_same_name_as_ours_is_not_ours(finished: Path) -> None:
    for path in ("pyro_meta.evil.Guide", "pyro_meta.__main__.run", "pyro_meta_evil.Guide",
                 "pyro_meta.guides.dirichlet.DirichletGuide.__init__", "os.system"):  # fmt: skip
        edit(finished, "guide", path)
        with pytest.raises(UsageError, match="does not ship"):
            Run.open(finished).config()


# -- forged and damaged files ------------------------------------------------------------------


def forge(folder: Path, **changes: Any) -> None:
    path = next(folder.glob("checkpoint/*/state.json"))
    path.write_text(checksums.sealed(checksums.unsealed(path) | changes))


ZERO = {"bytes": 0, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"/dev/zero": ZERO},
        {"model.safetensors": ZERO, "/dev/zero": ZERO},
        {"model.safetensors": ZERO, "../../config.yaml": ZERO},
        {"model.safetensors": "0" * 64},
        {"model.safetensors": None},
        {"model.safetensors": {"bytes": "many", "sha256": 3}},
        [],
    ],
)
def test_a_checkpoint_opens_only_its_own_files(finished: Path, files: Any) -> None:
    forge(finished, files=files)
    with pytest.raises(UsageError, match=r"checkpoint .* is damaged"):
        Run.open(finished).load()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
@pytest.mark.parametrize("kind", ["device", "pipe", "link", "folder"])
def test_only_plain_files_are_read(finished: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = next(finished.glob(f"checkpoint/*/{name}"))
    path.rename(tmp_path / "moved")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "moved")
    with pytest.raises(UsageError, match="is no plain file"):
        Run.open(finished).load()


@pytest.mark.parametrize("name", ["config.yaml", "vocabulary.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_files_of_a_run_are_plain(finished: Path, name: str, kind: str) -> None:
    path = finished / name
    path.unlink()
    (finished / "summary.json").unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    error_line(run_here("train", "--resume", finished))


def test_a_vocabulary_of_the_same_size_is_another(finished: Path) -> None:
    path = finished / "vocabulary.json"
    path.write_text(json.dumps({"kind": "char", "characters": [chr(200 + i) for i in range(256)]}))
    (finished / "summary.json").unlink()
    for words in (["generate", finished], ["train", "--resume", finished]):
        assert "vocabulary.json is not what was written" in error_line(run_here(*words))


HEAD = 64  # bytes near which half of the damage is
OF_AN_OPEN_RUN = ("config.yaml", "vocabulary.json", "metrics.jsonl", "state.json",
                  "model.safetensors", "optimiser.safetensors")  # fmt: skip


def look(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What going on with a run, and generating from it, would read and say of its metrics."""
    run = Run.open(folder)
    state = run.state()
    run.require_same(state, run.config_yaml())
    said = run._metrics.check(state["step"], state["metrics"])
    run.vocabulary()
    return state, said


@pytest.mark.parametrize("name", OF_AN_OPEN_RUN)
def test_random_damage_to_a_run_is_refused_or_harmless(
    whole: Path, finished: Path, name: str
) -> None:
    """60 of each file: one line, or the run is what it was; never silently another one."""
    dice = random.Random(name)
    (path,) = finished.rglob(name)
    content, refusals = path.read_bytes(), list[str]()
    expected = look(whole)[0]
    options = yaml.safe_load((whole / "config.yaml").read_text())
    for _ in range(60):
        found_now = harmed(content, dice, HEAD)
        path.write_bytes(found_now)
        try:
            found, said = look(finished)
        except UsageError as error:
            refusals.append(str(error))
            continue
        assert found == expected
        if name == "config.yaml":  # a comment, or another spelling of the same
            assert yaml.safe_load(found_now) == options
        elif name == "metrics.jsonl":  # what a killed run has logged later is cut off
            assert found_now.startswith(content) or (said is not None and "lacks step" in said)
        else:
            assert found_now == content
    path.write_bytes(content)
    assert look(finished) == (expected, None)
    assert len(refusals) > 20
    assert all(str(finished) in line and len(line) < 1000 for line in refusals)


@pytest.mark.parametrize("name", [*checksums.OF_A_RUN, checksums.NAME])
def test_random_damage_to_results_is_seen(finished: Path, name: str) -> None:
    dice = random.Random(name)
    content = (finished / name).read_bytes()
    for _ in range(60):
        found_now = harmed(content, dice, HEAD)
        (finished / name).write_bytes(found_now)
        assert (checksums.damage(finished) is None) == (found_now == content)


# -- where it runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "redirection",
    [
        ">&- 2>&- <&-",
        *long(">/dev/full", ">&-", "2>&-"),
    ],
)
def test_a_stream_that_is_full_or_closed_stops_no_training(
    tmp_path: Path, text_file: Path, redirection: str
) -> None:
    folder = tmp_path / "run"
    words = command("train", *MOMENT, f"--data.path={text_file}", f"--out={folder}")
    done = finish(["bash", "-c", f"{' '.join(words)} {redirection}"])
    assert "Traceback" not in done.stderr
    assert checksums.damage(folder) is None
    if "full" in redirection:
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, last) == (2, "error: standard output: No space left on device")
    else:
        assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.skipif(not others_may_read(sys.prefix), reason="an environment of our own")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_nobody_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
    words = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", sys.executable, "-c",
             "from pyro_meta.folders import cache_folder; cache_folder()"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "PYRO_META_CACHE")}
    done = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True)
    assert "set PYRO_META_CACHE to a folder that can be written" in done.stderr
