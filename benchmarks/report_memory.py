"""What a report takes: time and peak memory, of training with its read-out and of the report.

    python benchmarks/report_memory.py report_million.json OPTIONS_OF_TRAIN

Each is a child process, whose peak is what the system says.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import xarray as xr
from scripts import Parser, a_file_to_write, run_script

from pyro_meta.terminal.measured import measured_by, write_measured


def measured(*words: str) -> dict[str, Any]:
    """Seconds and peak memory of `python -m WORDS`."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", *words])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(words)} failed")
    return {
        "seconds": time.perf_counter() - start,
        "peak_resident_gib": usage.ru_maxrss / 2**20,  # KiB on Linux
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("target", type=a_file_to_write)
    asked, options = parser.parse_known_args()
    parser.make_folders(asked)
    target = asked.target
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        training = measured("pyro_meta.train", *options, "--out", str(run))
        report = measured("pyro_meta.report", str(run))
        file = run / "posterior.nc"
        with xr.open_dataset(file, group="tokens", engine="h5netcdf") as data:
            tokens = data.sizes["token"]
    figures = {
        "tokens": tokens,
        "training_and_read_out": training,
        "report": report,
    }
    facts = measured_by(["python", "benchmarks/report_memory.py", str(target), *options])
    write_measured(target, facts | figures)


if __name__ == "__main__":
    run_script(main)
