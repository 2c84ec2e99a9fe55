"""How fast the run of `make train` trains in two checkouts, by turns: tokens per second.

    python benchmarks/training_rate.py OUT.json BEFORE AFTER [--rounds 5] [--threads 2]

BEFORE and AFTER are folders of checkouts, see `two_checkouts.py`. Schedules are shares of the
steps, so a run of half as many spends as much of itself in each phase. `settled` is from 0.6 of
training on, when the guide rests and all tokens are hard.
"""

import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts import run_script
from two_checkouts import Figures, by_turns, run_in

STEPS, SETTLED = 400, 0.6
RUN = """
data:
  class_path: Recall
  init_args: {filler: python, pairs: 8, queries: 24, values: 4}
validate_every: 0
validation_tokens: 512
"""


def measure(checkout: Path, threads: int) -> Figures:
    """One run in a checkout."""
    with TemporaryDirectory() as folder:
        config, run = Path(folder) / "run.yaml", Path(folder) / "run"
        config.write_text(f"{RUN}steps: {STEPS}\n")
        run_in(checkout, threads, "-m", "pyro_meta.train", f"--config={config}", f"--out={run}")
        lines = (run / "metrics.jsonl").read_text().splitlines()
    rates = [one["tokens_per_second"] for one in map(json.loads, lines) if "loss" in one]
    assert len(rates) == STEPS, f"{len(rates)} steps are in its metrics"
    return {
        "tokens_per_second": statistics.harmonic_mean(rates),
        "tokens_per_second_settled": statistics.harmonic_mean(rates[round(SETTLED * STEPS) :]),
    }


def main() -> None:
    by_turns("training_rate.py", __doc__, measure)


if __name__ == "__main__":
    run_script(main)
