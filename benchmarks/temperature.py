"""The weight of the KL: where look-ups survive it, and what a refit makes of the same network.

    python benchmarks/temperature.py --workers 2
    python benchmarks/temperature.py --steps 20 --refit 5 --json /tmp/temperature.json

The runs of `benchmarks/studies/temperature.yaml` are trained, in OUT/trained. The first of them,
which has the least weight, then lends its network: the guide is fitted anew to it, frozen, at each
weight of the study and at 1, in OUT/refitted. Each run gets its report, and bounds on the evidence
of a few validation sequences (OUT/figures). What is there is not made again: repeat the command to
go on.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exhibit import look_at, study_parser
from exhibit_figures import Figures, threads_for
from scripts import a_count

from pyro_meta import ablate
from pyro_meta.analysis.json_values import plain
from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import run_command
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.terminal.option_files import read_mapping
from pyro_meta.training.run import Run

POSTERIOR = 1.0
"""The weight at which the objective is the ELBO."""
RELIABLE = {
    "reliable": "4 tokens, w = {w:g}, y unknown",
    "reliable_given_targets": "4 tokens, w = {w:g}",
}
"""Shares of blocks whose k-hat is below 0.7, and the target in the report that they are of."""


@dataclass(frozen=True)
class Fitted:
    """A run of which figures are wanted."""

    weight: float
    folder: Path
    is_refitted: bool

    @property
    def name(self) -> str:
        return f"{'refitted' if self.is_refitted else 'trained'}-{self.weight:g}"


def trained(out: Path) -> list[Fitted]:
    """The finished runs of the study in `out`, the least weight first."""
    runs = [one for one in (out / "runs").iterdir() if (one / "summary.json").is_file()]
    found = [Fitted(_weight(run), run, False) for run in runs]
    return sorted(found, key=lambda one: one.weight)


def refit(source: Fitted, weights: Sequence[float], steps: int, out: Path, workers: int) -> None:
    """Fit guides to the network of a run, which stays as it is, one at each of the weights.

    Raises
    ------
    UsageError
        A run failed; its last line says why.
    """

    def train(weight: float) -> None:
        folder = out / f"w={weight:g}"
        if (folder / "summary.json").is_file():
            return
        if folder.exists():  # begun before
            words = ["--resume", str(folder)]
        else:
            words = [
                "--from", str(source.folder), "--steps", str(steps), "--optim.refit", str(steps),
                "--kl.weight", f"{weight:g}", "--out", str(folder),
            ]  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(threads_for(workers))}
        done = subprocess.run(
            [sys.executable, "-m", "pyro_meta.train", *words],
            env=os.environ | threads, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise UsageError(f"{folder}: {done.stderr.strip().rpartition(chr(10))[2]}")
        print(f"refitted at {weight:g}", file=sys.stderr)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(train, weights))


def _weight(run: Path) -> float:
    return Run.open(run).config().kl.weight


def _reliable(one: Fitted) -> Figures:
    """The shares of `RELIABLE`, as the report of a run gives them."""
    blocks = read_mapping(one.folder / "report" / "report.json", "report")["belief"]["blocks"]
    shares = {block["target"]: block["share_below_0.7"] for block in blocks}
    return {name: shares.get(target.format(w=one.weight)) for name, target in RELIABLE.items()}


def look(runs: Sequence[Fitted], kept: Path, workers: int) -> list[dict[str, Any]]:
    """A row of figures for each run.

    Raises
    ------
    UsageError
        A run cannot be reported.
    """
    places = [(one.folder, kept / f"{one.name}.json") for one in runs]
    rows = []
    for one, (figures, wrong) in zip(runs, look_at(places, workers), strict=True):
        if wrong:
            raise UsageError(wrong)
        kind = "refitted" if one.is_refitted else "trained"
        rows.append({"kl_weight": one.weight, "kind": kind, **figures, **_reliable(one)})
    return rows


def main(argv: list[str]) -> int:
    """Train, refit, look and write; 0 when all is done, the code of `ablate` when it is not."""
    parser = study_parser(__doc__, "temperature")
    parser.add_argument("--refit", type=a_count, default=200, help="Steps of each refit.")
    options, words = parser.parse_known_args(argv)
    parser.make_folders(options)
    out = options.out
    code = ablate.main(
        [str(options.study), f"--out={out / 'trained'}", f"--workers={options.workers}", *words]
    )
    if code:
        return code
    runs = trained(out / "trained")
    weights = sorted({*(one.weight for one in runs), POSTERIOR})
    refit(runs[0], weights, options.refit, out / "refitted", options.workers)
    refits = [Fitted(weight, out / "refitted" / f"w={weight:g}", True) for weight in weights]
    rows = look([*runs, *refits], out / "figures", options.workers)
    facts = measured_by(["python", "benchmarks/temperature.py", *argv])
    study = read_mapping(options.study, "study")
    contents = {"study": study, "refit_steps": options.refit, "network_of": weights[0]}
    write_measured(options.json, plain(facts | contents | {"rows": rows}))
    print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    run_command(main)
