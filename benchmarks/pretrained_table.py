"""One table and one figure of the study of a pretrained model, from what its runs have left.

    python benchmarks/pretrained_table.py FOLDER --picture docs/pretrained_visits.png

`behind` is how far a row is behind full attention, nats per token past token 256, paired by
document; intervals of 95% are a bootstrap over documents and, where there are several, seeds.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from pyro_meta.folders import write_whole

RESAMPLED = 10_000
HARD, RANDOM = "routes, hard", "random tokens, the same loads"
ROUTES, SPLIT = "routes", "static-split"

Behind = NDArray[np.float64]
"""By seed and document, [S, N]."""


class Rows:
    """The rows of all files of one length: behind full, and key visits, by seed."""

    def __init__(self, folder: Path, length: int) -> None:
        found: dict[str, dict[int, tuple[list[float], float]]] = defaultdict(dict)
        full: list[float] | None = None
        self.texts: list[str] = []
        files = sorted(folder.glob(f"*-{length}.json"))
        read = {path: json.loads(path.read_text()) for path in files}
        for said in read.values():
            rows = said["losses"][str(length)]["rows"] if "losses" in said else said["rows"]
            if "full" in rows:
                full = rows["full"]["by_sequence"]
                self.texts = said["losses"][str(length)]["texts"]
        if full is None:
            raise SystemExit(f"{folder}: no run was evaluated at {length} tokens")
        for said in read.values():
            rows = said["losses"][str(length)]["rows"] if "losses" in said else said["rows"]
            for row, figures in rows.items():
                of_run = re.match(r"(.*)-s(\d+): (.*)", row)
                label = f"{of_run[1]}: {of_run[3]}" if of_run else row
                seed = int(of_run[2]) if of_run else 0
                found[label][seed] = (figures["by_sequence"], figures["visits"])
        self.behind = {
            label: np.array([np.subtract(by_seed[seed][0], full) for seed in sorted(by_seed)])
            for label, by_seed in found.items()
        }
        others = read.get(folder / f"others-{length}.json", {})
        self.macs: dict[str, float] = others.get("macs_per_token", {})
        self.visits = {
            label: [by_seed[seed][1] for seed in sorted(by_seed)]
            for label, by_seed in found.items()
        }

    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        """Which documents are code, and which are prose."""
        is_prose = np.array([name.startswith("speech") for name in self.texts])
        return {"code": ~is_prose, "prose": is_prose}


def interval(behind: Behind, seed: int = 0) -> tuple[float, float]:
    """95% of the means over documents and seeds, resampled."""
    rng = np.random.default_rng(seed)
    S, N = behind.shape
    seeds = rng.integers(0, S, (RESAMPLED, S))
    texts = rng.integers(0, N, (RESAMPLED, N))
    means = np.array([behind[s][:, t].mean() for s, t in zip(seeds, texts, strict=True)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def figures_of(behind: Behind, visits: list[float], kinds: dict[str, Any]) -> dict[str, Any]:
    return {
        "behind": float(behind.mean()),
        "interval": interval(behind),
        "by_seed": behind.mean(1).tolist(),
        "visits": visits,
        **{kind: float(behind[:, which].mean()) for kind, which in kinds.items()},
    }


def fewer_macs(rows: Rows, visits: float) -> dict[str, float]:
    """By what share a token has fewer MACs than with full attention: of attention, and of all."""
    full, router = rows.macs["full_attention"], rows.macs["router"]
    before = rows.macs["dense"] + full
    after = rows.macs["dense"] + router + visits * full
    return {"attention": 1 - visits, "whole_model": 1 - after / before}


def ahead(rows: Rows, one: str, other: str) -> dict[str, Any] | None:
    """How far one row is ahead of another, paired by document and, if both have them, seed."""
    if one not in rows.behind or other not in rows.behind:
        return None
    mine, theirs = rows.behind[one], rows.behind[other]
    seeds = min(len(mine), len(theirs))
    apart = theirs[:seeds] - mine[:seeds]
    return {"ahead": float(apart.mean()), "interval": interval(apart), "seeds": seeds}


def summary(folder: Path, lengths: list[int], budgets: list[float]) -> dict[str, Any]:
    """All rows and the comparisons that matter, by length."""
    found: dict[str, Any] = {}
    for length in lengths:
        rows = Rows(folder, length)
        kinds = rows.kinds()
        compared = {
            f"{label}, at {budget:g}": ahead(rows, f"{ROUTES}: {HARD}, at {budget:g}", other)
            for budget in budgets
            for label, other in {
                "static split": f"{SPLIT}: {HARD}, at {budget:g}",
                "random tokens": f"{ROUTES}: {RANDOM}, at {budget:g}",
                "prior-free": f"prior-free: {HARD}, at {budget:g}",
                "weights with loads": f"weights-with-loads: {HARD}, at {budget:g}",
                "routes by layers": f"routes-by-layers: {HARD}, at {budget:g}",
                "split by layers": f"split-by-layers: {HARD}, at {budget:g}",
                "layers by loss": f"layers by loss, at {budget:g}",
            }.items()
        }
        found[str(length)] = {
            "documents": len(rows.texts),
            "rows": {
                label: figures_of(behind, rows.visits[label], kinds)
                for label, behind in rows.behind.items()
            },
            "fewer_macs": {
                label: fewer_macs(rows, float(np.mean(visits)))
                for label, visits in rows.visits.items()
                if rows.macs and label.startswith(f"{ROUTES}: {HARD}")
            },
            "routes_ahead_of": {name: one for name, one in compared.items() if one is not None},
        }
    return found


def picture(folder: Path, length: int, path: Path) -> None:
    """Loss against visits: routes, their loads at random, and the static split, by seed."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = Rows(folder, length)
    shown = {
        f"{SPLIT}: {HARD}": ("static split by heads", "#b55", "s"),
        f"{ROUTES}: {RANDOM}": ("random tokens, the routes' loads", "#999", "^"),
        f"{ROUTES}: {HARD}": ("routes", "#16a", "o"),
    }
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for prefix, (label, colour, mark) in shown.items():
        names = [name for name in rows.behind if name.startswith(f"{prefix}, at ")]
        points = sorted((np.mean(rows.visits[name]), name) for name in names)
        means = [rows.behind[name].mean() for _, name in points]
        axes.plot([x for x, _ in points], means, color=colour, marker=mark, label=label)
        for x, name in points:
            of_seeds = rows.behind[name].mean(1)
            axes.plot([x] * len(of_seeds), of_seeds, ".", color=colour, markersize=4)
    if "window" in rows.behind:
        near = rows.behind["window"].mean()
        axes.axhline(near, color="#777", linestyle=":", linewidth=1)
        axes.annotate("window everywhere", (axes.get_xlim()[0], near), va="bottom", fontsize=8)
    axes.set_xlabel("key visits, share of full attention's")
    axes.set_ylabel("behind full attention, nats per token")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.33, 0.43])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = summary(options.folder, options.lengths, options.budgets)
    for length, part in found.items():
        print(f"\n{length} tokens, {part['documents']} documents: behind full (95%), visits")
        for name, row in sorted(part["rows"].items(), key=lambda one: one[1]["behind"]):
            low, high = row["interval"]
            print(
                f"  {name:62s} {row['behind']:.4f} ({low:.4f} to {high:.4f})  "
                f"{np.mean(row['visits']):.3f}  code {row['code']:.3f} prose {row['prose']:.3f}"
            )
        for name, one in part["routes_ahead_of"].items():
            low, high = one["interval"]
            print(f"  routes ahead of {name:40s} {one['ahead']:+.4f} ({low:+.4f} to {high:+.4f})")
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1) + "\n")
    if options.picture:
        picture(options.folder, options.lengths[0], options.picture)


if __name__ == "__main__":
    main()
