"""The runs of the study of a pretrained model on held-out documents, at equal key visits.

    python benchmarks/pretrained_study.py studies/pretrained/runs --documents build/texts/held_out

Each run is evaluated by `python -m pyro_meta.evaluate`, its price moved to each budget, and leaves
a file of its own; one that is there already is not made again. Rows that learn
nothing stand in `others-*.json`: layers chosen by the loss that leaving full attention costs them
(arXiv 2606.27791), every 2nd and 4th layer, tokens drawn alike in every layer and group (the prior,
which knows no layer), and routes that are read off the labels (`by label`: what leaving full
attention does to the loss, to first order; no bound, and no promise).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyro
import torch
from next_full import Windows, documents, spread
from scripts import Parser, a_count, a_folder, a_folder_to_write, a_share, a_whole, run_script
from torch import Tensor

from pyro_meta.evaluation.beside import HARD, PAST
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.evaluation.more_full import losses_along, visits_of
from pyro_meta.evaluation.oracle import choices_of_least_harm, harms_by_label
from pyro_meta.evaluation.spending import visits_at
from pyro_meta.network.protocol import Network
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.run import Run

OUT = Path("benchmarks") / "results" / "current" / "pretrained" / "study"
FIRST = "routes-s0"
FEW = 4  # documents by which layers are chosen: of the training text, not of those held out


def evaluated(run: Path, options: argparse.Namespace, length: int, documents: Path) -> None:
    """Have one run evaluated at one length, unless it was; the first has full attention beside."""
    path = options.out / f"{run.name}-{length}.json"
    if path.exists() and _has(path, run, length, options.budgets):
        return
    words = [sys.executable, "-m", "pyro_meta.evaluate", str(run)]
    words += [f"--documents={documents}", f"--lengths=[{length}]", f"--tokens={10**9}"]
    words += [f"--budgets={json.dumps(options.budgets)}", f"--alone={run.name == FIRST}"]
    if options.questions:
        words += ["--retrieval=[passkey,pairs]", f"--questions={options.questions}"]
        words += ["--depths=[0.1,0.3,0.5,0.7]"]
    with TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        subprocess.run([*words, "--json", str(part)], check=True)
        said = part.read_text().replace(str(documents), str(options.documents))
    write_measured(path, json.loads(said.replace(str(part), str(path))))


def _has(path: Path, run: Path, length: int, budgets: Sequence[float]) -> bool:
    """Whether a file has a run at every budget."""
    rows = json.loads(path.read_text())["losses"][str(length)]["rows"]
    return all(f"{run.name}: {HARD}, at {budget:g}" in rows for budget in budgets)


def harms_of_layers(network: Network, windows: Windows) -> Tensor:
    """By how much the loss rises where one layer alone leaves full attention, [L]."""
    N, T = windows[0].shape
    past = min(PAST, T // 2)
    full, window = (network.mechanism_names.index(name) for name in ("full", "window"))
    base = torch.full((network.shape.layers, N, T, network.shape.groups), full)
    found = []
    for layer in range(network.shape.layers):
        choices = base.clone()
        choices[layer] = window
        found.append(losses_along(network, choices, windows)[0][:, past:].mean())
    return torch.stack(found) - losses_along(network, base, windows)[0][:, past:].mean()


def of_layers(network: Network, layers: Sequence[int], windows: Windows) -> Tensor:
    """Choices that are full in some layers, [L, N, T, G]."""
    N, T = windows[0].shape
    full, window = (network.mechanism_names.index(name) for name in ("full", "window"))
    choices = torch.full((network.shape.layers, N, T, network.shape.groups), window)
    choices[list(layers)] = full
    return choices


def drawn_alike(network: Network, windows: Windows, visits: float, seed: int = 0) -> Tensor:
    """Choices that are full with one probability everywhere."""
    seen = visits_at(network, windows[0].shape[1]).sum(0)
    full, window = (network.mechanism_names.index(name) for name in ("full", "window"))
    chance = float((visits - seen[window]) / (seen[full] - seen[window]))
    draw = torch.Generator().manual_seed(seed)
    shape = (network.shape.layers, *windows[0].shape, network.shape.groups)
    return torch.where(torch.rand(shape, generator=draw) < chance, full, window)


def harms_of(network: Network, windows: Windows) -> Tensor:
    """By how much log p(label) falls where a choice leaves full attention, [L, N, T, G]."""
    window = network.mechanism_names.index("window")
    harms = [
        harms_by_label(network, windows[0][row : row + 1], windows[1][row : row + 1])[..., window]
        for row in range(len(windows[0]))
    ]
    return torch.cat(harms, 1)


def others(run: Path, options: argparse.Namespace, length: int, folder: Path) -> dict[str, Any]:
    """Rows that need no training, on the network of a run."""
    model, guide, words, config = Run.open(run).load()
    network = model.network
    windows, names = documents(str(folder), words.encode, length)
    tokens, targets = config.data.corpus().batch(0, 0, FEW, 1024)
    rows: dict[str, Any] = {}
    with evaluating(model, guide):
        harms = harms_of_layers(network, (tokens, targets))
        order = harms.argsort(descending=True).tolist()
        ways: dict[str, Sequence[int]] = {
            f"every {name} layer full": range(n - 1, len(order), n)
            for name, n in {"2nd": 2, "4th": 4}.items()
        }
        each = float(visits_of(network, of_layers(network, [0], windows)))
        none = float(visits_of(network, of_layers(network, [], windows)))
        for visits in options.budgets:
            most = round((visits - none) / (each - none))
            ways[f"layers by loss, at {visits:g}"] = order[:most]
        chosen = {name: of_layers(network, layers, windows) for name, layers in ways.items()}
        by_label = harms_of(network, windows)
        for visits in options.budgets:
            chosen[f"drawn alike, at {visits:g}"] = drawn_alike(network, windows, visits)
            chosen[f"by label, at {visits:g}"] = choices_of_least_harm(network, by_label, visits)
        past = min(PAST, length // 2)
        for name, choices in chosen.items():
            losses = losses_along(network, choices, windows)[0][:, past:]
            rows[name] = {
                "loss_past": float(losses.mean()),
                "by_sequence": losses.mean(1).tolist(),
                "visits": visits_of(network, choices),
            }
            print(length, name, round(rows[name]["loss_past"], 4), round(rows[name]["visits"], 3))
    shape = network.shape
    heads = shape.heads * shape.layers
    macs = {
        "dense": network.dense_macs(),
        "full_attention": heads * 2.0 * shape.head_width * (length + 1) / 2,
        "router": json.loads((run / "summary.json").read_text())["executed"][
            "macs_per_token_router"
        ],
    }
    return {
        "texts": names,
        "layers_by_loss": order,
        "harms_of_layers": harms.tolist(),
        "macs_per_token": macs,
        "rows": rows,
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", type=a_folder, help="Folder of runs; routes-s0 is among them.")
    parser.add_argument("--documents", type=a_folder, required=True)
    parser.add_argument("--only", nargs="*", help="Names of runs (default: all).")
    parser.add_argument("--budgets", type=a_share, nargs="+", default=[0.33, 0.43])
    parser.add_argument("--lengths", type=a_count, nargs="+", default=[1024])
    parser.add_argument("--count", type=a_count, default=40, help="Documents, at most.")
    parser.add_argument(
        "--questions", type=a_whole, default=0, help="Of each kind, length and depth."
    )
    parser.add_argument("--out", type=a_folder_to_write, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = sorted(one for one in options.runs.iterdir() if (one / "summary.json").exists())
    runs.sort(key=lambda one: one.name != FIRST)
    with spread(options.documents, options.count) as texts:
        for length in options.lengths:
            for run in runs:
                if not options.only or run.name in options.only:
                    evaluated(run, options, length, texts)
            path = options.out / f"others-{length}.json"
            if not path.exists() and not options.only:
                with pyro.validation_enabled(False):
                    found = others(options.runs / FIRST, options, length, texts)
                command = ["python", "benchmarks/pretrained_study.py", *sys.argv[1:]]
                write_measured(path, found | measured_by(command))


if __name__ == "__main__":
    run_script(main)
