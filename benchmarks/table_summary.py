"""The one table of the README: planted look-ups beside the pretrained model."""

import numpy as np
from table_cells import number, table
from table_pretrained import HARD, RANDOM, read
from table_studies import Place, answers, groups, macs, mean

AT = 0.33
"""Key visits at which the pretrained model's rows are compared."""
ROWS: dict[str, tuple[Place, str | None]] = {
    "**routes**": (("families", "routed"), f"routes: {HARD}, at {AT:g}"),
    "router without a prior": (("planted", "PointGuide"), f"prior-free: {HARD}, at {AT:g}"),
    "learned split, same for all tokens": (
        ("families", "static split"),
        f"static-split: {HARD}, at {AT:g}",
    ),
    "random tokens, the routes' loads": (
        ("planted", "random loads of routed"),
        f"routes: {RANDOM}, at {AT:g}",
    ),
    "window alone": (("planted", "window alone"), "window"),
    "full attention alone": (("planted", "full alone"), "full"),
    "linear attention alone": (("planted", "linear alone"), None),
    "routes from the prior": (("planted", "PriorGuide"), f"drawn alike, at {AT:g}"),
}


def summary() -> str:
    """Rows of a study that has not got so far have empty cells."""
    pretrained = read("study.json")["1024"]["rows"]
    rows = []
    for words, ((study, name), label) in ROWS.items():
        group = groups(study)[name]
        found = pretrained.get(label or "")
        rows.append([
            words, number(mean(group, "val_nll_hard")), answers(group), macs(group),
            number(found["behind"]) if found else "",
            number(float(np.mean(found["visits"])), 2) if found else "",
        ])  # fmt: skip
    head = ["", "look-ups: loss", "answers", "MACs", "SmolLM2: behind full", "key visits"]
    return table(head, rows)


TABLES = {"summary": summary}
