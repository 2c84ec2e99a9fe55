"""A report on a run that is damaged, hostile, not ours to write, or named as nobody would.

One line each: never a traceback, never a hang, nothing followed or allocated that the run's own
files do not hold.
"""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import matplotlib as mpl
import numpy as np
import pytest
from commands import MOMENT, TEXT, command, error_line, run_here, train
from harm import COUNTS, Disk, damages, harmed, write
from processes import finish, others_may_read, started

from pyro_meta import checksums, report
from pyro_meta.analysis import one_token, stored_posterior
from pyro_meta.analysis.patient_file import PAGE, PatientFile
from pyro_meta.analysis.plots import PICTURES, routes
from pyro_meta.analysis.plots.style import as_png, legible, styled
from pyro_meta.analysis.posterior_file import LAYOUT
from pyro_meta.analysis.reading import Reading
from pyro_meta.errors import UsageError
from pyro_meta.posterior import belief, readout
from pyro_meta.terminal.consoles import console, printable
from pyro_meta.training.settings import Readout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_META_CACHE", str(folder / "cache"))
        assert train(*MOMENT, f"--data.path={folder / 'text.txt'}", f"--out={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, without checkpoints."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("checkpoint", "report"))
    return copy


NOTHING: dict[str, Any] = {"objective": None, "one_token": None, "beside_truth": []}
GAP = {"value": 0.1, "share_of_loss": 0.05, "interval": [None, 0.2]}
SINGLE: dict[str, Any] = {
    **dict.fromkeys(one_token.NUMBERS, 0.5), "of": "whole routes", "gap": GAP, "conditioning": GAP,
    "efficiency_interval": [0.1, 0.9], "indifference": None, "indifference_interval": [None, None],
    "by_site": [{**dict.fromkeys(one_token.OF_SITE, 0.5), "gap": GAP, "indifference": -0.1}],
}  # fmt: skip
"""What belief.json may say of single tokens."""


@pytest.fixture
def two_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures take seconds; two are enough to see where they go."""
    monkeypatch.setattr("pyro_meta.posterior.report.PICTURES", PICTURES[:2])


@pytest.fixture
def unsealed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy, where no checksum helps the reader, and no other process either."""
    monkeypatch.setattr(checksums, "damage", lambda folder: None)
    monkeypatch.setattr(stored_posterior, "_try_elsewhere", lambda path: None)
    return folder


# -- the disk -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_full_disk_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "posterior.nc"
    write(path)
    whole = path.read_bytes()
    rng = random.Random(0)
    for room in [0, 1, *(rng.randrange(len(whole)) for _ in range(20)), len(whole) - 1]:
        monkeypatch.setattr("pyro_meta.analysis.patient_file.os", Disk(room))
        with pytest.raises(OSError, match=r"No space left on device: '.*/posterior\.nc'"):
            write(path)
        assert [file.name for file in tmp_path.iterdir()] == ["posterior.nc"]
        assert path.read_bytes() == whole, "what was there stays"
    monkeypatch.undo()
    write(path)
    assert stored_posterior.h5py.File(path, "r")["sample_stats/lp"].shape == (1, 4)


def test_a_process_outlives_a_full_disk(tmp_path: Path) -> None:
    """HDF5 would end it with a segmentation fault, at the latest as it exits."""
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
import errno, harm, pyro_meta.analysis.patient_file as file
for error in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
    file.os = harm.Disk(30_000, error)
    try:
        harm.write(Path(sys.argv[1]))
    except OSError as raised:
        assert raised.errno == error
    else:
        sys.exit("nothing was raised")
