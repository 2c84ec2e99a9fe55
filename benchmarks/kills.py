"""Kill training at random moments, go on, and compare with a run that nothing disturbed.

    python benchmarks/kills.py --moments 60 --processes 1 --out kills.json

A moment is a step that was logged, or a time after the last checkpoint, while the run is closed; a
signal is sent there, and the run is resumed until it is finished. What must hold: no run is lost,
no record is doubled or missing, and all losses and weights are equal to the last bit.
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts import Parser, a_count, a_file_to_write, a_whole, run_script

from pyro_meta import checksums
from pyro_meta.terminal.measured import measured_by, write_measured

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STEPS = 30
OPTIONS = [
    "--context=16", "--window=4", "--width=16", "--layers=2", "--heads=2", "--batch=4",
    f"--steps={STEPS}", "--validate_every=10", "--validation_tokens=2048", "--checkpoint_every=7",
    "--accelerator=cpu",
]  # fmt: skip
CLOCK = ("tokens_per_second",)
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. "
MOST_RESUMES = 6


@dataclass
class Trial:
    """What came of one disturbed run."""

    signal: str
    processes: int
    while_closing: bool
    sent_to: str
    after_step: int
    code: int
    was_alive: bool
    problem: str = ""


def start(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYRO_META_PROFILE": "default"}
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "pyro_meta.train", *words],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
            start_new_session=True,
        )  # fmt: skip


class Forked:
    """A run in a fork of this process, which has everything imported: seconds are saved."""

    def __init__(self, words: list[str], log: Path) -> None:
        train = importlib.import_module("pyro_meta.train")  # the module: the name is callable, too
        from pyro_meta.terminal.commands import run_command

        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["train", *words]
        code = 1
        try:
            run_command(train.main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def weights(folder: Path) -> dict[str, str]:
    (checkpoint,) = (folder / "checkpoint").iterdir()
    return {path.name: checksums.sha256(path) for path in checkpoint.glob("*.safetensors")}


def logged(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def trial(
    kind: signal.Signals,
    processes: int,
    text: Path,
    whole: Path,
    closing_s: float,
    dice: random.Random,
    begin: Callable[[list[str], Path], Any],
) -> Trial:
    """Disturb one run, go on with it, and say what is wrong with the end."""
    folder = whole.with_name(f"run-{dice.getrandbits(48):x}")
    log = folder.with_suffix(".log")
    new = [*OPTIONS, f"--devices={processes}", f"--data.path={text}", f"--out={folder}"]
    while_closing = dice.random() < 0.4
    to_all = dice.random() < 0.5
    step = STEPS if while_closing else dice.randrange(STEPS)
    wait = dice.random() * (closing_s if while_closing else 0.05)
    process = begin(new, log)
    while process.poll() is None and (
        logged(folder) < step or (while_closing and not _is_last_saved(folder))
    ):
        time.sleep(0.002)
    time.sleep(wait)
    was_alive = process.poll() is None
    if was_alive:
        (os.killpg if to_all else os.kill)(process.pid, kind)
    at = logged(folder)
    found = Trial(
        kind.name, processes, while_closing, "all" if to_all else "first", at, 0, was_alive
    )
    found.code = process.wait()
    codes: list[int] = []
    while not (folder / "summary.json").is_file() and len(codes) < MOST_RESUMES:
        words = [f"--resume={folder}"] if (folder / "config.yaml").is_file() else new
        codes.append(begin(words, log).wait())
    found.problem = _problem(folder, whole, codes)
    said = log.read_text(errors="replace")
    if "Traceback" in said:
        found.problem += " a traceback was printed"
    if not found.problem:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _is_last_saved(folder: Path) -> bool:
    return (folder / "checkpoint" / f"step-{STEPS:08d}").is_dir()


def _problem(folder: Path, whole: Path, codes: list[int]) -> str:
    if not (folder / "summary.json").is_file():
        return f"lost: resumed with codes {codes}"
    if damage := checksums.damage(folder):
        return f"not whole: {damage}"
    if records(folder) != records(whole):
        steps = [record["step"] for record in records(folder)]
        if steps != list(range(1, STEPS + 1)):
            return f"records doubled or missing: {steps}"
        return "losses differ"
    return "" if weights(folder) == weights(whole) else "weights differ"


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--moments", type=a_count, default=60, help="For each number of processes.")
    parser.add_argument("--processes", type=a_count, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=a_whole, default=0)
    parser.add_argument("--out", type=a_file_to_write)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    dice, found = random.Random(options.seed), []
    for name in ("training.loop", "training.devices", "posterior.closing"):  # before any fork
        importlib.import_module(f"pyro_meta.{name}")
    with tempfile.TemporaryDirectory() as place:
        os.environ["PYRO_META_CACHE"] = f"{place}/cache"
        text = Path(place) / "text.txt"
        text.write_text(TEXT * 1000)
        for processes in options.processes:
            begin = Forked if processes == 1 and hasattr(os, "fork") else start
            whole = Path(place) / f"whole-{processes}"
            words = [*OPTIONS, f"--devices={processes}", f"--data.path={text}", f"--out={whole}"]
            process = begin(words, whole.with_suffix(".log"))
            while not _is_last_saved(whole) and process.poll() is None:
                time.sleep(0.002)
            since = time.perf_counter()
            if process.wait():
                print(whole.with_suffix(".log").read_text(), file=sys.stderr)
                return 2
            closing_s = time.perf_counter() - since
            for number in range(options.moments):
                kind = SIGNALS[number % len(SIGNALS)]
                one = trial(kind, processes, text, whole, closing_s, dice, begin)
                found.append(one)
                print(number, one, flush=True)
    result = {
        **measured_by(["python", "benchmarks/kills.py", *sys.argv[1:]]),
        "trials": len(found),
        "by_signal": Counter(one.signal for one in found),
        "by_processes": Counter(str(one.processes) for one in found),
        "while_closing": sum(one.while_closing for one in found),
        "hit_a_live_process": sum(one.was_alive for one in found),
        "stopped_by_signal": Counter(one.signal for one in found if one.code),
        "lost": sum("lost" in one.problem for one in found),
        "records_doubled_or_missing": sum("records" in one.problem for one in found),
        "losses_or_weights_differ": sum("differ" in one.problem for one in found),
        "other_problems": [one.problem for one in found if one.problem],
        "each": [asdict(one) for one in found],
    }
    if options.out is not None:
        write_measured(options.out, result)
    print({key: value for key, value in result.items() if key != "each"})
    return 1 if result["other_problems"] else 0


if __name__ == "__main__":
    run_script(main)
