"""Who takes full attention on `--data Recall`: tokens by kind, and definitions by their number.

    python benchmarks/full_by_kind.py benchmarks/results/current/full_by_kind.json RUN [RUN ...]

Of runs with a known truth, one hop and no depth gates, at their last checkpoint, along hard routes.
`used` counts choices of `full` per look-up needed, by layer, as `full_used` in `summary.json` does;
undecided tokens are a kind of their own. `lead` has quantiles of log m_full - log of the largest
other posterior mean, by layer: where it is above the price (`--harden.price` times the difference
in cost) full attention is chosen. A definition is counted by its number, undecided or not, beside
how many sequences have so many.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hard_walk import hard_walk
from numpy.typing import NDArray
from scripts import Parser, a_file_to_write, a_run, run_script

from pyro_meta.data.corpus import Truth
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.run import Run

TOKENS = 65_536
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


def by_kind(run: Run) -> dict[str, Any]:
    walk = hard_walk(run, TOKENS)
    others = np.delete(walk.means, walk.full, axis=-1)
    lead = np.log(walk.means[..., walk.full]) - np.log(others.max(-1))  # [L, N, T]
    takes_full = walk.choice[..., walk.full]
    kinds = _kinds(walk.symbols, walk.tokens, walk.truth)
    if not kinds["definitions"].any():
        sys.exit(f"{run.folder}: a run whose definitions are one token each is needed")
    needed = int(kinds["look-ups"].sum())
    is_definition = np.array(["=" in symbol for symbol in walk.symbols])[walk.tokens]
    number = is_definition.cumsum(1) * is_definition
    return {
        "command": walk.command,
        "quantiles_of_lead": QUANTILES,
        "kinds": {
            kind: {
                "tokens_per_look_up": float(where.sum() / needed),
                "used": (takes_full[:, where].sum(1) / needed).tolist(),
                "lead": np.quantile(lead[:, where], QUANTILES, axis=1).T.tolist(),
            }
            for kind, where in kinds.items()
            if where.any()
        },
        "definitions_by_number": [
            {
                "sequences": int((number == n).sum()),
                "share_on_full": takes_full[:, number == n].mean(1).tolist(),
            }
            for n in range(1, int(number.max()) + 1)
        ],
    }


def _kinds(
    symbols: list[str], tokens: NDArray[np.int64], truth: Truth
) -> dict[str, NDArray[np.bool_]]:
    """Which tokens [N, T] are of which kind; none is of two."""

    def among(pattern: str) -> NDArray[np.bool_]:
        return np.array([bool(re.fullmatch(pattern, symbol)) for symbol in symbols])[tokens]

    look_ups = truth.is_answer & ~truth.is_undecided
    kinds = {
        "look-ups": look_ups,
        "undecided": truth.is_undecided,
        "definitions": among("⟨k[0-9]+=[0-9]+⟩"),
        "answers": among("⟨[0-9]+⟩"),
        "marks": among("⟨[?]⟩"),
        "strangers": among("⟨k[0-9]+⟩"),
    }
    taken = np.zeros_like(look_ups)
    for kind, where in kinds.items():
        kinds[kind] = where & ~taken
        taken |= where
    return kinds | {"filler": ~taken}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("target", type=a_file_to_write)
    parser.add_argument("runs", type=a_run, nargs="+")
    options = parser.parse_args()
    target, folders = options.target, [Path(one) for one in options.runs]
    facts = measured_by(f"python benchmarks/full_by_kind.py {target} RUN...")
    runs = {folder.name: by_kind(Run.open(folder)) for folder in folders}
    write_measured(target, facts | {"runs": runs})


if __name__ == "__main__":
    run_script(main)
