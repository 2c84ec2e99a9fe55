"""What the next few percent of full attention buy, by who says where they go.

    python benchmarks/next_full.py --routes RUN ... --split RUN ... --documents TEXTS --json FILE

The routes of each run are moved to a budget (`--visits`). Then more tokens attend fully, until
`--more` of the key visits are added:

* `posterior`: layers, groups and tokens whose posterior odds of full attention are the highest. It
  is what a lower price turns next; a guide with `follows` learns as these odds what full attention
  gains there, in nats over the temperature, so this spends where the expected gain is largest.
* `output entropy`: tokens whose next-token distribution along the routes is the least sure, full in
  all layers and groups.
* `random`: layers, groups and tokens at random.
* `next heads`: those groups of heads that the learned static split would make full next.

`closed` is the share of what full attention would still gain over the routes. Of the text past
token 256, paired by document.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from scripts import Parser, a_count, a_file_to_write, a_folder, a_run, a_share, run_script
from torch import Tensor

from pyro_meta.data.corpus import as_windows
from pyro_meta.data.files import find_files, read_text
from pyro_meta.evaluation.beside import PAST
from pyro_meta.evaluation.figures import by_group, evaluating
from pyro_meta.evaluation.more_full import (
    choices_along,
    losses_along,
    visits_of,
    with_more_full,
)
from pyro_meta.evaluation.spending import at_price, price_for
from pyro_meta.guides import Guide, mean_route
from pyro_meta.network.route import Decision, Features
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.run import Run

Windows = tuple[Tensor, Tensor]


def documents(folder: str, encode: Any, length: int) -> tuple[Windows, list[str]]:
    """The first tokens of each document, and its name."""
    rows, names = [], []
    for file in find_files(folder).files:
        tokens = np.asarray(encode(read_text(file, "--documents")), dtype=np.int64)
        if len(tokens) > length:
            rows.append(tokens[: length + 1])
            names.append(file.name)
    if not rows:
        raise SystemExit(f"{folder}: no document has more than {length} tokens")
    return as_windows(np.stack(rows)), names


@contextmanager
def spread(folder: Path, count: int) -> Iterator[Path]:
    """So many documents of a folder, spread over all of them: of every kind some."""
    files = sorted(folder.iterdir())
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    with tempfile.TemporaryDirectory() as place:
        for number in chosen:
            shutil.copy(files[number], place)
        yield Path(place)


def odds_along(guide: Guide, windows: Windows) -> Tensor:
    """Posterior log-odds of full attention along the guide's hard routes, [L, N, T, G]."""
    network, follow = guide.model.network, mean_route(guide, hard=True)
    names = network.mechanism_names
    full, window = names.index("full"), names.index("window")
    found: list[list[Tensor]] = [[] for _ in range(network.shape.layers)]

    def noting(layer: int, features: Features) -> Decision:
        logs = by_group(guide.routes(layer, features).mean, 4).log()
        found[layer].append(logs[..., full] - logs[..., window])
        return follow(layer, features)

    for row in range(len(windows[0])):
        network.states(windows[0][row : row + 1], noting)
    return torch.stack([torch.cat(one) for one in found])


def heads_of(split: Guide) -> Tensor:
    """How much the learned split wants each group of heads to be full, [L, 1, 1, G]."""
    network = split.model.network
    odds = odds_along(split, (torch.zeros(1, 2, dtype=torch.long),) * 2)
    return odds[:, :, :1].view(network.shape.layers, 1, 1, network.shape.groups)


def spent(
    routes: Guide, split: Guide, windows: Windows, visits: float, more: float, seed: int
) -> dict[str, Any]:
    """Losses by document and key visits of the base and of each way to spend."""
    network = routes.model.network
    price = price_for(routes.model, routes, windows, 1, visits)
    past = min(PAST, windows[0].shape[1] // 2)
    with at_price(routes, price):
        base = choices_along(network, mean_route(routes, hard=True), windows)
        odds = odds_along(routes, windows)
    full = choices_along(network, chosen_by_all(network, "full"), windows)
    losses, entropies = losses_along(network, base, windows)
    target = visits_of(network, base) + more
    draw = torch.Generator().manual_seed(seed)
    scores = {
        "posterior": odds,
        "output entropy": entropies[None, :, :, None],
        "random": torch.rand(base.shape, generator=draw),
        "next heads": heads_of(split) + 1e-6 * torch.rand(base.shape, generator=draw),
    }
    rows = {"base": (losses, base)}
    for name, score in scores.items():
        choices = with_more_full(network, base, score, target)
        rows[name] = (losses_along(network, choices, windows)[0], choices)
    rows["full"] = (losses_along(network, full, windows)[0], full)
    means = {name: nll[:, past:].mean(1) for name, (nll, _) in rows.items()}
    left = float(means["base"].mean() - means["full"].mean())
    return {
        name: {
            "by_document": mean.tolist(),
            "visits": visits_of(network, rows[name][1]),
            "closed": float(means["base"].mean() - mean.mean()) / left,
        }
        for name, mean in means.items()
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--routes", type=a_run, nargs="+", required=True, help="Runs, one for each seed."
    )
    parser.add_argument(
        "--split", type=a_run, nargs="+", required=True, help="Static splits, as many."
    )
    parser.add_argument("--documents", type=a_folder, required=True)
    parser.add_argument("--count", type=a_count, default=40, help="Documents, spread over all.")
    parser.add_argument("--length", type=a_count, default=1024)
    parser.add_argument("--visits", type=a_share, default=0.33)
    parser.add_argument("--more", type=a_share, default=0.05)
    parser.add_argument("--json", type=a_file_to_write, required=True)
    options = parser.parse_args()
    found = measured_by(["python", "benchmarks/next_full.py", *sys.argv[1:]])
    found["seeds"] = []
    for seed, folders in enumerate(zip(options.routes, options.split, strict=True)):
        with pyro.validation_enabled(False):
            (_, routes, words, _), (_, split, _, _) = (Run.open(one).load() for one in folders)
            with spread(options.documents, options.count) as texts:
                windows, names = documents(str(texts), words.encode, options.length)
            with evaluating(routes.model, routes, split):
                row = spent(routes, split, windows, options.visits, options.more, seed)
        found["documents"] = names
        found["seeds"].append(row)
        print(folders[0], {name: round(one["closed"], 3) for name, one in row.items()})
        write_measured(options.json, found)


if __name__ == "__main__":
    run_script(main)
