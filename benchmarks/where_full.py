"""Which heads and tokens of a pretrained model keep full attention.

    python benchmarks/where_full.py RUN --documents build/texts/held_out --json FILE --picture FILE

Along the hard routes of a run that routes key-value heads, at `--visits` of the key visits, past
token 256 of each document:

* by group of heads: the share of its tokens that attend fully, beside what its heads do in the
  unrouted model (`pyro_meta.pretrained.head_kinds`);
* by token: the mean share of groups that attend fully, by class of token, by what stands before it,
  and where its last two tokens have come before, out of the window's sight.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import torch
from next_full import documents
from numpy.typing import NDArray
from scipy.stats import spearmanr
from scripts import Parser, a_count, a_file_to_write, a_run, a_share, a_text, run_script

from pyro_meta.analysis.token_classes import frequencies, kinds
from pyro_meta.evaluation.beside import PAST
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.evaluation.more_full import choices_along, visits_of
from pyro_meta.evaluation.spending import at_price, price_for
from pyro_meta.guides import mean_route
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.run import Run

MARKS = {"line end": "\n", "full stop": ".", "comma": ",", "bracket": "(", "quote": '"'}
PARTS = 6
"""Stretches of the positions past token 256."""


def repeats(tokens: NDArray[np.int64], window: int) -> dict[str, NDArray[np.bool_]]:
    """Which tokens [N, T] come, with the one before, earlier in the text, and where."""
    N, T = tokens.shape
    far, near = np.zeros((N, T), bool), np.zeros((N, T), bool)
    for row in range(N):
        last: dict[tuple[int, int], int] = {}
        for place in range(1, T):
            pair = (int(tokens[row, place - 1]), int(tokens[row, place]))
            before = last.get(pair)
            if before is not None:
                (near if place - before < window else far)[row, place] = True
            last[pair] = place
    return {
        "pair seen before, in the window": near,
        "pair seen before, beyond the window": far,
        "pair not seen before": ~(near | far),
    }


def after_marks(pieces: list[list[str]]) -> dict[str, NDArray[np.bool_]]:
    """Which tokens follow a token that ends in a mark, [N, T]."""
    return {
        f"after a {name}": np.array(
            [[False] + [piece.rstrip(" ").endswith(mark) for piece in row[:-1]] for row in pieces]
        )
        for name, mark in MARKS.items()
    }


def shares(
    of_token: NDArray[np.floating], classes: dict[str, NDArray[np.bool_]]
) -> dict[str, dict[str, float]]:
    """Mean of a share [N, T] over each class of tokens, and how large the class is."""
    return {
        name: {"share_full": float(of_token[which].mean()), "of_tokens": float(which.mean())}
        for name, which in classes.items()
        if which.any()
    }


def looked_at(folder: str, where: str, length: int, visits: float) -> dict[str, Any]:
    """All figures of a run."""
    from pyro_meta.pretrained import PretrainedNetwork  # transformers
    from pyro_meta.pretrained.head_kinds import head_kinds

    model, guide, words, _ = Run.open(folder).load()
    network = model.network
    assert isinstance(network, PretrainedNetwork)
    windows, names = documents(where, words.encode, length)
    with evaluating(model, guide):
        price = price_for(model, guide, windows, 1, visits)
        with at_price(guide, price):
            choices = choices_along(network, mean_route(guide, hard=True), windows)
        heads = head_kinds(network, windows[0][:: max(1, len(names) // 8)])
    is_full = (choices == network.mechanism_names.index("full"))[:, :, PAST:]  # [L, N, T, G]
    of_group = is_full.double().mean((1, 2))
    of_token = is_full.double().mean((0, 3)).numpy()
    tokens = windows[0].numpy()
    pieces = [[words.decode([token]) for token in row] for row in tokens.tolist()]
    late = {
        name: which[:, PAST:]
        for found in (after_marks(pieces), repeats(tokens, network.shape.window))
        for name, which in found.items()
    }
    flat = [piece for row in pieces for piece in row[PAST:]]
    for found in (kinds(flat), frequencies(tokens[:, PAST:].flatten())):
        late |= {name: which.reshape(of_token.shape) for name, which in found.items()}
    of_kind = {
        kind: np.array([name.startswith(kind) for name in names])[:, None]
        & np.ones_like(of_token, bool)
        for kind in ("speech", "manual", "library")
    }
    groups = heads.of_groups(network.shape.kv_heads or 1)
    scores = {name: one.numpy() for name, one in vars(groups).items()}
    return {
        "visits": visits_of(network, choices),
        "mean_share": float(of_token.mean()),
        "by_group": of_group.tolist(),
        "of_groups": {name: one.tolist() for name, one in scores.items()},
        "rank_correlation_with_share": {
            name: float(spearmanr(one.flatten(), of_group.numpy().flatten()).statistic)
            for name, one in scores.items()
        },
        "by_token": shares(of_token, late | of_kind),
        "by_position": {
            f"{begin}-{end - 1}": float(of_token[:, begin - PAST : end - PAST].mean())
            for begin, end in pairwise(np.linspace(PAST, length, PARTS + 1).astype(int).tolist())
        },
    }


NAMED = 0.45
"""Groups of which more tokens attend fully bear their layer and number in the picture."""


def picture(found: dict[str, Any], path: Path) -> None:
    """Groups by what their heads do, and tokens by class."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    share = np.array(found["by_group"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.8), layout="constrained")
    scores = {name: np.array(one) for name, one in found["of_groups"].items()}
    copies = np.maximum(scores["induction"], scores["copy"])
    dots = left.scatter(
        copies, share, c=scores["far"], cmap="viridis", s=36, edgecolors="#666", linewidths=0.6
    )
    for layer, group in np.argwhere(share > NAMED):
        left.annotate(
            f"{layer}.{group}", (copies[layer, group], share[layer, group]), fontsize=8,
            xytext=(5, 2), textcoords="offset points",
        )  # fmt: skip
    left.set_xscale("symlog", linthresh=0.01)
    left.set_xlim(left=0)
    left.set_xlabel("weight on the same token or what followed it, strongest head")
    left.set_ylabel("share of tokens that attend fully")
    left.set_title("Groups of heads (layer.group)", fontsize=10)
    figure.colorbar(dots, ax=left, label="weight beyond the window, strongest head")
    classes = found["by_token"]
    order = sorted(classes, key=lambda name: classes[name]["share_full"])
    right.plot([classes[name]["share_full"] for name in order], order, "o", color="#16a")
    right.axvline(found["mean_share"], color="#777", linestyle=":", linewidth=1)
    right.grid(axis="y", color="#ddd", linewidth=0.6)
    right.set_title("Classes of tokens (dotted: all tokens)", fontsize=10)
    right.set_xlabel("mean share of groups that attend fully")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=a_run)
    parser.add_argument("--documents", type=a_text, required=True)
    parser.add_argument("--length", type=a_count, default=1024)
    parser.add_argument("--visits", type=a_share, default=0.33)
    parser.add_argument("--json", type=a_file_to_write, required=True)
    parser.add_argument("--picture", type=a_file_to_write)
    options = parser.parse_args(argv)
    if options.length <= PAST:
        parser.error(f"--length: {options.length} given; more than {PAST} tokens are needed")
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        found = looked_at(options.run, options.documents, options.length, options.visits)
    words = sys.argv[1:] if argv is None else argv
    found |= measured_by(["python", "benchmarks/where_full.py", *words])
    write_measured(options.json, found)
    if options.picture:
        picture(found, options.picture)
    for name, row in sorted(found["by_token"].items(), key=lambda one: -one[1]["share_full"]):
        print(f"{name:40s} {row['share_full']:.3f}  ({row['of_tokens']:.1%} of the tokens)")
    print("rank correlation of a group's share with", found["rank_correlation_with_share"])


if __name__ == "__main__":
    run_script(main)
