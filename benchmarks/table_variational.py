"""Tables of priors and guides: the best pairs of the exhibit, temperature, a refit, hardening."""

from typing import Any

from results_read import read
from table_cells import number, percent, spread, table
from table_studies import answers, loss, macs, mean, rows_of, seeds

OF_PAIRS = {
    "cost": ("MACs", 3), "kl": ("KL", 2), "information": ("information", 2), "elbo": ("ELBO", 2),
    "efficiency": ("ESS", 2), "gap": ("gap", 3),
}  # fmt: skip
"""Figures of the exhibit beside loss and answers: their heads and digits."""
OTHERS = [
    "LoadCategorical CategoricalGuide", "CostDirichlet DirichletGuide", "LoadCategorical LoadGuide",
    "CostCategorical FixedGuide", "CostCategorical RandomGuide", "LoadCategorical PriorGuide",
]  # fmt: skip
"""Pairs that stand beside the best: the defaults, and guides that do not look at the token."""


def best() -> str:
    """The best pairs of the exhibit at equal cost, by their first seed, and `OTHERS`."""
    rows = {f"{row['prior']} {row['guide']}": row for row in read("exhibit.json")["rows"]}
    chosen = [name for name, row in rows.items() if row["is_best"]]
    chosen.sort(key=lambda name: _of_first_seed(rows[name]))
    head = ["prior, guide", "loss, hard, seed 0", "over seeds", "answers"]
    return table(
        [*head, *(name for name, _ in OF_PAIRS.values()), "seeds"],
        [_of_pair(rows[name]) for name in dict.fromkeys([*chosen, *OTHERS])],
    )


def _of_first_seed(row: dict[str, Any]) -> float:
    return float(row["by_seed"]["0"]["loss_hard"])


def _of_pair(row: dict[str, Any]) -> list[str]:
    figures, count = row["figures"], len(row["by_seed"])
    return [
        f"`{row['prior']}`, `{row['guide']}`", number(_of_first_seed(row)),
        spread(figures["loss_hard"]) if count > 1 else "", percent(figures["answers"]["mean"], 1),
        *(spread(figures.get(name), digits) for name, (_, digits) in OF_PAIRS.items()), str(count),
    ]  # fmt: skip


BESIDE = {
    "the default pair": "routed",
    "full attention alone": "full alone",
    "window alone": "window alone",
    "linear attention alone": "linear alone",
    "learned split, the same for all tokens": "static split",
    "random tokens, with the loads of the default pair": "random loads of routed",
    "the prior": "PriorGuide",
    "the router without a prior": "PointGuide",
}


def beside() -> str:
    """What stands beside the exhibit, trained alike."""
    named = {words: ("exhibit_beside", group) for words, group in BESIDE.items()}
    rows = [
        [words, loss(group), number(mean(group, "val_nll_soft")), answers(group), macs(group)]
        for words, _, group in rows_of(named)
    ]
    return table(["seed 0", "loss, hard", "soft", "answers", "MACs"], rows)


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
    "exhibit_best": best, "exhibit_beside": beside, "temperature": temperature,
    "refitted": refitted, "hardening": hardening,
}  # fmt: skip
