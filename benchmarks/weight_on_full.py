"""The posterior's weight on full attention, of tokens that need a look-up and of all others.

    python benchmarks/weight_on_full.py benchmarks/results/weight_on_full.json RUN [RUN ...]

Of runs with a known truth (`--data Recall`), at their last checkpoint: posterior means of the first
layer along hard routes. Undecided tokens are left out. A run may be stopped on the way.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_meta.config import train_words
from pyro_meta.evaluation import evaluating
from pyro_meta.run import Run
from pyro_meta.transformer import Features

TOKENS = 16_384
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def weights(run: Run) -> dict[str, Any]:
    model, guide, _, config = run.load()
    corpus = config.data.corpus()
    corpus.require(config.context)
    truth = corpus.truth(config.context, TOKENS)
    assert truth is not None, f"{run.folder}: its data knows no truth"
    tokens, _ = corpus.windows(config.context, TOKENS)
    full = model.network.mechanism_names.index("full")
    found: list[Tensor] = []

    def route(layer: int, features: Features) -> Tensor:
        law = guide.posterior(layer, features)
        if layer == 0:
            found.append(law.mean[..., full])
        return guide.follow(law, hard=True)

    with evaluating(model, guide):
        model.network(tokens, route)
    weight, is_scored = found[0].numpy(), ~truth.is_undecided
    kinds = {"look-ups": truth.is_answer & is_scored, "others": ~truth.is_answer & is_scored}
    return {
        "command": shlex.join(["python", "-m", "pyro_meta.train", *train_words(run_yaml(run))]),
        "step": run.state()["step"],
        "of_steps": config.steps,
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


def run_yaml(run: Run) -> str:
    return (run.folder / "config.yaml").read_text(encoding="utf-8")


def main() -> None:
    target, *folders = map(Path, sys.argv[1:])
    torch.manual_seed(0)
    facts = {
        "command": f"python benchmarks/weight_on_full.py {target} RUN...",
        "runs": {folder.name: weights(Run.open(folder)) for folder in folders},
    }
    target.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