"""
    done = finish([sys.executable, "-c", code, str(tmp_path / "posterior.nc")])
    assert (done.returncode, done.stderr) == (0, "") and not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals between threads")
def test_being_stopped_while_writing_leaves_nothing(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(*args: object) -> None:
        raise Stop

    rng, stopped = random.Random(0), 0
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        for _ in range(12):
            alarm = threading.Timer(
                rng.uniform(0.001, 0.06),
                signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGUSR1),
            )  # fmt: skip
            try:
                alarm.start()
                while True:
                    write(tmp_path / "posterior.nc")
            except Stop:
                stopped += 1
            alarm.join()
            assert {file.name for file in tmp_path.iterdir()} <= {"posterior.nc"}
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stopped == 12


def test_what_the_disk_refused_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 has to find what it wrote until it is told: against a plain buffer, at random."""
    rng = random.Random(1)
    monkeypatch.setattr("pyro_meta.analysis.patient_file.os", Disk(3 * PAGE + 100))
    truth = bytearray(8 * PAGE)
    with PatientFile(tmp_path / "partial", tmp_path / "whole") as file:
        file.truncate(len(truth))
        for _ in range(200):
            at, length = rng.randrange(7 * PAGE), rng.choice([1, 100, PAGE, PAGE + 7])
            data = rng.randbytes(length)
            truth[at : at + length] = data
            file.seek(at)
            assert file.write(data) == length
            file.seek(at := rng.randrange(7 * PAGE))
            assert file.read(length) == truth[at : at + length]
        assert file.seek(0, os.SEEK_END) == len(truth)
        assert file.failure is not None and file.failure.filename == str(tmp_path / "whole")


@pytest.mark.long
def test_rereading_at_once_leaves_one_whole_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = readout.write_posterior

    def few(*given: Any) -> None:
        write(*given[:-2], Readout(draws=4, tokens=32), given[-1])

    monkeypatch.setattr(readout, "write_posterior", few)
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)

    def read_anew(number: int) -> Any:
        with readout.rereading(folder):
            return Reading.of(folder).means

    with ThreadPoolExecutor(3) as three:
        found = list(three.map(read_anew, range(3)))
    assert checksums.damage(folder) is None
    np.testing.assert_array_equal(found[0], found[2])
    assert not [file for file in folder.iterdir() if "partial" in file.name]


