"""An SVI step over plain PyTorch, and decoding, of two checkouts by turns.

Of a decoded token also how often it asks the class hierarchy what a mechanism can do.

    python benchmarks/two_checkouts.py OUT.json BEFORE AFTER [--rounds 5] [--threads 2]

BEFORE and AFTER are folders of checkouts, each with its own environment in .venv. Every round runs
both, one process each, in an order that alternates; what is told are medians over the rounds and
their spread. Older checkouts name the same things otherwise, which `WORK` knows.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts import Parser, a_count, a_file_to_write, a_folder, run_script

from pyro_meta.terminal.measured import measured_by, write_measured

Figures = dict[str, float]
WORK = """
import json, os, statistics, sys, time
import torch
torch.set_num_threads(int(sys.argv[1]))
os.environ["PYRO_META_PROFILE"] = "default"
sys.path.insert(0, "benchmarks")
try:
    from svi import bench_svi
    from pyro_meta.generation.reader import Reader
except ImportError:
    from pyro_meta.measure.svi import bench_svi
    from pyro_meta.continuation import Reader
from pyro_meta import CostDirichlet, DirichletGuide, LanguageModel, Shape, Transformer

svi = bench_svi(4, 7)
torch.manual_seed(0)
network = Transformer(Shape(vocabulary=256, context=512, width=64, layers=4, heads=4, window=32))
model = LanguageModel(network, CostDirichlet(network)).eval()
guide = DirichletGuide(model).eval()
if hasattr(guide, "harden_below"):
    guide.harden_below(1.0)
else:
    guide.threshold.fill_(1.0)
reader = Reader(model, guide, [torch.randint(256, (200,)).tolist()])
reader.logits()
seconds = []
for number in range(250):
    started = time.perf_counter()
    token = int(reader.logits().argmax())
    reader.append([token])
    seconds.append(time.perf_counter() - started)

from pyro_meta.attention import mechanisms
asked, look_up = [], mechanisms._is_of_forward
mechanisms._is_of_forward = lambda *words: asked.append(words) or look_up(*words)
reader.logits()
print(json.dumps({
    "svi_over_plain": svi["median_of_ratios"],
    "svi_step_seconds": svi["median_seconds"]["svi"],
    "decoded_token_seconds": statistics.median(seconds[50:]),
    "class_look_ups_per_decoded_token": len(asked),
}))
"""


def run_in(checkout: Path, threads: int, *words: str) -> str:
    """What Python says in a checkout, by the environment and the code of that checkout."""
    here = str(checkout.resolve())
    done = subprocess.run(
        [f"{here}/.venv/bin/python", *words],
        cwd=checkout, capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": here},
    )  # fmt: skip
    return done.stdout


def measure(checkout: Path, threads: int) -> Figures:
    """One process of `WORK` in a checkout."""
    said = run_in(checkout, threads, "-c", WORK, str(threads))
    found: Figures = json.loads(said.splitlines()[-1])
    return found


def commit(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def summed_up(rounds: list[Figures]) -> dict[str, Any]:
    """Median, least and greatest of each figure."""
    return {
        name: {
            "median": statistics.median(one[name] for one in rounds),
            "least": min(one[name] for one in rounds),
            "greatest": max(one[name] for one in rounds),
        }
        for name in rounds[0]
    }


def by_turns(script: str, doc: str | None, measure: Callable[[Path, int], Figures]) -> None:
    """Ask for two checkouts, measure them in turn, and write what was found."""
    parser = Parser(doc)
    parser.add_argument("out", type=a_file_to_write)
    parser.add_argument("before", type=a_folder)
    parser.add_argument("after", type=a_folder)
    parser.add_argument("--rounds", type=a_count, default=5)
    parser.add_argument("--threads", type=a_count, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    checkouts = {"before": asked.before, "after": asked.after}
    found: dict[str, list[Figures]] = {name: [] for name in checkouts}
    for number in range(asked.rounds):
        for name in list(checkouts)[:: 1 if number % 2 else -1]:
            found[name].append(measure(checkouts[name], asked.threads))
            print(f"round {number + 1} of {asked.rounds}, {name}: {found[name][-1]}", flush=True)
    options = f"--rounds {asked.rounds} --threads {asked.threads}"
    whole = {
        **measured_by(f"python benchmarks/{script} OUT.json BEFORE AFTER {options}"),
        "threads": asked.threads,
        **{
            name: {"commit": commit(checkouts[name])} | summed_up(rounds)
            for name, rounds in found.items()
        },
    }
    write_measured(asked.out, whole)


def main() -> None:
    by_turns("two_checkouts.py", __doc__, measure)


if __name__ == "__main__":
    run_script(main)
