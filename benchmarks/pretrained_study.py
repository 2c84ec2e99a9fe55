"""The runs of the study of a pretrained model on held-out documents, at equal key visits.

    python benchmarks/pretrained_study.py studies/pretrained/runs --documents build/texts/held_out

All seeds of a variant are evaluated by one `python -m pyro_meta.evaluate`, the price of each moved
to each budget, and leave a file; one that is there already is not made again. Rows that learn
nothing stand in `others-*.json`: layers chosen by the loss that leaving full attention costs them
(arXiv 2606.27791), every 2nd and 4th layer, tokens drawn alike in every layer and group (the prior,
which knows no layer), and routes that are read off the labels (`by label`: what leaving full
attention does to the loss, to first order; no bound, and no promise).
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from next_full import Windows, documents
from torch import Tensor

from pyro_meta.evaluation.beside import HARD, PAST
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.evaluation.more_full import losses_along, visits_of
from pyro_meta.evaluation.oracle import choices_of_least_harm, harms_by_label
from pyro_meta.evaluation.spending import visits_at
from pyro_meta.folders import write_whole
from pyro_meta.network.protocol import Network
from pyro_meta.terminal.machine import hardware, versions
from pyro_meta.training.run import Run

OUT = Path(__file__).parent / "results" / "pretrained" / "study"
FEW = 4  # documents by which layers are chosen: of the training text, not of those held out


def evaluated(
    name: str, runs: list[Path], options: argparse.Namespace, length: int, documents: int
) -> None:
    """Have all seeds of a variant evaluated at one length, unless they were."""
    path = options.out / f"{name}-{length}.json"
    if path.exists() and _is_of(path, runs, length, options.budgets):
        return
    words = [sys.executable, "-m", "pyro_meta.evaluate", *map(str, runs)]
    words += ["--json", f"{path}.part", "--documents", options.documents]
    words += [f"--lengths=[{length}]", f"--tokens={documents * length}"]
    words += [f"--budgets={json.dumps(options.budgets)}"]
    if options.questions:
        words += ["--retrieval=[passkey,pairs]", f"--questions={options.questions}"]
        words += ["--depths=[0.1,0.3,0.5,0.7]"]
    subprocess.run(words, check=True)
    Path(f"{path}.part").rename(path)


def _is_of(path: Path, runs: list[Path], length: int, budgets: Sequence[float]) -> bool:
    """Whether a file has every run at every budget."""
    rows = json.loads(path.read_text())["losses"][str(length)]["rows"]
    wanted = {f"{run.name}: {HARD}, at {budget:g}" for run in runs for budget in budgets}
    return wanted <= {*rows}


def by_variant(folder: Path, only: Sequence[str] | None) -> dict[str, list[Path]]:
    """Folders of runs by the name of their variant, in the order of their seeds."""
    found: dict[str, list[Path]] = {}
    for run in sorted(folder.iterdir()):
        if (run / "summary.json").exists() and (not only or run.name in only):
            found.setdefault(re.sub(r"-s\d+$", "", run.name), []).append(run)
    return found


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


def others(run: Path, options: argparse.Namespace, length: int, count: int) -> dict[str, Any]:
    """Rows that need no training, on the network of a run."""
    model, guide, words, config = Run.open(run).load()
    network = model.network
    windows, names = documents(options.documents, words.encode, length)
    windows = (windows[0][:count], windows[1][:count])
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
        "texts": names[:count],
        "layers_by_loss": order,
        "harms_of_layers": harms.tolist(),
        "macs_per_token": macs,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="Folder of runs; routes-s0 is among them.")
    parser.add_argument("--documents", required=True)
    parser.add_argument("--only", nargs="*", help="Names of runs (default: all).")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.33, 0.43])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024])
    parser.add_argument("--count", type=int, default=40, help="Documents, at most.")
    parser.add_argument("--questions", type=int, default=0, help="Of each kind, length and depth.")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for length in options.lengths:
        for name, runs in by_variant(options.runs, options.only).items():
            evaluated(name, runs, options, length, options.count)
        path = options.out / f"others-{length}.json"
        if not path.exists() and not options.only:
            with pyro.validation_enabled(False):
                found = others(options.runs / "routes-s0", options, length, options.count)
            found |= {"hardware": hardware(), "versions": versions()}
            write_whole(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
