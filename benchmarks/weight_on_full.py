"""The posterior's weight on full attention, of tokens that need a look-up and of all others.

    python benchmarks/weight_on_full.py benchmarks/results/weight_on_full.json RUN [RUN ...]

Of runs with a known truth (`--data Recall`), at their last checkpoint: posterior means of the first
layer along hard routes. Undecided tokens are left out. A run may be stopped on the way.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from hard_walk import hard_walk
from scripts import Parser, a_file_to_write, a_run, run_script

from pyro_meta.training.run import Run

TOKENS = 16_384
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def weights(run: Run) -> dict[str, Any]:
    walk = hard_walk(run, TOKENS)
    weight, is_scored = walk.means[0, ..., walk.full], ~walk.truth.is_undecided
    is_answer = walk.truth.is_answer
    kinds = {"look-ups": is_answer & is_scored, "others": ~is_answer & is_scored}
    return {
        "command": walk.command,
        "step": run.state()["step"],
        "of_steps": run.config().steps,
        **{
            kind: {
                "tokens": int(which.sum()),
                "mean": float(weight[which].mean()),
                "quantiles": dict(
                    zip(
                        map(str, QUANTILES),
                        np.quantile(weight[which], QUANTILES).tolist(),
                        strict=True,
                    )
                ),
            }
            for kind, which in kinds.items()
        },
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("target", type=a_file_to_write)
    parser.add_argument("runs", type=a_run, nargs="+")
    options = parser.parse_args()
    target, folders = options.target, [Path(one) for one in options.runs]
    facts = {
        "command": f"python benchmarks/weight_on_full.py {target} RUN...",
        "runs": {folder.name: weights(Run.open(folder)) for folder in folders},
    }
    target.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
