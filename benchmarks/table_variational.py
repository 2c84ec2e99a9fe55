"""Tables of priors and guides: the best pairs of the exhibit, temperature, a refit, hardening."""

from typing import Any

from results_read import read
from table_cells import number, percent, spread, table
from table_studies import answers, loss, macs, rows_of, seeds

DIGITS = {
    "loss_hard": 3, "cost": 3, "kl": 2, "information": 2, "elbo": 2, "efficiency": 2, "gap": 3,
}  # fmt: skip
"""Figures of the exhibit beside the answers, as they are written here."""
HEADS = {
    "loss_hard": "loss, hard", "answers": "answers", "cost": "MACs", "kl": "KL",
    "information": "information", "elbo": "ELBO", "efficiency": "ESS", "gap": "gap",
}  # fmt: skip


OTHERS = [
    "LoadCategorical CategoricalGuide", "CostDirichlet DirichletGuide", "LoadCategorical LoadGuide",
    "CostCategorical FixedGuide", "CostCategorical RandomGuide", "LoadCategorical PriorGuide",
]  # fmt: skip
"""Pairs that stand beside the best: the defaults, and guides that do not look at the token."""


def best() -> str:
    """The best pairs of the exhibit at equal cost, and `OTHERS`."""
    found = read("exhibit.json")
    by_name = {f"{row['prior']} {row['guide']}": row for row in found["rows"]}
    chosen = [name for name, row in by_name.items() if row["is_best"]]
    chosen = chosen or found["at_equal_cost"][:6]
    chosen.sort(key=lambda name: by_name[name]["figures"]["loss_hard"]["mean"])
    rows = []
    for name in dict.fromkeys([*chosen, *OTHERS]):
        row = by_name[name]
        cells = [_cell(figure, row["figures"].get(figure)) for figure in HEADS]
        seeds_of = str(len(row["by_seed"]))
        rows.append([f"`{row['prior']}`, `{row['guide']}`", *cells, seeds_of])
    return table(["prior, guide", *HEADS.values(), "seeds"], rows)


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
