"""The runs of the study of a pretrained model on held-out documents, at equal key visits.

    python benchmarks/pretrained_study.py studies/pretrained/runs --documents build/texts/held_out

Each run is evaluated by `python -m pyro_meta.evaluate`, its price moved to each budget, and leaves
a file of its own; one that is there already is not made again. Rows that learn nothing stand in
`others-*.json`: layers chosen by the loss that leaving full attention costs them (arXiv
2606.27791), every 2nd and 4th layer, tokens drawn alike in every layer and group (the prior,
which knows no layer), and routes that are read off the labels (`oracle`: an upper bound, and no
promise).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from next_full import Windows, documents
from torch import Tensor

from pyro_meta.evaluation.beside import PAST
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


def evaluated(run: Path, options: argparse.Namespace, length: int, documents: int) -> None:
    """Have one run evaluated at one length, unless it was."""
    path = options.out / f"{run.name}-{length}.json"
    if path.exists():
        return
    words = [sys.executable, "-m", "pyro_meta.evaluate", str(run), "--json", str(path) + ".part"]
    words += ["--documents", options.documents, f"--lengths=[{length}]"]
    words += [f"--budgets={json.dumps(options.budgets)}", f"--tokens={documents * length}"]
    if options.questions:
        words += ["--retrieval=[passkey,pairs]", f"--questions={options.questions}"]
        words += ["--depths=[0.1,0.3,0.5,0.7]"]
    subprocess.run(words, check=True)
    Path(str(path) + ".part").rename(path)


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


def by_label(network: Network, windows: Windows, visits: float) -> Tensor:
    """Choices that the gradient of the labels tells: the oracle."""
    window = network.mechanism_names.index("window")
    harms = [
        harms_by_label(network, windows[0][row : row + 1], windows[1][row : row + 1])[..., window]
        for row in range(len(windows[0]))
    ]
    return choices_of_least_harm(network, torch.cat(harms, 1), visits)


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
            f"every {n}th layer full": range(n - 1, len(order), n) for n in (2, 4)
        }
        each = float(visits_of(network, of_layers(network, [0], windows)))
        none = float(visits_of(network, of_layers(network, [], windows)))
        for visits in options.budgets:
            most = round((visits - none) / (each - none))
            ways[f"layers by loss, at {visits:g}"] = order[:most]
        chosen = {name: of_layers(network, layers, windows) for name, layers in ways.items()}
        for visits in options.budgets:
            chosen[f"drawn alike, at {visits:g}"] = drawn_alike(network, windows, visits)
            chosen[f"oracle by label, at {visits:g}"] = by_label(network, windows, visits)
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
        "router": float(sum(one.numel() for one in guide.parameters() if one.dim() == 2)),
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
        for run in sorted(one for one in options.runs.iterdir() if one.is_dir()):
            if not options.only or run.name in options.only:
                evaluated(run, options, length, options.count)
        path = options.out / f"others-{length}.json"
        if not path.exists() and not options.only:
            with pyro.validation_enabled(False):
                found = others(options.runs / "routes-s0", options, length, options.count)
            found |= {"hardware": hardware(), "versions": versions()}
            write_whole(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
