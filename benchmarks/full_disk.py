"""Fill the disk at twenty levels under every command, and see that nothing is lost.

    sudo python benchmarks/full_disk.py --out benchmarks/results/current/full_disk.json

A level is a file system in memory of so many bytes (mounting it needs root). The command has to
say one line and exit with code 2 (130 where it was saved); once the file system is made larger,
the same command, or `--resume`, has to finish and leave what a run on an empty disk leaves.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts import Parser, a_count, a_file_to_write, run_script

from pyro_meta import checksums
from pyro_meta.terminal.commands import run_command
from pyro_meta.terminal.measured import measured_by, write_measured

TINY = [
    "--context=16", "--window=4", "--width=16", "--layers=2", "--heads=2", "--batch=4",
    "--steps=12", "--validate_every=5", "--validation_tokens=256", "--checkpoint_every=4",
    "--accelerator=cpu",
]  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. "
PLENTY = 200 << 20
PAGE = 4096


@dataclass
class Trial:
    """One command on one level."""

    command: str
    kib: int
    code: int
    line: str
    problem: str = ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={PLENTY}", str(folder)], check=True)


def run(words: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYRO_META_CACHE": str(cache), "PYRO_META_PROFILE": "default", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", *words]
    if words[0] != "pyro_meta.ablate":  # whose workers are processes of their own
        return forked(words, environment)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def forked(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The same in a fork of this process, which has everything imported."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if not pid:
            os.environ.update(environment)
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.argv = words
            code = 1
            try:
                run_command(importlib.import_module(words[0]).main)
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        errors.seek(0)
        said = (one.read().decode(errors="replace") for one in (out, errors))
        return subprocess.CompletedProcess(words, code, *said)


def used(folder: Path) -> int:
    """Bytes that a folder takes on such a disk."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)


def left_over(folder: Path) -> list[str]:
    return [str(path.name) for path in folder.rglob("*.partial-*")]


def judge(done: subprocess.CompletedProcess[str], disk: Path) -> tuple[str, str]:
    """The line that was said, and what is wrong with it."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    line = lines[-1] if lines else ""
    if done.returncode not in (0, 2, 130):
        return line, f"exit code {done.returncode}: {done.stderr[-300:]}"
    if "Traceback" in done.stderr:
        return line, "a traceback"
    if done.returncode == 2 and len(lines) != 1:
        return line, f"{len(lines)} lines: {done.stderr[-300:]}"
    if left := left_over(disk):
        return line, f"left over: {left}"
    return line, ""


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--levels", type=a_count, default=20)
    parser.add_argument("--out", type=a_file_to_write)
    options = parser.parse_args()
    found: list[Trial] = []
    for name in ("training.loop", "training.devices", "posterior.closing", "posterior.report",
                 "posterior.readout", "posterior.belief"):  # fmt: skip
        importlib.import_module(f"pyro_meta.{name}")  # before any fork
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        (base / "text.txt").write_text(TEXT * 2000)
        cache, disk = base / "cache", base / "disk"
        words = ["pyro_meta.train", *TINY, f"--data.path={base / 'text.txt'}"]
        whole = base / "whole"
        assert run([*words, f"--out={whole}"], cache).returncode == 0
        assert run(["pyro_meta.report", str(whole)], cache).returncode == 0
        sizes = {
            "training and closing": used(whole) - used(whole / "report"),
            "preparing text": used(cache) + (256 << 10),
            "report": used(whole),
            "ablate": 2 * used(whole) + (256 << 10),
        }
        for name, size in sizes.items():
            for level in range(options.levels):
                bytes_ = int(size * (level + 0.5) / options.levels)
                if name == "report":  # the run itself has to fit
                    own = used(whole) - used(whole / "report")
                    bytes_ = own + int((size - own) * (level + 0.5) / options.levels)
                pages = max(2, bytes_ // PAGE) * PAGE
                with small_disk(disk, pages):
                    trial = one(name, words, whole, base, cache, disk)
                trial.kib = pages >> 10
                found.append(trial)
                print(trial, flush=True)
    result = {
        **measured_by(["python", "benchmarks/full_disk.py", *sys.argv[1:]]),
        "trials": len(found),
        "of_which_full": sum(one.code != 0 for one in found),
        "problems": [asdict(one) for one in found if one.problem],
        "each": [asdict(one) for one in found],
    }
    if options.out is not None:
        write_measured(options.out, result)
    print({key: value for key, value in result.items() if key != "each"})
    return 1 if result["problems"] else 0


def one(name: str, words: list[str], whole: Path, base: Path, cache: Path, disk: Path) -> Trial:
    """A command on a small disk, and again once there is space."""
    folder = disk / "run"
    again: list[str]
    if name == "training and closing":
        first = [*words, f"--out={folder}"]
    elif name == "preparing text":
        folder = base / "prepared"
        shutil.rmtree(folder, ignore_errors=True)
        first, cache = [*words, f"--out={folder}"], disk / "cache"
    elif name == "report":
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("report", "belief.json"))
        first = ["pyro_meta.report", str(folder)]
    else:
        grid = ["--grid.kl.weight=[0.1]", "--seeds=1", "--baselines=[point]"]
        first = ["pyro_meta.ablate", *grid, *words[1:], f"--out={disk / 'study'}"]
    done = run(first, cache)
    line, problem = judge(done, disk)
    code = done.returncode
    if name == "ablate" and code == 1:  # a run failed for want of space, and is named
        code, problem = 1, ""
    if problem or code == 0:
        return Trial(name, 0, code, line, problem)
    enlarge(disk)
    again = first
    if name == "training and closing" and (folder / "config.yaml").is_file():
        again = ["pyro_meta.train", f"--resume={folder}"]
    if name == "preparing text" and folder.exists():
        problem = "a run was begun without its text"
    done = run(again, cache)
    if done.returncode != 0:
        problem = f"not repaired: {done.stderr[-300:]}"
    elif name in ("training and closing", "preparing text"):
        if checksums.damage(folder) is not None or not same(folder, whole):
            problem = "not what a run on an empty disk leaves"
    elif name == "report" and not (folder / "report" / "report.json").is_file():
        problem = "no report"
    return Trial(name, 0, code, line, problem)


def same(folder: Path, whole: Path) -> bool:
    """Whether the losses of all steps are equal."""

    def losses(run: Path) -> list[tuple[int, float]]:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [(record["step"], record["loss"]) for record in map(json.loads, lines)]

    return losses(folder) == losses(whole)


if __name__ == "__main__":
    run_script(main)