@pytest.mark.long
def test_three_reports_at_once(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    words = command("report", folder, "--reread=true", "--belief=false")
    with ExitStack() as stack:
        options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        three = [stack.enter_context(started(words, **options)) for _ in range(3)]
        said = [one.communicate()[1] for one in three]
    assert [(one.returncode, error) for one, error in zip(three, said, strict=True)] == [
        (0, "")
    ] * 3
    assert checksums.damage(folder) is None
    assert not [file for file in folder.rglob("*") if "partial" in file.name]
    json.loads((folder / "report" / "report.json").read_text())


def test_an_unfinished_run_is_not_read_anew(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "summary.json").unlink()
    before = (folder / "posterior.nc").stat().st_ino
    assert "has not finished" in error_line(run_here("report", folder, "--reread=true"))
    assert (folder / "posterior.nc").stat().st_ino == before


# -- where it is drawn ----------------------------------------------------------------------------


@pytest.mark.long
def test_settings_of_others_do_not_reach_a_report(folder: Path, tmp_path: Path) -> None:
    """What notebooks export, a matplotlibrc that is no such thing, no place for a font cache."""
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: true\nbackend: nope\nnonsense\n\xff\xfe")
    (tmp_path / "file").touch()
    done = finish(
        command("report", folder, "--belief=false"),
        {
            "MPLBACKEND": "module://matplotlib_inline_that_is_not_there.backend_inline",
            "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
            "MPLCONFIGDIR": str(tmp_path / "file" / "below"),
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "report" / "simplex.png").is_file()


def test_pictures_are_the_same_under_any_settings(folder: Path) -> None:
    reading = Reading.of(folder)
    with styled():
        plain = as_png(routes.load_by_layer(reading))
    odd = {"text.usetex": True, "savefig.dpi": 30, "font.size": 30, "font.family": "cursive"}
    with mpl.rc_context(odd):
        with styled():
            assert as_png(routes.load_by_layer(reading)) == plain
        assert mpl.rcParams["font.size"] == 30 and mpl.rcParams["text.usetex"], "theirs again"


def test_importing_the_analysis_changes_no_settings() -> None:
    code = """
import os
import matplotlib as mpl
mpl.rcParams["font.size"] = 17
before, environment = dict(mpl.rcParams), dict(os.environ)
import pyro_meta.analysis.plots, pyro_meta.analysis.page, pyro_meta.analysis.arviz_versions
from pyro_meta.analysis.plots.style import styled
with styled():
    pass
assert dict(mpl.rcParams) == before and dict(os.environ) == environment
"""
    done = finish([sys.executable, "-W", "ignore", "-c", code], {"MPLBACKEND": "svg"})
    assert (done.returncode, done.stderr) == (0, "")


# -- where it is written --------------------------------------------------------------------------


@pytest.fixture
def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy, where nobody may make files; root may everywhere, so that it is only said."""
    there = tempfile.TemporaryFile

    def refuse(*args: Any, dir: Path, **options: Any) -> Any:
        if dir == folder or folder in dir.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return there(*args, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    return folder


@pytest.mark.parametrize("words", [[], ["--reread=true"], ["--reread=true", "--out=elsewhere"]])
def test_a_run_that_cannot_be_written_is_refused_first(
    read_only: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Reading, "of", None)  # no work is begun
    said = error_line(run_here("report", read_only, *words))
    assert "Read-only file system" in said
    assert ("--reread" if words else "--out") in said
    assert not (tmp_path / "elsewhere").exists() and not (read_only / "report").exists()


@pytest.mark.usefixtures("two_pictures")
def test_a_report_goes_where_out_says(
    read_only: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(belief, "measure", lambda *args: NOTHING)
    shutil.copytree(trained / "checkpoint", read_only / "checkpoint")
    before = sorted(read_only.rglob("*"))
    report.main([str(read_only), f"--out={tmp_path / 'here'}"])
    assert {"report.html", "report.json", "belief.json"} <= set(os.listdir(tmp_path / "here"))
    assert sorted(read_only.rglob("*")) == before
    report.main([str(read_only), str(trained), str(trained) + "/", f"--out={tmp_path}/two",
                 "--belief=false"])  # fmt: skip
    assert (tmp_path / "two" / "comparison.html").is_file()
    found = {path.parent.parent.name for path in (tmp_path / "two").rglob("report.html")}
    assert found == {trained.parent.name, read_only.parent.name}


def test_out_replaces_nobody_elses_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "report.html").write_text("mine")
    for out in (tmp_path / "docs", folder):
        line = error_line(run_here("report", folder, "--belief=false", f"--out={out}"))
        assert "option --out" in line and "holds files that are no report" in line
    assert (tmp_path / "docs" / "report.html").read_text() == "mine"


def test_a_link_to_itself_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    assert "is not a run" in error_line(run_here("report", tmp_path / "self"))


@pytest.mark.parametrize(
    ("out", "said"),
    [("", "empty"), ("file", "Not a directory"), ("no/such", "No such file"), ("a\0b", "null")],
)
def test_out_that_cannot_be(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    line = error_line(run_here("report", folder, f"--out={out}"))
    assert "option --out" in line and said in line


def test_a_folder_of_reports_that_leads_elsewhere_is_not_written(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (folder / "report").symlink_to(tmp_path / "precious")
    assert "--out" in error_line(run_here("report", folder, "--belief=false"))
    assert not list((tmp_path / "precious").iterdir())


AS_SOMEBODY = """
import os, arviz, mpltern, encodings.unicode_escape  # Python may lie where only root reads
import pyro_meta.posterior.report
from pyro_meta.report import main
from pyro_meta.terminal.commands import run_command
os.setgroups([]), os.setgid(54321), os.setuid(54321)
run_command(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.skipif(not others_may_read(sys.prefix), reason="an environment of our own")
def test_somebody_else_reads_a_run_that_is_not_theirs(folder: Path) -> None:
    """With no home and a user id that nobody has, as in a container."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        shutil.copytree(folder, Path(place) / "run")
        os.mkdir(Path(place) / "theirs", 0o777)
        os.chmod(Path(place) / "theirs", 0o777)
        words = [
            sys.executable,
            "-W",
            "ignore::FutureWarning",
            "-c",
            AS_SOMEBODY,
            f"{place}/run",
            "--belief=false",
        ]
        env = {"HOME": "/nonexistent"}
        assert "--out" in error_line(finish(words, env))
        done = finish([*words, f"--out={place}/theirs/out"], env)
        assert (done.returncode, done.stderr) == (0, "")
        assert (Path(place) / "theirs" / "out" / "report.html").is_file()


# -- what it is called ----------------------------------------------------------------------------

ODD = "[red]x[bold] :smile: \x1b[2J $\\frac{ \u202e\u4e2d\u6587\n\udcff <script>alert(1)"


@pytest.mark.usefixtures("two_pictures")
def test_an_odd_name_is_shown_as_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / ODD
    try:
        shutil.copytree(folder, odd)
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such name")
    report.main([str(odd), str(folder), "--belief=false"])
    said = capsys.readouterr().out
    shown = printable(ODD)
    assert shown in said and "\x1b" not in said and "\u202e" not in said
    page = (odd / "report" / "report.html").read_bytes().decode("utf-8")
    assert "\x1b" not in page and "\u202e" not in page and page.count("<script") == 1
    assert "[red]x[bold] :smile: \\x1b[2J" in page
    numbers = json.loads((odd / "report" / "report.json").read_text())
    together = json.loads((odd / "report" / "comparison.json").read_text())
    assert numbers["run"] == ODD and together["runs"][0] == shown
    assert (odd / "report" / "pareto.png").is_file(), "drawn without a warning"
    beside = (odd / "report" / "comparison.html").read_bytes().decode("utf-8")
    assert "\x1b" not in beside and "\u202e" not in beside and beside.count("<script") == 1


def test_the_progress_of_an_odd_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyro_meta.terminal import progress as shown
    from pyro_meta.terminal.progress import bar

    monkeypatch.setattr(shown, "is_live", lambda console: True)

    terminal = console(stderr=True)
    terminal._force_terminal = True
    with bar(terminal) as progress:
        progress.add_task(printable("[red]x[/red] :smile: \x1b[2J"), total=2)
    assert "[red]x[/red] :smile: \\x1b[2J" in capsys.readouterr().err


def test_what_can_be_shown_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "Zürich 中文 ‎".strip("\u200e") + " \u00a0 fam\u200dily"
    assert printable(kept) == kept
    assert printable("a\tb\x7f\x9b\u2028\ufeff\U000e0041") == (
        "a\\tb\\x7f\\x9b\\u2028\\ufeff\\U000e0041"
    )
    monkeypatch.setattr(
        "pyro_meta.analysis.plots.style._is_drawable", lambda char: ord(char) < 0x3000
    )
    assert legible("a中") == "a\\u4e2d" and legible("a中", missing="?") == "a?"


# -- what it holds --------------------------------------------------------------------------------


def _replace(file: h5py.File, name: str, change: Callable[[Any], Any]) -> None:
    values = file[name][...]
    del file[name]
    file[name] = change(values)


def _put(file: h5py.File, name: str, value: float) -> None:
    file[name][(0,) * file[name].ndim] = value


def _virtual(file: h5py.File) -> None:
    name, source = "tokens/kl", Path(file.filename).with_name("pipe")
    os.mkfifo(source)  # whoever opens it waits for ever
    layout = h5py.VirtualLayout(file[name].shape, "f4")
    layout[...] = h5py.VirtualSource(str(source), "x", file[name].shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def _external(file: h5py.File) -> None:
    shape = file["tokens/kl"].shape
    del file["tokens/kl"]
    file.create_dataset(
        "tokens/kl", shape, "f4", external=[("/etc/passwd", 0, 4 * math.prod(shape))]
    )


def _link(name: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def _lengthen(file: h5py.File) -> None:
    for group in ("tokens",):
        for data in file[group].values():
            if (at := _token_axis(data)) is not None and data.maxshape[at] is None:
                data.resize(10**9, at)


def _token_axis(data: h5py.Dataset) -> int | None:
    dims = LAYOUT[data.parent.name.strip("/")].get(data.name.rpartition("/")[2])
    return dims.dims.index("token") if dims is not None and "token" in dims.dims else None


DAMAGES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "a thousand million tokens": (_lengthen, "cannot hold|in full"),
    "draws without content": (
        lambda file: file["blocks/log_ratio"].resize(10**6, 1), "others"
    ),
    "another file's group": (
        _link("sample_stats", h5py.ExternalLink("/etc/passwd", "/")), "of its own"
    ),
    "another file's variable": (
        _link("tokens/kl", h5py.ExternalLink("pipe", "/kl")), "of its own"
    ),
    "another name": (_link("tokens/kl", h5py.SoftLink("/tokens/choice")), "of its own"),
    "a loop": (_link("tokens/kl", h5py.SoftLink("/tokens/kl")), "of its own"),
    "a virtual variable": (_virtual, "another file"),
    "storage elsewhere": (_external, "another file"),
    "no group": (lambda file: file.__delitem__("posterior"), "posterior"),
    "a group that is none": (_link("posterior", np.ones(3)), "no group"),
    "no variable": (lambda file: file.__delitem__("tokens/kl"), "kl"),
    "a variable that is a group": (
        lambda file: (file.__delitem__("tokens/kl"), file.create_group("tokens/kl")),
        "no variable",
    ),
    "no fact": (lambda file: file["sample_stats"].attrs.__delitem__("kl_weight"), "kl_weight"),
    "a fact of two": (
        lambda file: file["sample_stats"].attrs.__setitem__("kl_weight", [1.0, 2.0]), "one value"
    ),
    "an infinite fact": (
        lambda file: file["sample_stats"].attrs.__setitem__("kl_weight", np.inf), "kl_weight"
    ),
    "a fact of another kind": (
        lambda file: file["sample_stats"].attrs.__setitem__("guide", 3), "guide"
    ),
    "integers": (
        lambda file: _replace(file, "tokens/kl", lambda kl: kl.astype("i4")), "of type"
    ),
    "strings": (
        lambda file: _replace(file, "tokens/kl", lambda kl: kl.astype("S")), "of type"
    ),
    "complex": (
        lambda file: _replace(file, "tokens/kl", lambda kl: kl.astype("c8")), "of type"
    ),
    "a shorter one": (
        lambda file: _replace(file, "tokens/kl", lambda kl: kl[..., :-1]), "others"
    ),
    "one dimension less": (
        lambda file: _replace(file, "tokens/kl", lambda kl: kl[0]), "shape"
    ),
    "NaN": (lambda file: _put(file, "tokens/kl", np.nan), "values from"),
    "infinity": (lambda file: _put(file, "tokens/nll_hard", np.inf), "values from"),
    "a negative sequence": (lambda file: _put(file, "tokens/sequence", -1), "values from"),
    "a sequence of many": (lambda file: _put(file, "tokens/sequence", 10**6), "of one run"),
    "a far position": (lambda file: _put(file, "tokens/position", 2**31 - 1), "position"),
    "a mechanism of many": (lambda file: _put(file, "tokens/choice", 9), "choice"),
    "a weight of two": (lambda file: _put(file, "posterior/route", 2.0), "values from"),
    "a weight of two in the prior": (lambda file: _put(file, "prior/route", 2.0), "values from"),
    "an infinite log prior": (
        lambda file: _put(file, "log_prior/route", np.inf), "values from"
    ),
    "a prior of fewer tokens": (
        lambda file: file["prior/route"].resize(3, 4), "others"
    ),
    "many groups": (
        lambda file: file["sample_stats"].attrs.__setitem__("groups", 10**9), "groups"
    ),
    "no log prior": (lambda file: file.__delitem__("log_prior"), "log_prior"),
    "other mechanisms": (
        lambda file: file["tokens/mechanism"].__setitem__(0, "fool"), "of one run"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_posterior_that_is_none(unsealed: Path, kind: str) -> None:
    change, said = DAMAGES[kind]
    with h5py.File(unsealed / "posterior.nc", "a") as file:
        change(file)
    with pytest.raises(UsageError, match=rf"^{unsealed} is damaged: .*({said})"):
        Reading.of(unsealed)


DEEP = "[" * 10**6


def _edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        first, *rest = path.read_text().splitlines() if name == "metrics.jsonl" else [
            path.read_text()
        ]  # fmt: skip
        content = json.loads(first) | changes
        kept = {key: value for key, value in content.items() if value is not ...}
        path.write_text("\n".join([json.dumps(kept), *rest]) + "\n")

    return change


def _written(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data) and None


def _without_line(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:4] + lines[5:]))


def _with_null(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:4], "null", *lines[5:]]))


DOCUMENTS: dict[str, Callable[[Path], None]] = {
    **{
        f"{name}, {what}": _written(name, content)
        for name in ("summary.json", "sequences.json", "metrics.jsonl")
        for what, content in {
            "empty": "", "deep": DEEP, "a list": "[1, 2]", "null": "null", "bytes": b"\xff\xfe{}",
            "half": '{"step": 1, "hard": [1.0', "nothing": "{}",
            "long number": '{"step": ' + "9" * 10**4 + "}",
        }.items()
    },
    "a null line": _with_null,
    "a missing step": _without_line,
    "no loss": _edited("summary.json", val_nll_hard=...),
    "a loss of NaN": _edited("summary.json", val_nll_hard=float("nan")),
    "an infinite loss": _written("summary.json", '{"val_nll_soft": 1e999}'),
    "a huge loss": _edited("summary.json", val_nll_hard=10**400),
    "a loss in words": _edited("summary.json", val_nll_hard="2.0"),
    "a loss that is true": _edited("summary.json", val_nll_hard=True),
    "a load that is none": _edited("summary.json", load=[1, 2]),
    "executed in words": _edited("summary.json", executed="yes"),
    "executed without figures": _edited("summary.json", executed={}),
    "no sequences": _edited("sequences.json", hard=[]),
    "other sequences": _edited("sequences.json", hard=[1.0], soft=[1.0], count=1),
    "losses of NaN": _edited("sequences.json", hard=[float("nan")] * 16),
    "windows that are none": _edited("sequences.json", windows=[DEEP[:3]]),
    "an infinite step": _edited("metrics.jsonl", kl=float("inf")),
    "a step twice": _edited("metrics.jsonl", step=2),
    "no entropies": _edited("metrics.jsonl", entropy_by_layer=None),
    "entropies of one layer": _edited("metrics.jsonl", entropy_by_layer=[0.5]),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents_that_are_none(unsealed: Path, kind: str) -> None:
    DOCUMENTS[kind](unsealed)
    with pytest.raises(UsageError, match=rf"^{unsealed} is damaged: ") as raised:
        Reading.of(unsealed)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("seals", [True, False])
@pytest.mark.parametrize("name", ["posterior.nc", "metrics.jsonl", "sequences.json"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "link"])
def test_what_is_no_file_is_not_opened(
    folder: Path, name: str, what: str, seals: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / name
    path.rename(folder / "kept")
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if what == "device" else folder / "kept")
    if not seals:
        monkeypatch.setattr(checksums, "damage", lambda folder: None)
    with pytest.raises(UsageError, match=r"is damaged: .*no plain file"):
        Reading.of(folder)


def test_belief_that_is_damaged_is_measured_again(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "belief.json"
    good: dict[str, Any] = {**NOTHING, "version": belief.VERSION, "checkpoint": "x"}
    path.write_text(checksums.sealed(good))
    assert belief._kept(path, "x") == good and belief._kept(path, "y") is None
    whole = good | {"one_token": SINGLE}
    path.write_text(checksums.sealed(whole))
    assert belief._kept(path, "x") == whole
    gap = SINGLE["gap"]
    for single in (1, [1], {}, *(SINGLE | {key: [0]} for key in SINGLE if key != "by_site"),
                      SINGLE | {"gap": gap | {"interval": [1]}}, SINGLE | {"by_site": [{}]},
                      SINGLE | {"by_site": []}, SINGLE | {"loss": 0.0}):  # fmt: skip
        path.write_text(checksums.sealed(good | {"one_token": single}))
        assert belief._kept(path, "x") is None, single
    path.write_text(checksums.sealed(good | {"objective": {"nll": 1.0}}))
    assert belief._kept(path, "x") is None
    for content in ("", "[]", DEEP, "null", json.dumps(good)):
        path.write_text(content)
        assert belief._kept(path, "x") is None
    path.unlink()
    os.mkfifo(path)
    assert belief._kept(path, "x") is None


def test_of_several_runs_the_damaged_one_is_named(trained: Path, folder: Path) -> None:
    (folder / "sequences.json").write_text("{}")
    said = error_line(run_here("report", trained, folder, "--belief=false"))
    assert f"error: {folder} is damaged: sequences.json" in said
    assert not (folder / "report").exists()


# -- at random ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", checksums.OF_A_RUN)
def test_every_flip_is_seen_by_its_checksum(folder: Path, name: str) -> None:
    rng, whole = random.Random(name), (folder / name).read_bytes()
    for _ in range(10):
        data = harmed(whole, rng, len(whole))
        (folder / name).write_bytes(data)
        if data != whole:
            with pytest.raises(UsageError, match=f"is damaged: {name} is not what was written"):
                Reading.of(folder)


RANDOM = """
import sys
path, start, *sys.path = sys.argv[1:]
import harm
harm.try_damages(path, int(start))
"""


def test_random_damage_is_refused_or_harmless(folder: Path) -> None:
    """Without checksums: what HDF5 does not survive, the process that tries it first meets."""
    said: list[list[str]] = []
    for _ in range(3):  # HDF5 may end it now and then
        words = [sys.executable, "-W", "error", "-c", RANDOM, str(folder), str(len(said))]
        done = finish([*words, *sys.path])
        said += [line.split() for line in done.stdout.splitlines()]
        if done.returncode == 0:
            break
        assert done.returncode < 0 and len(said[-1]) == 1, done.stderr
        name, data = list(damages(folder))[len(said) - 1]
        copy = folder.with_name("ended")
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        (copy / name).write_bytes(data)
        with pytest.raises(ValueError, match="a process that tried was ended"):
            stored_posterior.load(copy / name)
    assert len(said) == sum(COUNTS.values())
    assert {"refused", "read"} == {words[1] for words in said if len(words) > 1}


def test_what_hdf5_never_finishes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free object of no length in a heap of strings: HDF5 2.0 looks at it for ever."""
    path = folder / "posterior.nc"
    data = bytearray(path.read_bytes())
    at = data.find(b"GCOL\x01")
    while at >= 0:
        place, end = at + 16, at + int.from_bytes(data[at + 8 : at + 16], "little")
        while place + 16 <= end and (number := int.from_bytes(data[place : place + 2], "little")):
            length = int.from_bytes(data[place + 8 : place + 16], "little")
            place += 16 + -(-length // 8) * 8
        if place + 16 <= end and number == 0:
            data[place + 8 : place + 16] = bytes(8)
        at = data.find(b"GCOL\x01", at + 1)
    path.write_bytes(data)
    checksums.renew(folder, "posterior.nc")
    monkeypatch.setattr(stored_posterior, "SECONDS", 1)
    monkeypatch.setattr(stored_posterior, "BYTES_PER_SECOND", 1 << 40)
    with pytest.raises(UsageError, match=r"is damaged: posterior\.nc: "):
        Reading.of(folder)
