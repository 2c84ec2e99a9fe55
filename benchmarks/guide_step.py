"""What a step of training routes for a pretrained model takes: peak memory, and seconds.

    python benchmarks/guide_step.py --pretrained build/SmolLM2-135M-Instruct

One process for each precision: the model reads 1024 tokens along full attention, then along drawn
routes, and the guide gets its gradients.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyro
import torch
from scripts import Parser, a_count, run_script

from pyro_meta.inference.elbo import Objective
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.config import read_options

OUT = Path(__file__).parent / "results" / "current" / "pretrained" / "guide_step.json"
GIB = 2**20  # of ru_maxrss, which counts KiB on Linux


def measure(pretrained: str, precision: str, repeats: int) -> dict[str, float]:
    """Peak GiB of this process before and after some steps, and the median seconds of one."""
    config, _ = read_options([f"--pretrained={pretrained}", f"--precision={precision}"])
    corpus = config.data.corpus()
    with pyro.validation_enabled(False):
        model, guide = config.build(corpus.vocabulary.size)
        model.temperature = config.kl.weight
        objective = Objective(model, guide, teaches=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
        seconds = []
        for step in range(repeats):
            tokens, targets = corpus.batch(0, step, 1, config.context)
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = objective(tokens, targets).loss
            loss.backward()
            seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    return {"built_gib": before, "peak_gib": after, "seconds": statistics.median(seconds)}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--repeats", type=a_count, default=4)
    parser.add_argument("--precision", help="Measure this one here, and print it.")
    options = parser.parse_args()
    if options.precision:
        print(json.dumps(measure(options.pretrained, options.precision, options.repeats)))
        return
    found = {}
    for precision in ("bf16-mixed", "32-true"):
        command = [sys.executable, __file__, "--pretrained", options.pretrained,
                   "--repeats", str(options.repeats), "--precision", precision]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[precision] = json.loads(done.stdout.splitlines()[-1])
        print(precision, found[precision])
    name = Path(options.pretrained).name
    facts = measured_by(f"python benchmarks/guide_step.py --pretrained {name}")
    write_measured(OUT, facts | {"tokens": 1024} | found)


if __name__ == "__main__":
    run_script(main)
