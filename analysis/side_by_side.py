"""The report of several runs, as what it says: settings, verdicts, figures and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pyro_meta.analysis import about
from pyro_meta.analysis.document import (
    Answer,
    Beside,
    Cell,
    Document,
    Drawn,
    Figure,
    Paragraph,
    Section,
    Table,
)
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.plots.differences import differences
from pyro_meta.analysis.plots.drawing import of_figure
from pyro_meta.analysis.plots.pareto import Setting, pareto
from pyro_meta.analysis.plots.style import is_narrow, short, width
from pyro_meta.analysis.runs_in_pairs import Pair, paired, position

MOST_PAIRS = 60
"""Differences that one picture shows; the table of the page has all."""
OF_EACH = {"trained", "weights", "read"}
"""Facts that are no settings: that they differ says nothing."""
IN_FACTS = {"seed", "steps", "mechanisms", "guide", "prior"}
"""Options that are among the facts."""
NONE = "\u2013"


class Shown(NamedTuple):
    """A run as the page shows it."""

    name: str
    findings: Findings
    document: Document
    address: str
    """Of the page of its own, from this one; empty without one."""
    folder: str
    """Address of the folder of its pictures, from this one."""


def document(runs: Sequence[Shown], drawn: Sequence[Drawn], pairs: Sequence[Pair],
             missing: Sequence[str]) -> Document:  # fmt: skip
    """What is said of several runs.

    Parameters
    ----------
    runs
        The runs, each with its own report.
    drawn
        Pictures of all, of `pictures`.
    pairs, missing
        Of `runs_in_pairs.paired`.
    """
    names = [run.name for run in runs]
    sections = [
        Section("runs", "The runs", [_settings(runs)]),
        Section("verdicts", "Verdicts", list(_verdicts(runs))),
        Section("figures", "Figures", [_figures(runs)]),
        Section("comparison", "Differences", [*_differences(pairs, missing), *drawn]),
        Section("pictures", "Pictures of each", list(_beside(runs))),
    ]
    return Document(
        title=f"{len(runs)} runs side by side",
        about=f"The posteriors of the routers of {', '.join(names)}.",
        facts=(),
        verdicts=None,
        sections=[section for section in sections if section.parts],
        links=[(run.name, run.address) for run in runs if run.address],
    )


def _settings(runs: Sequence[Shown]) -> Table:
    by_run = [dict(about.facts(run.findings.reading)) for run in runs]
    rows = {name: [one[name] for one in by_run] for name in by_run[0]}
    options = [run.findings.reading.options for run in runs]
    for name in dict.fromkeys(name for one in options for name in one if name not in IN_FACTS):
        values = [one.get(name, NONE) for one in options]
        if len(set(values)) > 1:
            rows[f"--{name}"] = values
    differing = frozenset(
        index
        for index, (name, values) in enumerate(rows.items())
        if name not in OF_EACH and len(set(values)) > 1
    )
    return Table(
        "runs", "", ("", *(run.name for run in runs)),
        [[name, *values] for name, values in rows.items()],
        how="The sign \u2260 marks settings that differ. Of the options those are listed that "
        "do.",
        differing=differing,
    )  # fmt: skip


def _verdicts(runs: Sequence[Shown]) -> Iterator[Table]:
    columns = ("question", *(run.name for run in runs))
    lines = [{line.question: line for line in run.findings.judgements()} for run in runs]
    questions = list(dict.fromkeys(question for of_run in lines for question in of_run))
    yield Table(
        "verdicts", "", columns,
        [
            ["in short", *(run.findings.headline() for run in runs)],
            *(
                [question, *(Answer(one[question]) if question in one else NONE for one in lines)]
                for question in questions
            ),
        ],
        how="Every question is put so that yes is good.",
    )  # fmt: skip
    yield Table(
        "reasons", "The numbers behind them", columns,
        [
            [question, *(one[question].reason if question in one else NONE for one in lines)]
            for question in questions
        ],
        is_folded=True,
    )  # fmt: skip


def _figures(runs: Sequence[Shown]) -> Table:
    columns = [figures(run.findings) for run in runs]
    names = list(dict.fromkeys(name for one in columns for name in one))
    return Table(
        "figures", "", ("figure", *(run.name for run in runs)),
        [[name, *(one.get(name, NONE) for one in columns)] for name in names],
        how="Figures of layers are means over them.",
    )  # fmt: skip


def figures(findings: Findings) -> dict[str, Cell]:
    """Figures of a run that others have too, by name."""
    run = findings.reading
    layers = run.diversity()
    found: dict[str, Cell] = {
        "loss, soft": Figure(run.summary["val_nll_soft"], ".4f"),
        "loss, hard": Figure(run.summary["val_nll_hard"], ".4f"),
        "cost, MACs, hard": Figure(run.summary["cost_macs_hard"], ".3f"),
        "effective mechanisms, layer": _mean(layers, "effective_by_load"),
        "effective mechanisms, token": _mean(layers, "effective_per_token"),
        "routing information, nats": _mean(layers, "information"),
        "marginal KL, nats": _mean(layers, "marginal_kl"),
        "expected entropy, nats": _mean(layers, "expected"),
        "epistemic entropy, nats": _mean(layers, "epistemic"),
        "KL, nats": _mean(layers, "kl"),
    }
    if (weights := findings.judged) is not None:
        found["k-hat below 0.7, given x"] = Figure(weights.usable, ".0%")
    if single := findings.belief.get("one_token"):
        found["effective share of draws, one token"] = Figure(single["efficiency_median"], ".2f")
        found["gap, share of the loss"] = Figure(single["gap"]["share_of_loss"], ".2%")
    for name, one in findings.calibrated().items():
        found[f"calibration error, {name}"] = Figure(one.error, ".3f")
    for name, curve in findings.selective().items():
        found[f"risk-coverage area, by {name}"] = Figure(curve.area, ".3f")
    return found


def _mean(layers: Sequence[Mapping[str, float]], name: str) -> Figure:
    return Figure(sum(layer[name] for layer in layers) / len(layers), ".3f")


def _differences(pairs: Sequence[Pair], missing: Sequence[str]) -> Iterator[Table | Paragraph]:
    if pairs:
        yield Table(
            "pairs", "Losses of hard routes, in pairs", ("pair", "difference", "low", "high", ""),
            [
                [f"{pair.ours} \u2212 {pair.theirs}", Figure(pair.mean, "+.4f"),
                 Figure(pair.interval[0], "+.4f"), Figure(pair.interval[1], "+.4f"),
                 position(pair)]
                for pair in pairs
            ],
            how="Differences are in nats per token and paired by validation sequence. A 95% "
            "interval, from low to high, that holds 0 decides nothing. It is for other sequences, "
            "not for other seeds: to compare settings, train several seeds (pyro_meta.ablate).",
        )  # fmt: skip
    for line in missing:
        yield Paragraph(f"Not compared: {line}.", is_note=True)


def _beside(runs: Sequence[Shown]) -> Iterator[Beside]:
    of_runs = [
        {
            one.name: replace(one, file=run.folder + one.file)
            for one in run.document.parts("picture")
        }
        for run in runs
    ]
    for name, first in {one.name: one for found in of_runs for one in found.values()}.items():
        yield Beside(
            name, first.title, first.how,
            [(run.name, found.get(name)) for run, found in zip(runs, of_runs, strict=True)],
        )  # fmt: skip


def in_pairs(found: Sequence[Findings]) -> tuple[list[Pair], list[str]]:
    return paired([findings.reading for findings in found])


def pictures(
    names: Sequence[str], found: Sequence[Findings], pairs: Sequence[Pair], for_page: bool
) -> Iterator[Drawn]:
    """Loss against cost, and differences in pairs; within `styled`."""
    summaries = [findings.reading.summary for findings in found]
    settings = [
        Setting(short(name), "variant", [one["cost_macs_hard"]], [one["val_nll_hard"]])
        for name, one in zip(names, summaries, strict=True)
    ]
    points = [
        f"{name}: cost {one.cost:.3f}, loss {one.loss:.4f}"
        for name, one in zip(names, settings, strict=True)
    ]
    yield of_figure(
        "pareto", "comparison", "Loss against cost",
        "Down and to the left is better; the dashed line joins the runs that no other beats.",
        "; ".join(points) + ".",
        lambda: pareto(
            settings, "MACs of attention, hard routes (full = 1)",
            (width(9), 3.6 if is_narrow() else 6),
        ),
        for_page,
    )  # fmt: skip
    if pairs:
        widest = sorted(pairs, key=lambda pair: -abs(pair.mean))[:MOST_PAIRS]
        shown = [pair for pair in pairs if pair in widest]
        some = f" The {len(shown)} widest of {len(pairs)}." if len(shown) < len(pairs) else ""
        yield of_figure(
            "differences", "comparison", "Paired differences",
            "A line that does not touch 0 is a difference that other sequences would show too."
            + some,
            "; ".join(map(_say, shown)) + ".", lambda: differences(shown), for_page,
        )  # fmt: skip


def _say(pair: Pair) -> str:
    return f"{pair.ours} minus {pair.theirs}: {pair.mean:+.4f}, {position(pair)}"
