"""What a report takes: its time, and the most memory that it holds at once.

    python benchmarks/report_memory.py benchmarks/results/report_million.json RUN

RUN must have no report yet. It is made by a child process, whose peak is what the system says.
"""

import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import xarray as xr

from pyro_meta.config import train_words
from pyro_meta.run import hardware


def main() -> None:
    target, run = map(Path, sys.argv[1:])
    if (run / "posterior.nc").exists():
        raise SystemExit(f"{run}: it has a posterior.nc already; a fresh run is needed")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pyro_meta.report", str(run)], check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux
    with xr.open_dataset(run / "posterior.nc", group="observed_data", engine="h5netcdf") as data:
        tokens = data.sizes["token"]
    words = train_words((run / "config.yaml").read_text(encoding="utf-8"))
    facts = {
        "command": f"python benchmarks/report_memory.py {target} RUN",
        "run": shlex.join(["python", "-m", "pyro_meta.train", *words]),
        "hardware": hardware(),
        "tokens": tokens,
        "seconds": seconds,
        "peak_resident_gib": peak / 2**20,
    }
    target.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
