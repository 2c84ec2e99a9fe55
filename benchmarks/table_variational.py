"""Tables of priors and guides: the best pairs of the exhibit, temperature, a refit, hardening."""

from typing import Any

from results_read import read
from table_cells import number, percent, spread, table
from table_studies import answers, loss, macs, rows_of, seeds

DIGITS = {
    "loss_hard": 3, "loss_soft": 3, "cost": 3, "kl": 2, "information": 2, "elbo": 2, "iwae": 2,
    "efficiency": 2, "gap": 3, "calibration": 3,
}  # fmt: skip
"""Figures of the exhibit beside the answers, as they are written here."""
HEADS = {
    "loss_hard": "loss, hard", "loss_soft": "soft", "answers": "answers", "cost": "MACs",
    "kl": "KL", "information": "of it information", "elbo": "ELBO", "iwae": "IWAE-64",
    "efficiency": "ESS", "gap": "gap", "calibration": "calibration error",
}  # fmt: skip


def best() -> str:
    """The pairs of the exhibit that were trained with all seeds."""
    rows = []
    for row in read("exhibit.json")["rows"]:
        if not row["is_best"]:
            continue
        found = row["figures"]
        cells = [_cell(name, found.get(name)) for name in HEADS]
        rows.append((found["loss_hard"]["mean"], [f"`{row['prior']}`, `{row['guide']}`", *cells]))
    ordered = [cells for _, cells in sorted(rows, key=lambda one: one[0])]
    return table(["prior, guide", *HEADS.values()], ordered)


def _cell(name: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if name == "answers":
        return percent(found["mean"], 1)
    return spread(found, DIGITS[name])


OF_WEIGHTS = {
    "loss_hard": ("loss, hard", 3), "loss_soft": ("soft", 3), "cost": ("MACs", 3), "kl": ("KL", 2),
    "elbo": ("ELBO", 2), "iwae": ("IWAE-64", 2), "efficiency": ("ESS", 2),
}  # fmt: skip


def temperature() -> str:
    """Runs that were trained at each weight of the KL."""
    return _of_weights("trained")


def refitted() -> str:
    """Guides that were fitted at each weight to one frozen network."""
    return _of_weights("refitted")


def _of_weights(kind: str) -> str:
    heads = ["w", "answers", *(head for head, _ in OF_WEIGHTS.values())]
    rows = [
        [
            f"{row['kl_weight']:g}", percent(row["answers"], 1),
            *(number(row[name], digits) for name, (_, digits) in OF_WEIGHTS.items()),
            percent(row["reliable"]), percent(row["reliable_given_targets"]),
        ]
        for row in read("temperature.json")["rows"]
        if row["kind"] == kind
    ]  # fmt: skip
    return table([*heads, "k-hat below 0.7, given x", "the same, given x and y"], rows)


ORDERS = {
    "the most certain first (the default)": "uncertain_last",
    "the most uncertain first": "reversed",
    "in a random order": "random",
    "all at once": "all_at_once",
}


def hardening() -> str:
    """Four orders in which tokens turn hard."""
    named = {words: ("hardening", f"harden.order={order}") for words, order in ORDERS.items()}
    rows = [
        [words, loss(group), answers(group), macs(group), _against(name), seeds(group)]
        for words, (_, name), group in rows_of(named)
    ]
    head = ["tokens turn hard", "loss, hard", "answers", "MACs", "against the default", "seeds"]
    return table(head, rows)


def _against(group: str) -> str:
    """Hard loss over that of the default order, paired, with its 95% interval."""
    for pair in read("hardening/study.json")["differences"]:
        if pair["of"] == group:
            found = pair["hard"]
            low, high = (number(end, 4, sign=True) for end in found["interval"])
            return f"{number(found['mean'], 4, sign=True)} ({low} to {high})"
    return ""


TABLES = {
    "exhibit_best": best, "temperature": temperature, "refitted": refitted, "hardening": hardening,
}  # fmt: skip
