"""What a study leaves: one table, paired differences and a picture, from the runs that finished.

study.json    command, hardware, versions; every run, group and difference
study.csv     one line per run
study.md      the tables, and how to read them
pareto.png    loss against cost; pareto-2.png and so on where runs were validated on several texts
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pyro_meta.analysis import documents
from pyro_meta.analysis.collapse import BLIND_SPREAD, DOMINANT_SHARE, PRIOR_KL, Verdict
from pyro_meta.analysis.comparison import (
    Difference,
    Interval,
    Spread,
    pareto_front,
    spread,
)
from pyro_meta.analysis.json_values import encodable, plain
from pyro_meta.analysis.plots.pareto import Setting, pareto
from pyro_meta.analysis.plots.style import save_png
from pyro_meta.analysis.reading import Reading
from pyro_meta.errors import UsageError
from pyro_meta.folders import write_whole
from pyro_meta.study.comparisons import Comparison, with_baselines, with_reference
from pyro_meta.study.job import Job, State
from pyro_meta.study.plan import Group
from pyro_meta.study.result import Result, texts
from pyro_meta.study.tables import Table, markdown
from pyro_meta.study.wholeness import once_per_content
from pyro_meta.terminal.machine import hardware, versions

COSTS = {
    "macs": ("cost_macs_hard", "MACs of attention, hard routes (full attention = 1)"),
    "nominal": ("cost_nominal_hard", "nominal, hard routes (full attention = 1)"),
    "model": ("executed.macs_per_token_model", "MACs of the whole model per token, hard routes"),
}
"""Costs to compare at: the figure of summary.json, and its name for people."""

FIGURES = {
    "val_nll_hard": "loss, hard", "val_nll_soft": "loss, soft", "cost_macs_hard": "MACs",
    "cost_nominal_hard": "nominal", "cost_nominal_soft": "nominal, soft",
    "kl_per_token": "KL", "routing_entropy": "H(m)", "routing_uncertainty": "E H(alpha)",
    "truth.text_nll_hard": "text",
    "truth.answer_accuracy_hard": "answers", "truth.full_used": "full used", "truth.auroc": "AUROC",
    "executed.macs_per_token_model": "MACs, model", "depth.skipped_hard": "skipped",
    "depth.skipped_soft": "skipped, soft",
}  # fmt: skip
"""Figures of the table, in order; those that no run has are left out."""

AS = {
    "mechanism": "one mechanism", "fixed": "fixed, its loads", "random": "random, its loads",
    "prior": "routes from the prior", "point": "router without a prior",
    "split": "static split", "periodic": "periodic layers", "also": "other",
}  # fmt: skip


class Results:
    """All that a study has found out so far.

    Parameters
    ----------
    groups
        In the order of the plan.
    jobs
        Their runs, finished or not.
    cost
        A key of `COSTS`: where loss is compared at equal cost.

    Attributes
    ----------
    reference
        Label of the setting that the others are compared to; None where there is one setting.
    problems
        What of finished runs cannot be read, or is odd, and stays out: a line each.
    """

    def __init__(self, groups: list[Group], jobs: list[Job], cost: str) -> None:
        self.jobs = jobs
        self.cost, self.cost_name = COSTS[cost]
        self.results, self.problems = collect(groups, jobs, self.cost)
        self.comparisons = with_baselines(self.results, self.cost)
        self.reference = next((one.reference.label for one in groups if one.reference), None)
        self.of_settings = with_reference(self.results)
        self.front = on_front(self.results, self.cost)

    def write(self, out: Path, command: str, study_yaml: str) -> None:
        """Write study.json, study.csv, study.md and a picture for each validation text.

        Raises
        ------
        UsageError
            One cannot be written; the earlier ones stand.
        """
        name = "study.json"
        try:
            for name, write in self._files(out, command, study_yaml):
                write(out / name)
        except OSError as error:
            raise UsageError(
                f"cannot write {out / name}: {error.strerror or error}; nothing that was trained "
                "is lost, repeat to go on"
            ) from error

    def _files(
        self, out: Path, command: str, study_yaml: str
    ) -> Iterator[tuple[str, Callable[[Path], None]]]:
        """Name of each file, and what writes it."""
        facts = {
            "command": command,
            "hardware": hardware(),
            "versions": versions(),
            "study": yaml.safe_load(study_yaml),
            "cost": self.cost,
            "runs": [_describe_run(job, out, self._verdicts(job)) for job in self.jobs],
            "groups": [_describe_group(result, self.front) for result in self.results],
            "reference": self.reference,
            "differences": [asdict(one) for one in (*self.of_settings, *self.comparisons)],
        }
        texts = {
            "study.json": json.dumps(plain(facts), indent=2) + "\n",
            "study.csv": _csv(self.jobs),
            "study.md": self._page(command),
        }
        for name, text in texts.items():
            yield name, partial(write_whole, text=encodable(text))
        for name, results in self.pictures().items():
            settings = [
                Setting(
                    result.group.label,
                    result.group.kind,
                    [one[self.cost] for one in result.summaries.values()],
                    [one["val_nll_hard"] for one in result.summaries.values()],
                )
                for result in results
            ]
            yield name, partial(save_png, pareto(settings, self.cost_name))

    def pictures(self) -> dict[str, list[Result]]:
        """File name -> results on one validation text, the text with the most results first."""
        by_text = sorted(texts(self.results).values(), key=len, reverse=True)
        worth_it = [results for results in by_text if len(results) > 1] or by_text[:1]
        names = ["pareto.png", *(f"pareto-{n}.png" for n in range(2, len(worth_it) + 1))]
        return dict(zip(names, worth_it, strict=False))

    def files(self) -> list[str]:
        """Names of all that is written, for people first."""
        return ["study.md", "study.csv", "study.json", *self.pictures()]

    def table(self, figures: Sequence[str] = tuple(FIGURES), digits: int | None = None) -> Table:
        """A row per group: figures over seeds, and differences to what it has to beat."""
        shown = [name for name in figures if any(r.over_seeds(name) for r in self.results)]
        rows = []
        for result in self.results:
            label = result.group.label
            ours = [one for one in self.comparisons if one.of == label]
            has_singles = any(one.kind == "mechanism" for one in ours)
            rows.append(
                [
                    label + (" *" if label in self.front else ""),
                    *(_figure(name, result.over_seeds(name), digits) for name in shown),
                    _delta([one for one in ours if one.is_best_single], has_singles),
                    _delta([one for one in ours if one.kind == "point"]),
                    _delta([one for one in ours if one.kind == "split"]),
                    str(len(result.summaries)),
                ]
            )
        headings = [FIGURES[name] for name in shown]
        return Table(["", *headings, *TO, "seeds"], rows)

    def settings(self) -> Table:
        """A row per setting but the reference: its losses minus those of the reference."""
        rows = []
        for one in self.of_settings:
            if one.hard is None or one.soft is None:
                rows.append([one.of, NOT_PAIRED, "", "", "", "", "0"])
                continue
            over = "seeds and text" if one.hard.seeds > 1 else "text alone (one seed)"
            both = [cell for found in (one.hard, one.soft) for cell in _with_interval(found)]
            rows.append([one.of, *both, over, str(one.hard.seeds)])
        headings = ["hard", "hard, 95%", "soft", "soft, 95%", "95% over", "pairs"]
        return Table([f"minus {self.reference}", *headings], rows)

    def differences(self) -> Table:
        """A row per comparison, with its intervals."""
        rows = []
        for one in self.comparisons:
            found = one.hard
            kind = AS[one.kind] + (", best at no more cost" if one.is_best_single else "")
            cells = [one.of, f"{one.against} ({kind})"]
            if found is None:
                cells += [NOT_PAIRED, "", "", "", "0"]
            else:
                cells += [
                    f"{found.mean:+.4f}",
                    _interval(found.interval if found.seeds > 1 else None),
                    _interval(found.over_seeds),
                    _interval(found.over_sequences),
                    str(found.seeds),
                ]
            rows.append(cells)
        headings = ["of", "against", "difference", "seeds and text", "seeds", "text", "pairs"]
        return Table(headings, rows)

    def collapse(self) -> Table:
        """A row per posterior: the three measures of its runs, and in how many it collapsed."""
        judged = [(result, list(result.verdicts.values())) for result in self.results]
        judged = [(result, verdicts) for result, verdicts in judged if verdicts]
        names = [verdict.name for verdict in judged[0][1][0]] if judged else []
        rows = []
        for result, runs in judged:
            cells = []
            for same in zip(*runs, strict=True):  # one verdict over the seeds
                values = spread([verdict.value for verdict in same])
                collapsed = sum(verdict.is_collapsed for verdict in same)
                cells.append(f"{_figure('', values)} ({collapsed} of {len(same)})")
            rows.append([result.group.label, *cells])
        return Table(["", *names], rows)

    def _verdicts(self, job: Job) -> list[Verdict]:
        found = (result for result in self.results if result.group is job.group)
        return next((result.verdicts.get(job.seed, []) for result in found), [])

    def _page(self, command: str) -> str:
        done = sum(job.state == State.FINISHED for job in self.jobs)
        failed = [job for job in self.jobs if job.state == State.FAILED]
        parts = ["# Study", f"    {command}", f"{done} of {len(self.jobs)} runs have finished."]
        if failed:
            parts.append("\n".join(f"* failed: {job.name}: {job.note}" for job in failed))
        if self.problems:
            parts.append("\n".join(f"* {problem}" for problem in self.problems))
        if self.results:
            pictures = [f"![loss against cost]({name})" for name in self.pictures()]
            parts += [markdown(table := self.table()), _reading(table), *pictures]
        if self.of_settings:
            parts += ["## Settings", markdown(self.settings()), SETTINGS]
        if self.comparisons:
            parts += ["## Paired differences", markdown(self.differences()), PAIRED]
        if (collapse := self.collapse()).rows:
            parts += ["## Collapse", markdown(collapse), COLLAPSE]
        return "\n\n".join(parts) + "\n"


READING = """\\* no other setting on the same validation text has less loss at no more cost. ± is
the standard deviation over seeds. Losses are in nats per token of the validation text, along hard
and along soft routes; costs are relative to full attention (*MACs, model*: those of the whole model
per token, counted), entropies to log K: H(m) of the posterior mean, E H(alpha) of a draw."""

TO = {
    "to best single": "the best mechanism alone among those that cost no more (none: the setting "
    "is cheaper than all of them)",
    "to no prior": "the router without a prior",
    "to split": "the learned static split",
}
"""Columns of differences in the table: to what."""

MARKED = """Below 0 is better. A difference whose 95% interval leaves out 0 is marked !, one that
rests on a single seed (1)."""

NOT_PAIRED = "no common seed and text"

SETTINGS = """Losses in nats per token, along hard and along soft routes: those of the setting minus
those of the reference, which the heading names, paired by seed and by sequence of the validation
text. Below 0 the setting is better. The 95% intervals are for other seeds and other text at once,
by the variance of two crossed clusters and a t with as many degrees of freedom as seeds less one;
with one seed they are for other text alone, and say nothing about other seeds. Each interval stands
by itself: of twenty settings that are all as good as the reference, one leaves out 0."""

PAIRED = """Hard losses, ours minus theirs, in nats per token, on the same sequences and paired by
seed; 95% intervals. *Seeds*: t-interval of the seeds' mean differences, for other seeds on this
text. *Text*: bootstrap over sequences, for other text with these very models. *Seeds and text*: for
both at once, by the variance of two crossed clusters and a t with as many degrees of freedom as
seeds less one. One seed says nothing about other seeds. Neighbouring sequences of one text are
alike, so that intervals over text are, if anything, narrow."""


COLLAPSE = f"""Over seeds, with the number of runs that have collapsed: *prior*, mean KL(q || p) per
layer and token (collapsed below {PRIOR_KL:g} nats); *token-blind*, variance of the posterior means
over tokens in the layer where it is widest (below {BLIND_SPREAD:g}); *one mechanism*, share of the
leading mechanism in the layer where it leads least (above {DOMINANT_SHARE:g})."""


def collect(groups: list[Group], jobs: list[Job], cost: str) -> tuple[list[Result], list[str]]:
    """The groups of which a run has finished, and in a line each what of them stays out."""
    found = {id(group): Result(group, {}, {}, {}) for group in groups}
    problems: list[str] = []
    for job in sorted(jobs, key=lambda job: job.seed):
        if (summary := job.summary()) is None:
            continue
        assert job.folder is not None
        result, figures = found[id(job.group)], dotted(summary)
        try:
            _require_figures(figures, cost)
        except ValueError as error:
            problems.append(f"{job.name} stays out of the comparison: {error}")
            continue
        result.summaries[job.seed] = figures
        try:
            result.sequences[job.seed] = sequences_of(job.folder)
        except (OSError, ValueError) as error:
            problems.append(f"{job.name} is compared by its means alone: {error}")
        if job.group.has_posterior:
            try:
                result.verdicts[job.seed] = verdicts_of(job.folder)
            except UsageError as error:
                problems.append(f"{job.name} is not judged for collapse: {error}")
    return [result for result in found.values() if result.summaries], problems


def _require_figures(figures: dict[str, Any], cost: str) -> None:
    """Raise `ValueError` unless there is a cost, and all that is shown are numbers or nothing."""
    documents.number(figures, cost, "summary.json")
    for name in FIGURES:
        if figures.get(name) is not None:
            documents.number(figures, name, "summary.json")


@once_per_content
def sequences_of(folder: Path) -> dict[str, Any]:
    """Losses by validation sequence, and of which; raises `OSError` or `ValueError`."""
    path = folder / "sequences.json"
    losses = documents.read(path)
    hard, soft = (documents.numbers(losses, key, path.name) for key in ("hard", "soft"))
    if not isinstance(losses.get("windows"), str) or not hard or len(hard) != len(soft):
        raise ValueError(f"{path.name} does not say of which sequences its losses are")
    return losses


@once_per_content
def verdicts_of(folder: Path) -> list[Verdict]:
    """Whether the posterior has collapsed; raises `UsageError` where it cannot be read."""
    return Reading.of(folder).verdicts()


def on_front(results: list[Result], cost: str) -> set[str]:
    """Labels of the groups that no other one on the same text beats in loss and cost."""
    best: set[str] = set()
    for comparable in texts(results).values():
        is_best = pareto_front(
            [result.mean(cost) for result in comparable],
            [result.mean("val_nll_hard") for result in comparable],
        )
        best |= {one.group.label for one, is_on in zip(comparable, is_best, strict=True) if is_on}
    return best


# -- as data ---------------------------------------------------------------------------------


def _describe_run(job: Job, out: Path, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "name": job.name,
        "group": job.group.label,
        "kind": job.group.kind,
        "seed": job.seed,
        "state": job.state.value,
        "note": job.note,
        "folder": None if job.folder is None else str(job.folder.relative_to(out)),
        "train": job.described(),
        "summary": job.summary(),
        "collapse": {
            verdict.name: {"value": verdict.value, "is_collapsed": verdict.is_collapsed}
            for verdict in verdicts
        },
    }


def _describe_group(result: Result, best: set[str]) -> dict[str, Any]:
    figures = {name: None for one in result.summaries.values() for name in one}
    numbers = [
        name for name in figures
        if all(isinstance(one.get(name, 0), (int, float)) for one in result.summaries.values())
    ]  # fmt: skip
    return {
        "group": result.group.label,
        "kind": result.group.kind,
        "seeds": list(result.summaries),
        "is_on_pareto_front": result.group.label in best,
        "baselines": [group.label for _, group in result.group.baselines],
        "figures": {
            name: asdict(found)
            for name in numbers
            if name != "seed" and (found := result.over_seeds(name))
        },
    }


def _csv(jobs: list[Job]) -> str:
    """One line per run; a figure that a run lacks is empty."""
    rows = []
    for job in jobs:
        row = {"run": job.name, "group": job.group.label, "kind": job.group.kind,
               "seed": job.seed, "state": job.state.value}  # fmt: skip
        summary = dotted(job.summary() or {})
        rows.append(row | {k: v for k, v in summary.items() if not isinstance(v, (dict, list))})
    columns = list({name: None for row in rows for name in row})
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def dotted(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Figures of nested mappings under dotted names; lists stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


# -- for people ------------------------------------------------------------------------------


def _reading(table: Table) -> str:
    """How to read the table, of the columns that it has."""
    shown = [f"*{name}*: {what}" for name, what in TO.items() if name in table.headings]
    if not shown:
        return READING
    return f"{READING} Paired differences of hard losses {'; '.join(shown)}. {MARKED}"


def _figure(name: str, found: Spread | None, digits: int | None = None) -> str:
    """Mean and, where seeds differ, deviation of a figure; of absolute MACs the mean alone."""
    if found is None or not math.isfinite(found.mean):
        return ""
    if "macs_per_token" in name:
        return f"{found.mean:,.0f}"
    digits = digits or (4 if "nll" in name else 3)
    deviation = f"{found.deviation:.{digits}f}".removeprefix("0")
    is_spread = found.seeds > 1 and float(deviation) > 0
    return f"{found.mean:.{digits}f}" + f" \u00b1{deviation}" * is_spread


def _delta(comparisons: list[Comparison], is_sought: bool = False) -> str:
    """A difference in short, with what is to be known of it."""
    if is_sought and not comparisons:
        return "none"
    found = comparisons[0].hard if comparisons else None
    if found is None:
        return ""
    mark = " (1)" if found.seeds == 1 else " !" if found.is_clear else ""
    return f"{found.mean:+.4f}{mark}"


def _with_interval(found: Difference) -> tuple[str, str]:
    return f"{found.mean:+.4f}", _interval(found.interval)


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
