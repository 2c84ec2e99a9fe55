"""Tables of routes for a pretrained model."""

from typing import Any

import numpy as np
import results_read
from pretrained_table import markdown
from table_cells import number, plus_minus, table, times

BUDGETS = [0.33, 0.43]
HARD, RANDOM = "routes, hard", "random tokens, the same loads"
ROWS = {
    "full attention (the model as it is)": "full",
    "**routes by token and head**": f"routes: {HARD}",
    "split by heads, learned": f"split: {HARD}",
    "random tokens, the routes' loads": f"routes: {RANDOM}",
    "window of 128 and 4 sinks, everywhere": "window",
}


def read(name: str) -> dict[str, Any]:
    """A JSON of the results of pretrained models."""
    return results_read.read(f"pretrained/{name}")


def behind(rows: dict[str, Any], name: str) -> str:
    """Nats per token behind full attention, with the standard error over texts."""
    apart = np.array(rows[name]["by_sequence"]) - np.array(rows["full"]["by_sequence"])
    return plus_minus(float(apart.mean()), float(apart.std(ddof=1)) / len(apart) ** 0.5)


def make() -> str:
    """What `make pretrained` ends with."""
    rows = read("evaluate.json")["losses"]["1024"]["rows"]
    cells = [
        [
            words, number(float(np.mean(rows[name]["by_sequence"]))),
            "" if name == "full" else behind(rows, name), number(rows[name]["visits"]),
        ]
        for words, name in ROWS.items()
    ]  # fmt: skip
    return table(["", "loss past token 256", "behind full", "key visits"], cells)


OF_STUDY = {
    "**routes** (choices with loads)": f"routes: {HARD}, at 0.33",
    "**split by heads, learned**": f"static-split: {HARD}, at 0.33",
    "random tokens, the routes' loads": f"routes: {RANDOM}, at 0.33",
    "window of 128 and 4 sinks everywhere": "window",
}


def longer() -> str:
    """The rows of the study on longer texts than were trained on, at a third of the visits."""
    lengths = {length: one for length, one in read("study.json").items() if length != "1024"}
    rows = []
    for words, name in OF_STUDY.items():
        cells = []
        for one in lengths.values():
            row = one["rows"][name]
            low, high = row["interval"]
            cells += [f"{number(row['behind'])} ({number(low)} to {number(high)})"]
            cells += [number(float(np.mean(row["visits"])), 2)]
        rows.append([words, *cells])
    heads = [
        head
        for length, one in lengths.items()
        for head in (f"behind, {length} tokens, {one['documents']} documents", "key visits")
    ]
    return table(["tokens", *heads], rows)


def study() -> str:
    """Rows of the study that are there, at its first length."""
    return markdown(read("study.json")["1024"], BUDGETS).rstrip()


def macs() -> str:
    """What routes and split lose and save, by length."""
    ways = {"routes": f"routes: {HARD}", "split by heads": f"static-split: {HARD}"}
    rows = []
    for length, one in read("study.json").items():
        names = {
            f"{words}, at {at:g}": f"{name}, at {at:g}"
            for at in (0.08, *BUDGETS)
            for words, name in ways.items()
        } | {"window everywhere": "window"}
        for words, name in names.items():
            if name in one["rows"]:
                row, fewer = one["rows"][name], one["fewer_macs"][name]
                shares = [f"{fewer[part]:.1%}" for part in ("attention", "whole_model")]
                rows.append([length, words, number(row["behind"]), *shares])
    head = ["tokens", "", "behind full", "of attention saved", "of the whole model saved"]
    return table(head, rows)


def clock() -> str:
    """The routed model against the model as it was."""
    rows = []
    for point in read("converted.json")["points"]:
        fast = point["times_as_fast"]
        speeds = [times(fast[part]["routed"]) for part in ("prefill", "attention", "decoding")]
        speeds.append(times(fast["decoding"]["all full"]))
        rows.append([str(point["length"]), number(point["visits"]), *speeds])
    parts = ["whole prefill", "attention alone", "decoding", "decoding, every token full"]
    return table(["tokens", "key visits", *parts], rows)


KINDS = {"passkey": "pass key", "pairs": "pairs"}


def retrieval() -> str:
    """Answers that are right, by question and length."""
    found = {length: one["retrieval"] for length, one in read("study.json").items()}
    asked = [(kind, length) for kind in KINDS for length in found if found[length]]
    shown = {"full attention (the model as it is)": "full"} | OF_STUDY
    rows = []
    for words, name in shown.items():
        counts = [found[length][kind]["rows"].get(name) for kind, length in asked]
        if all(counts):
            rows.append([words, *(f"{one['right']} of {one['asked']}" for one in counts)])
    return table(["tokens", *(f"{KINDS[kind]}, {length}" for kind, length in asked)], rows)


WAYS = {
    "**posterior odds**": "posterior", "next heads of the static split": "next heads",
    "output entropy": "output entropy", "at random": "random",
}  # fmt: skip


def next_full() -> str:
    """What the next looks close of the gap, by who says where they go, mean and seeds."""
    seeds = read("next_full.json")["seeds"]
    rows = []
    for words, name in WAYS.items():
        closed = [seed[name]["closed"] for seed in seeds]
        rows.append([words, number(float(np.mean(closed))), *(number(one) for one in closed)])
    return table(["spent by", "closed", *(f"seed {n}" for n in range(len(seeds)))], rows)


SHOWN = {
    "nothing (as a split)": "nothing", "the layer's input": "input",
    "that, and what the window finds": "input, near",
    "the input, and how much of its attention lies beyond the window": "input, true far mass",
}  # fmt: skip


def ceiling() -> str:
    """Shares of the worth of full attention that are kept, and nats ahead of a split."""
    found = read("ceiling.json")
    worth, kept = found["harm_per_token"], found["kept"]
    rows = []
    for words, name in SHOWN.items():
        shares = [kept[name][f"{at:g}"] for at in BUDGETS]
        ahead = [
            worth * (share - kept["nothing"][f"{at:g}"])
            for at, share in zip(BUDGETS, shares, strict=True)
        ]
        apart = ["" if name == "nothing" else number(one) for one in ahead]
        rows.append([words, *(number(one, 2) for one in shares), *apart])
    heads = [f"kept at {at:g}" for at in BUDGETS] + [f"ahead at {at:g}" for at in BUDGETS]
    return table(["the network reads", *heads], rows)


TABLES = {
    "pretrained_ceiling": ceiling,
    "pretrained_next": next_full,
    "pretrained_make": make, "pretrained_longer": longer, "pretrained_study": study,
    "pretrained_clock": clock, "pretrained_retrieval": retrieval, "pretrained_macs": macs,
}  # fmt: skip
