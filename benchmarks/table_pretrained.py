"""Tables of routes for a pretrained model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pretrained_table import markdown
from table_cells import number, percent, plus_minus, table, times

RESULTS = Path(__file__).parent / "results" / "pretrained"
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
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


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


def longer() -> str:
    """The same routes on longer texts."""
    losses = read("long.json")["losses"]
    lengths = [length for length in losses if length != "1024"]
    cells = [
        [
            words,
            *(
                cell
                for length in lengths
                for cell in (
                    behind(losses[length]["rows"], name),
                    number(losses[length]["rows"][name]["visits"]),
                )
            ),
        ]
        for words, name in ROWS.items()
        if name != "full"
    ]
    heads = [head for length in lengths for head in (f"behind, {length} tokens", "key visits")]
    return table(["", *heads], cells)


def study() -> str:
    """Rows of the study that are there, at its first length."""
    return markdown(read("study.json")["1024"], BUDGETS).rstrip()


def clock() -> str:
    """The routed model against the model as it was."""
    rows = []
    for point in read("converted.json")["points"]:
        fast = point["times_as_fast"]
        speeds = [times(fast[part]["routed"]) for part in ("prefill", "attention", "decoding")]
        rows.append([str(point["length"]), number(point["visits"]), *speeds])
    return table(["tokens", "key visits", "whole prefill", "attention alone", "decoding"], rows)


def retrieval() -> str:
    """Answers that are right, by question and length."""
    found = read("long.json")["retrieval"]
    kinds = [(kind, length) for kind in found for length in (2048, 4096)]
    rows = [
        [words, *(percent(_right(found[kind]["rows"][name], length)) for kind, length in kinds)]
        for words, name in ROWS.items()
        if name in found["pairs"]["rows"]
    ]
    names = {"passkey": "pass key", "pairs": "pairs"}
    return table(["", *(f"{names[kind]}, {length}" for kind, length in kinds)], rows)


def _right(cells: list[dict[str, Any]], length: int) -> float:
    """Share of right answers, over depths that were asked equally often."""
    return float(np.mean([cell["accuracy"] for cell in cells if cell["length"] == length]))


TABLES = {
    "pretrained_make": make, "pretrained_longer": longer, "pretrained_study": study,
    "pretrained_clock": clock, "pretrained_retrieval": retrieval,
}  # fmt: skip
