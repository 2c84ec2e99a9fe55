"""What full attention is worth where no look-up needs it, on `--data Recall`.

    python benchmarks/gain_of_full.py benchmarks/results/current/gain_of_full.json RUN [RUN ...]

Of runs with a known truth, at their last checkpoint. Along hard routes, the tokens that run `full`
in the first layer without a look-up to make are given another mechanism instead. `gain` is by how
much the loss of all tokens grows then, in nats per such token: what full attention is worth to
it in this network, to be held against its price, `--kl.weight` times lambda times the difference
in cost.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from scripts import Parser, a_file_to_write, a_run, run_script

from pyro_meta.evaluation.figures import evaluating, token_nll
from pyro_meta.guides import mean_route
from pyro_meta.network.route import Decision, Features
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.run import Run

TOKENS = 16_384


def gain_of_full(run: Run) -> dict[str, Any]:
    """By mechanism that stands in: how many tokens, and what they lose."""
    model, guide, _, config = run.load()
    corpus = config.data.corpus()
    windows = corpus.windows(config.context, TOKENS)
    truth = corpus.truth(config.context, TOKENS)
    if truth is None or "full" not in model.network.mechanism_names:
        sys.exit(f"{run.folder}: a run with a known truth and full attention is needed")
    names = model.network.mechanism_names
    full, follow = names.index("full"), mean_route(guide, hard=True)
    is_needed = torch.as_tensor(truth.is_answer | truth.is_undecided)
    seen: dict[int, torch.Tensor] = {}

    def noting(layer: int, features: Features) -> Decision:
        decision = follow(layer, features)
        seen[layer] = decision.route
        return decision

    found: dict[str, Any] = {}
    with evaluating(model, guide):
        before = token_nll(model.network(windows[0], noting), windows[1])
        extra = (seen[0] == full) & ~is_needed
        for index, name in enumerate(names):
            if index == full:
                continue

            def instead(layer: int, features: Features, index: int = index) -> Decision:
                decision = follow(layer, features)
                route = torch.where(extra, index, decision.route) if layer == 0 else decision.route
                return Decision(route)

            after = token_nll(model.network(windows[0], instead), windows[1])
            gain = float((after - before).sum() / extra.sum()) if extra.any() else None
            found[name] = {"tokens": int(extra.sum()), "gain": gain}
    price = float(model.compute.rate) * config.kl.weight if model.compute is not None else None
    return {"instead": found, "price_of_a_unit": price, "look_ups": int(truth.is_answer.sum())}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("target", type=a_file_to_write)
    parser.add_argument("runs", type=a_run, nargs="+")
    options = parser.parse_args()
    path, folders = options.target, options.runs
    runs = {Path(folder).name: gain_of_full(Run.open(folder)) for folder in folders}
    names = " ".join(Path(folder).name for folder in folders)
    facts = measured_by(f"python benchmarks/gain_of_full.py {path} {names}")
    write_measured(path, facts | {"runs": runs})


if __name__ == "__main__":
    run_script(main)
