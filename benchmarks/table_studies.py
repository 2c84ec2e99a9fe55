"""Tables of studies, from the study.json that `ablate` leaves."""

from collections.abc import Iterator
from typing import Any

from results_read import read
from table_cells import number, percent, spread, table, times

Group = dict[str, Any]
Place = tuple[str, str]
"""A study and a group of it."""


def groups(name: str) -> dict[str, Group]:
    """Group -> its figures over seeds, of the study that stands."""
    study = read(f"{name}/study.json")
    return {group["group"]: group for group in study["groups"]}


def by_seed(study: str, group: str) -> dict[int, float]:
    """Hard loss of every finished run of a group, by seed."""
    return {run["seed"]: run["summary"]["val_nll_hard"] for run in runs_of(study, group)}


def runs_of(study: str, group: str) -> list[dict[str, Any]]:
    """Finished runs of a group."""
    runs = read(f"{study}/study.json")["runs"]
    return [run for run in runs if run["group"] == group and run["state"] == "finished"]


def behind(one: Place, other: Place) -> str:
    """How much more loss one group has than the other: the mean over seeds that both have."""
    ours, theirs = by_seed(*one), by_seed(*other)
    shared = sorted(ours.keys() & theirs.keys())
    if one == other or not shared:
        return ""
    return number(sum(ours[seed] - theirs[seed] for seed in shared) / len(shared), sign=True)


def rows_of(named: dict[str, Place]) -> Iterator[tuple[str, Place, Group]]:
    """Of each row its words, its study and group, and the figures of that."""
    for words, (study, name) in named.items():
        yield words, (study, name), groups(study)[name]


