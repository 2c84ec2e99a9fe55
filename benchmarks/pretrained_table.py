"""One table and one figure of the study of a pretrained model, from what its runs have left.

    python benchmarks/pretrained_table.py FOLDER --picture docs/pretrained_visits.png

`behind` is how far a row is behind full attention, nats per token past token 256. Differences are
paired by document and by seed; their 95% intervals are for other documents and, of several seeds,
other seeds (`pyro_meta.analysis.comparison.paired_difference`). A row that was trained with one
seed is compared with the routes of that seed. Where a row cannot make just as many key visits, what
it would lose at as many is read off the line between its own two budgets.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from scripts import Parser, a_count, a_file_to_write, a_folder, a_share, run_script

from pyro_meta.analysis.comparison import Difference, paired_difference
from pyro_meta.folders import write_whole
from pyro_meta.terminal.measured import measured_by, write_measured

HARD, RANDOM = "routes, hard", "random tokens, the same loads"
ROUTES, SPLIT = "routes", "static-split"
ALL = -1
"""The seed of a row that depends on none."""

BySeed = dict[int, NDArray[np.float64]]
"""Seed -> by document, [N]."""


class Rows:
    """The rows of all files of one length: losses by document, and key visits, by seed."""

    def __init__(self, folder: Path, length: int) -> None:
        self.losses: dict[str, BySeed] = defaultdict(dict)
        self.visits: dict[str, dict[int, float]] = defaultdict(dict)
        self.texts: list[str] = []
        self.macs: dict[str, float] = {}
        for path in sorted(folder.glob(f"*-{length}.json")):
            said = json.loads(path.read_text())
            part = said["losses"][str(length)] if "losses" in said else said
            if self.texts and part["texts"] != self.texts:
                raise SystemExit(f"{path}: other documents than those of the files before it")
            self.texts = part["texts"]
            for row, figures in part["rows"].items():
                of_run = re.match(r"(.*)-s(\d+): (.*)", row)
                label = f"{of_run[1]}: {of_run[3]}" if of_run else row
                seed = int(of_run[2]) if of_run else ALL
                self.losses[label][seed] = np.array(figures["by_sequence"])
                self.visits[label][seed] = figures["visits"]
        if "full" not in self.losses:
            raise SystemExit(f"{folder}: no run was evaluated at {length} tokens")
        for path in sorted(folder.glob("others-*.json")):
            known = int(path.stem.rpartition("-")[2])
            self.macs = json.loads(path.read_text())["macs_per_token"]
            self.macs["full_attention"] *= (length + 1) / (known + 1)  # over the keys so far
        self.full = self.losses["full"][ALL]

    def behind(self, label: str) -> NDArray[np.float64]:
        """How far a row is behind full attention, by seed and document, [S, N]."""
        return (
            np.stack([self.losses[label][seed] for seed in sorted(self.losses[label])]) - self.full
        )

    def mean_visits(self, label: str) -> float:
        return float(np.mean([*self.visits[label].values()]))

    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        """Which documents are code, and which are prose."""
        is_prose = np.array([name.startswith("speech") for name in self.texts])
        return {"code": ~is_prose, "prose": is_prose}

    def apart(self, ours: str, theirs: str) -> Difference | None:
        """Theirs minus ours: above 0, ours are ahead."""
        if ours not in self.losses or theirs not in self.losses:
            return None
        mine, other = self.losses[ours], self.losses[theirs]
        seeds = [*mine] if [*other] == [ALL] else [*other]
        return paired_difference(_of_seeds(other, seeds), _of_seeds(mine, seeds))


def _of_seeds(losses: BySeed, seeds: list[int]) -> BySeed:
    """The losses of some seeds; those that depend on none are of every one."""
    return {
        seed: losses.get(seed, losses[ALL]) if ALL in losses else losses[seed]
        for seed in seeds
        if seed in losses or ALL in losses
    }


def figures_of(rows: Rows, label: str) -> dict[str, Any]:
    behind = rows.behind(label)
    found = rows.apart("full", label)
    assert found is not None
    return {
        "behind": float(behind.mean()),
        "interval": found.interval,
        "by_seed": behind.mean(1).tolist(),
        "visits": [*rows.visits[label].values()],
        **{kind: float(behind[:, which].mean()) for kind, which in rows.kinds().items()},
    }


ASKS = ("routes", "routes-trained-at-0.66", "prior-free")
"""Rows whose tokens ask a router by groups of heads, which reads what the window has found."""
UNCOUNTED = ("-by-layers", "weights-with-loads")
"""In the names of rows that ask a router of other sizes."""


def fewer_macs(rows: Rows, label: str) -> dict[str, float]:
    """By what share a token has fewer MACs than with full attention: of attention, and of all.

    Rows that ask a router pay for it, and run the window for all tokens, also for those that then
    attend fully. The others know their choices beforehand.
    """
    asks = label.partition(": ")[0] in ASKS and HARD in label
    full, router = rows.macs["full_attention"], rows.macs["router"] * asks
    visits, window = rows.mean_visits(label), rows.mean_visits("window")
    is_full = (visits - window) / (1 - window)
    run = visits + is_full * window * asks
    before = rows.macs["dense"] + full
    after = rows.macs["dense"] + router + run * full
    return {"attention": 1 - run, "whole_model": 1 - after / before}


def ahead(rows: Rows, ours: str, theirs: str, budgets: list[float]) -> dict[str, Any] | None:
    """How far one row is ahead of another, and at which visits both are."""
    found = rows.apart(ours, theirs)
    if found is None:
        return None
    visits = rows.mean_visits(ours), rows.mean_visits(theirs)
    shift = (visits[1] - visits[0]) * slope(rows, theirs, budgets)
    return {
        "ahead": found.mean,
        "interval": found.interval,
        "over_documents": found.over_sequences,
        "seeds": found.seeds,
        "by_seed": found.by_seed,
        "visits": visits,
        "ahead_at_equal_visits": found.mean + shift,
    }


def slope(rows: Rows, label: str, budgets: list[float]) -> float:
    """What a row gains for each unit of visits, from its two budgets; 0 where it has one."""
    stem = label.rpartition(", at ")[0]
    names = [f"{stem}, at {budget:g}" for budget in budgets]
    if not stem or not all(name in rows.losses for name in names):
        return 0.0
    losses = [rows.behind(name).mean() for name in names]
    visits = [rows.mean_visits(name) for name in names]
    gained = visits[-1] - visits[0]
    return float((losses[0] - losses[-1]) / gained) if gained else 0.0


OPPONENTS = {
    "static split": "static-split: {hard}, at {budget:g}",
    "static split, a tenth of the rate": "slower-split: {hard}, at {budget:g}",
    "random tokens": "routes: {random}, at {budget:g}",
    "drawn alike (the prior)": "drawn alike, at {budget:g}",
    "prior-free": "prior-free: {hard}, at {budget:g}",
    "weights with loads": "weights-with-loads: {hard}, at {budget:g}",
    "routes by layers": "routes-by-layers: {hard}, at {budget:g}",
    "split by layers": "split-by-layers: {hard}, at {budget:g}",
    "layers by loss": "layers by loss, at {budget:g}",
    "routes trained at twice the budget": "routes-trained-at-0.66: {hard}, at {budget:g}",
}


def retrieval(folder: Path, length: int) -> dict[str, dict[str, Any]]:
    """Answers that are right of what was planted, by kind and row, over all depths and seeds.

    `questions/` in the folder is read, too: runs that were asked apart from their documents.
    """
    found: dict[str, dict[str, Any]] = {}
    name = f"*-{length}.json"
    for path in sorted([*folder.glob(name), *folder.glob(f"questions/{name}")]):
        for kind, part in json.loads(path.read_text()).get("retrieval", {}).items():
            rows = found.setdefault(kind, {"chance": part["chance"], "rows": {}})["rows"]
            for row, cells in part["rows"].items():
                label = re.sub(r"-s\d+: ", ": ", row)
                counts = rows.setdefault(label, {"right": 0, "asked": 0})
                for cell in cells:
                    counts["right"] += round(cell["accuracy"] * cell["asked"])
                    counts["asked"] += cell["asked"]
    return found


def summary(folder: Path, lengths: list[int], budgets: list[float]) -> dict[str, Any]:
    """All rows and the comparisons that matter, by length."""
    found: dict[str, Any] = {}
    for length in lengths:
        rows = Rows(folder, length)
        compared = {}
        for budget in budgets:
            ours = f"{ROUTES}: {HARD}, at {budget:g}"
            for name, pattern in OPPONENTS.items():
                theirs = pattern.format(hard=HARD, random=RANDOM, budget=budget)
                if (one := ahead(rows, ours, theirs, budgets)) is not None:
                    compared[f"{name}, at {budget:g}"] = one
        found[str(length)] = {
            "documents": len(rows.texts),
            "rows": {label: figures_of(rows, label) for label in rows.losses},
            "fewer_macs": {
                label: fewer_macs(rows, label)
                for label in rows.losses
                if rows.macs and not any(name in label for name in UNCOUNTED)
            },
            "routes_ahead_of": compared,
            "retrieval": retrieval(folder, length),
        }
    return found


SHOWN = {
    "window of 128 and 4 sinks everywhere": "window",
    "every 4th layer full": "every 4th layer full",
    "every 2nd layer full": "every 2nd layer full",
    "tokens drawn alike everywhere (the prior)": "drawn alike, at {budget:g}",
    "layers chosen by loss": "layers by loss, at {budget:g}",
    "split by layers, learned": "split-by-layers: {hard}, at {budget:g}",
    "**split by heads, learned**": "static-split: {hard}, at {budget:g}",
    "the same, a tenth of the learning rate": "slower-split: {hard}, at {budget:g}",
    "routes by layers": "routes-by-layers: {hard}, at {budget:g}",
    "random tokens, the routes' loads": "routes: {random}, at {budget:g}",
    "routes trained at 0.66, moved": "routes-trained-at-0.66: {hard}, at {budget:g}",
    "routes, weights with loads": "weights-with-loads: {hard}, at {budget:g}",
    "routes, prior-free": "prior-free: {hard}, at {budget:g}",
    "**routes** (choices with loads)": "routes: {hard}, at {budget:g}",
    "read off the labels, to first order": "by label, at {budget:g}",
}


def markdown(found: dict[str, Any], budgets: list[float]) -> str:
    """The table of one length, for the docs: rows are named, and not tied to a budget if alike."""
    rows = found["rows"]
    heads = [f"behind full at {budget:g}" for budget in budgets]
    heads += [f"{kind}, at {budgets[0]:g}" for kind in ("Python's documents", "speeches")]
    lines = [
        f"| tokens | {' | '.join(heads)} | seeds |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for label, pattern in SHOWN.items():
        names = [pattern.format(hard=HARD, random=RANDOM, budget=budget) for budget in budgets]
        if names[0] not in rows:
            continue
        cells = [_cell(rows[name], budget) for name, budget in zip(names, budgets, strict=True)]
        if len({*names}) == 1:  # it has visits of its own
            cells = [f"{rows[names[0]]['behind']:.3f} (visits {rows[names[0]]['visits'][0]:.2f})"]
            cells += [""] * (len(budgets) - 1)
        first = rows[names[0]]
        kinds = [f"{first[kind]:.3f}" for kind in ("code", "prose")]
        seeds = str(len(first["by_seed"]))
        lines.append("| " + " | ".join([label, *cells, *kinds, seeds]) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], budget: float) -> str:
    low, high = row["interval"]
    visits = float(np.mean(row["visits"]))
    told = "" if abs(visits - budget) < 0.005 else f", visits {visits:.2f}"
    return f"{row['behind']:.3f} ({low:.3f} to {high:.3f}{told})"


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
        names = [name for name in rows.losses if name.startswith(f"{prefix}, at ")]
        points = sorted((rows.mean_visits(name), name) for name in names)
        means = [rows.behind(name).mean() for _, name in points]
        axes.plot(
            [x for x, _ in points], means, color=colour, marker=mark, markersize=4, label=label
        )
        for x, name in points:
            of_seeds = rows.behind(name).mean(1)
            axes.plot([x] * len(of_seeds), of_seeds, "_", color=colour, markersize=12)
    if "window" in rows.losses:
        near = rows.behind("window").mean()
        axes.axhline(near, color="#777", linestyle=":", linewidth=1)
        axes.annotate("window everywhere", (axes.get_xlim()[0], near), va="bottom", fontsize=8)
    axes.set_xlabel("key visits, share of full attention's")
    axes.set_ylabel("behind full attention, nats per token")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=a_folder)
    parser.add_argument("--lengths", type=a_count, nargs="+", default=[1024])
    parser.add_argument("--budgets", type=a_share, nargs="+", default=[0.33, 0.43])
    parser.add_argument("--picture", type=a_file_to_write)
    parser.add_argument("--json", type=a_file_to_write)
    parser.add_argument("--markdown", type=a_file_to_write, help="The table of the first length.")
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
            ours, theirs = one["visits"]
            print(
                f"  routes ahead of {name:44s} {one['ahead']:+.4f} ({low:+.4f} to {high:+.4f}), "
                f"{one['seeds']} seeds, visits {ours:.3f} and {theirs:.3f}; at equal ones "
                f"{one['ahead_at_equal_visits']:+.4f}"
            )
        for kind, asked in part["retrieval"].items():
            for name, counts in asked["rows"].items():
                print(f"  {kind}: {name:56s} {counts['right']} of {counts['asked']} right")
    if options.markdown:
        first = found[str(options.lengths[0])]
        write_whole(options.markdown, markdown(first, options.budgets))
    if options.json:
        command = ["python", "benchmarks/pretrained_table.py", *sys.argv[1:]]
        write_measured(options.json, found, measured_by(command))
    if options.picture:
        picture(options.folder, options.lengths[0], options.picture)


if __name__ == "__main__":
    run_script(main)
