"""Large inputs and many runs: peak memory and time of whole commands.

    python benchmarks/load.py --out benchmarks/results/current/load.json

A text of 2 GB, 20,000 generated tokens, a report on 20 runs, and a study of 20 runs on 8 workers,
of which one fails and one hangs, interrupted in the middle and repeated.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from scripts import Parser, a_count, a_file_to_write, positive, run_script

from pyro_meta import checksums
from pyro_meta.terminal.measured import measured_by, write_measured

TINY = {
    "context": 16, "window": 4, "width": 16, "layers": 2, "heads": 2, "batch": 4, "steps": 12,
    "validate_every": 0, "validation_tokens": 256, "accelerator": "cpu",
}  # fmt: skip
SENTENCE = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs.\n"
POLL_S = 0.05
PARTS = ["inputs", "study"]


def measured(
    words: list[str], place: Path, act: Callable[[subprocess.Popen[str]], None] | None = None
) -> dict[str, Any]:
    """Run `python -m WORDS`: exit code, seconds, and peak memory of it with all it has started."""
    environment = os.environ | {
        "PYRO_META_CACHE": str(place / "cache"), "PYTHONPATH": str(Path(__file__).parent),
        "PYRO_META_PROFILE": "default",
    }  # fmt: skip
    started = time.perf_counter()
    log = open(place / "log", "w+")  # noqa: SIM115 -- read below
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=place, env=environment, stdout=log, stderr=log,
        text=True, start_new_session=True,
    )  # fmt: skip
    if act is not None:
        threading.Thread(target=act, args=[process], daemon=True).start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(POLL_S)
    seconds = time.perf_counter() - started
    log.seek(0)
    said = log.read()
    log.close()
    return {
        "command": " ".join(["python -m", *words]).replace(str(place), "."),
        "code": process.returncode,
        "seconds": round(seconds, 2),
        "peak_mb": round(peak / 1e6),
        "said": said[-600:].replace(str(place), "."),
        "tracebacks": said.count("Traceback"),
    }


def resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            # memory that is mapped from a file is the disk's: it is given back when it is needed
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            total += 1024 * int(found[1]) if found else 0
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                waiting += [int(child) for child in children.read_text().split()]
        except (OSError, TypeError):
            continue
    return total


def write_text(path: Path, size: int) -> None:
    block = (SENTENCE * (1 << 14)).encode()
    with open(path, "wb") as out:
        for _ in range(size // len(block) + 1):
            out.write(block)


def processes_of(place: Path) -> int:
    """Processes whose command names a folder."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        count += b"pyro_meta.train" in words and str(place).encode() in words
    return count


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--gigabytes", type=positive, default=2.0)
    parser.add_argument("--tokens", type=a_count, default=20_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=a_file_to_write)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    result = measured_by(["python", "benchmarks/load.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "small.txt").write_text(SENTENCE * 400)
        if "inputs" in options.parts:
            result |= inputs(place, options.gigabytes, options.tokens)
        if "study" in options.parts:
            result |= study(place, place / "small.txt")
    if options.out is not None:
        write_measured(options.out, result)
    print(json.dumps(result, indent=1))
    return 0


def inputs(place: Path, gigabytes: float, tokens: int) -> dict[str, Any]:
    """A long text, a long continuation, and a report on many runs."""
    found: dict[str, Any] = {}
    large, tiny = place / "large.txt", [f"--{name}={value}" for name, value in TINY.items()]
    write_text(large, int(gigabytes * 1e9))
    words = ["pyro_meta.train", *tiny, f"--data.path={large}"]
    found["text_first"] = measured([*words, f"--out={place / 'large-1'}"], place)
    found["text_prepared"] = measured([*words, f"--out={place / 'large-2'}"], place)
    large.unlink()
    run = place / "run"
    small = f"--data.path={place / 'small.txt'}"
    words = ["pyro_meta.train", *tiny, "--context=256", "--window=32", small]
    assert measured([*words, f"--out={run}"], place)["code"] == 0
    words = ["pyro_meta.generate", str(run), f"--max_tokens={tokens}"]
    found["generate"] = measured(words, place)
    runs = [run]
    for number in range(19):
        runs.append(place / f"run-{number}")
        shutil.copytree(run, runs[-1])
    found["report"] = measured(["pyro_meta.report", *map(str, runs)], place)
    found["report"] |= {"runs": len(runs), "command": "python -m pyro_meta.report run run-*"}
    return found


def study(place: Path, text: Path) -> dict[str, Any]:
    """20 runs: 18 that are well, one that fails and one that hangs."""
    out = place / "study"
    path = place / "study.yaml"
    given = {
        "base": TINY | {"data": {"class_path": "Text", "init_args": {"path": str(text)}}},
        "variants": {f"w{i}": {"kl": {"weight": 0.01 * (i + 1)}} for i in range(18)}
        | {
            name: {"data": {"class_path": f"faulty_data.{kind}", "init_args": {"path": str(text)}}}
            for name, kind in (("fails", "FailingText"), ("hangs", "HangingText"))
        },
        "seeds": 1,
        "baselines": False,
    }
    path.write_text(yaml.safe_dump(given, sort_keys=False))

    def interrupt(process: subprocess.Popen[str]) -> None:
        while len(list(out.glob("runs/*/summary.json"))) < 6 and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)

    words = ["pyro_meta.ablate", str(path), f"--out={out}", "--workers=8", "--time_limit=2"]
    first = measured(words, place, interrupt)
    first["left_running"] = processes_of(out)
    before = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("runs/*/summary.json")}
    second = measured(words, place)
    second["left_running"] = processes_of(out)
    after = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("runs/*/summary.json")}
    second["finished"] = len(after)
    second["whole"] = sum(checksums.damage(out / "runs" / name) is None for name in after)
    second["trained_again"] = sum(after[name] != time_ for name, time_ in before.items())
    first["finished"] = len(before)
    return {"study_interrupted": first, "study_repeated": second}


if __name__ == "__main__":
    run_script(main)