def figure(group: Group, name: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = group["figures"].get(name)
    return found


def mean(group: Group, name: str) -> float | None:
    found = figure(group, name)
    return None if found is None else found["mean"]


def loss(group: Group) -> str:
    return spread(figure(group, "val_nll_hard"))


def macs(group: Group) -> str:
    return number(mean(group, "cost_macs_hard"))


def model_macs(group: Group) -> str:
    """MACs of the whole model per token, in thousands."""
    whole = mean(group, "executed.macs_per_token_model")
    return "" if whole is None else f"{whole / 1000:.0f}k"


def seeds(group: Group) -> str:
    return str(len(group["seeds"]))


def per_look_up(group: Group) -> str:
    used = mean(group, "truth.full_used")
    return "" if used is None else times(used)


def answers(group: Group) -> str:
    return percent(mean(group, "truth.answer_accuracy_hard"), 1)


PLANTED = {
    "**routed by choices with loads** (the default)": ("families", "routed"),
    "routed by weights": ("planted", "routed"),
    "router without a prior": ("planted", "PointGuide"),
    "the learned loads, mixed": ("planted", "fixed loads of routed"),
    "full attention alone": ("planted", "full alone"),
    "window of 32 alone": ("planted", "window alone"),
    "learned static split": ("families", "static split"),
    "the learned loads at random": ("planted", "random loads of routed"),
    "linear attention alone": ("planted", "linear alone"),
    "routes from the prior": ("planted", "PriorGuide"),
}


def planted() -> str:
    """Look-ups planted in prose: the routed model beside its opponents."""
    rows = [
        [
            words, loss(group), behind(place, ("families", "routed")), answers(group), macs(group),
            per_look_up(group), seeds(group),
        ]
        for words, place, group in rows_of(PLANTED)
    ]  # fmt: skip
    head = ["", "loss", "against the default", "answers", "MACs", "full per look-up", "seeds"]
    return table(head, rows)


MAKE_TRAIN = {
    "**routes**": "routed-s0", "learned static split": "static-split-s0",
    "full attention alone": "full-alone-s0", "window of 32 alone": "window-alone-s0",
    "linear attention alone": "linear-alone-s0",
}  # fmt: skip


def make_train() -> str:
    """What `make train` ends with, on a fresh clone."""
    runs = read("make_train.json")["runs"]
    rows = []
    for words, name in MAKE_TRAIN.items():
        run = runs[name]
        truth = run["truth"]
        rows.append([
            words, number(run["val_nll_hard"]), percent(truth["answer_accuracy_hard"], 1),
            number(run["cost_macs_hard"]), times(truth["full_used"]),
            number(run["seconds"] / 60, 1),
        ])  # fmt: skip
    head = ["", "loss", "answers", "MACs", "full per look-up", "minutes, two runs at a time"]
    return table(head, rows)


FAMILIES = {
    "**choices with loads** (the default)": ("routed", "LoadCategorical", "CategoricalGuide"),
    "choices without loads": ("choices without loads", "CostCategorical", "CategoricalGuide"),
    "weights with loads": ("weights with loads", "LoadDirichlet", "DirichletGuide"),
    "weights": ("weights", "CostDirichlet", "DirichletGuide"),
    "learned static split": ("static split", "LoadCategorical", "LoadGuide"),
}


def families() -> str:
    """Families of posteriors on planted look-ups."""
    found = groups("families")
    rows = [
        [
            words, f"`{prior}`", f"`{guide}`", loss(found[name]), answers(found[name]),
            number(mean(found[name], "kl_per_token"), 2), macs(found[name]), seeds(found[name]),
        ]
        for words, (name, prior, guide) in FAMILIES.items()
    ]  # fmt: skip
    head = ["", "prior", "guide", "loss, hard", "answers", "KL, nats per token", "MACs", "seeds"]
    return table(head, rows)


TEXT = {
    "**routed by choices with loads** (the default)": ("families_text", "routed"),
    "routed by weights": ("text", "routed"),
    "router without a prior": ("text", "PointGuide"),
    "window of 32 alone": ("text", "window alone"),
    "full attention alone": ("text", "full alone"),
    "linear attention alone": ("text", "linear alone"),
}


def text() -> str:
    """Ordinary text: Python's documentation."""
    rows = [
        [
            words, loss(group), behind(place, ("text", "window alone")), macs(group),
            model_macs(group), seeds(group),
        ]
        for words, place, group in rows_of(TEXT)
    ]  # fmt: skip
    head = ["", "loss", "against a window", "MACs", "MACs of the model per token", "seeds"]
    return table(head, rows)


RECALL = {
    "**routed by weights**, 48 pairs": ("recall", "routed"),
    "router without a prior, 48 pairs": ("recall", "PointGuide"),
    "full attention alone, 48 pairs": ("recall", "full alone"),
    "linear attention alone, 48 pairs": ("recall", "linear alone"),
    "window of 16 alone, 48 pairs": ("recall", "window alone"),
    "**routed by weights**, 24 unmarked pairs": ("recall_unmarked", "routed"),
    "**routed by choices with loads**, 24 pairs": ("families_recall", "routed"),
    "learned static split, 24 pairs": ("families_recall", "static split"),
}


def recall() -> str:
    """The task whose truth is known."""
    rows = [
        [words, answers(group), loss(group), per_look_up(group), macs(group), seeds(group)]
        for words, _, group in rows_of(RECALL)
    ]
    return table(["", "answers", "loss, hard", "full per look-up", "MACs", "seeds"], rows)


def budget() -> str:
    """Whether budgets are met."""
    found = groups("budget")
    rows = [
        [number(asked, 2), macs(found[f"budget={asked:g}"]), loss(found[f"budget={asked:g}"])]
        for asked in (0.15, 0.3, 0.6)
    ]
    return table(["asked", "MACs of hard routes", "loss, hard"], rows)


PAPER = {
    "Bayesian": "Bayesian",
    "prior-free": "prior-free",
    "Bayesian, turned hard in training": "Bayesian, turned hard",
    "prior-free, turned hard in training": "prior-free, turned hard",
    "the untrained prior's routes": "untrained prior",
}


def paper() -> str:
    """Meta-Attention's setting."""
    found = groups("paper")
    rows = [
        [
            words, number(mean(found[name], "val_nll_soft")), loss(found[name]),
            percent(mean(found[name], "cost_nominal_hard"), 1),
            number(mean(found[name], "kl_per_token")),
        ]
        for words, name in PAPER.items()
    ]  # fmt: skip
    return table(["", "loss, soft", "loss, hard", "nominal cost, hard", "KL a token"], rows)


TABLES = {
    "planted": planted, "families": families, "text": text, "recall": recall, "budget": budget,
    "paper": paper, "make_train": make_train,
}  # fmt: skip
