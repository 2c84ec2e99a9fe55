"""The report of runs: what a router does, and whether to believe it; torch only where asked."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from pyro_meta.analysis import page
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.json_values import plain
from pyro_meta.analysis.plots import PICTURES, Picture, routes
from pyro_meta.analysis.plots.differences import differences
from pyro_meta.analysis.plots.pareto import Setting, pareto
from pyro_meta.analysis.plots.style import as_data_uri, save_png, styled
from pyro_meta.analysis.reading import Reading
from pyro_meta.analysis.runs_in_pairs import Pair, names_of, paired, position
from pyro_meta.folders import write_whole
from pyro_meta.terminal.progress import Tell, step_by_step
from pyro_meta.terminal.tables import executed_rows, table_of_figures, table_of_pairs

STEPS_OF_BELIEF = 5


def report(runs: Sequence[str], believes: bool, rereads: bool) -> None:
    """Print the routing summary of each run and write its report to RUN/report/.

    Parameters
    ----------
    runs
        Folders of runs; of several, each is compared with the others.
    believes
        Hold the guide against exact posteriors, with the checkpoint.
    rereads
        Write posterior.nc anew from the checkpoint first.
    """
    out, err = Console(), Console(stderr=True)
    folders = [Path(folder) for folder in dict.fromkeys(runs)]
    steps = len(folders) * (1 + rereads + STEPS_OF_BELIEF * believes + len(PICTURES) + 1)
    with step_by_step(steps, err) as tell:
        found = [_findings(folder, rereads, believes, tell) for folder in folders]
        comparison = _compare(found) if len(found) > 1 else None
        written = [_write(findings, comparison, tell) for findings in found]
    for findings, path in zip(found, written, strict=True):
        _print_summary(findings, out)
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)


def _findings(folder: Path, rereads: bool, believes: bool, tell: Tell) -> Findings:
    """Read a run, and ask its network what only that can say."""
    belief: dict[str, Any] | None = None
    if rereads:
        tell(f"{folder.name}: drawing from the posterior anew")
        from pyro_meta.posterior.readout import reread  # torch

        with _profiled():
            reread(folder)
    tell(f"{folder.name}: reading")
    reading = Reading.of(folder)
    if believes:
        from pyro_meta.posterior.belief import believe  # torch
        from pyro_meta.training.run import Run

        run = Run.open(folder)
        with _profiled():
            belief = believe(run, lambda what: tell(f"{folder.name}: {what}"))
    return Findings(reading, belief)


@contextmanager
def _profiled() -> Iterator[None]:
    """Hard routes are dispatched by the profile of this machine."""
    from pyro_meta.attention.profile import of_this_machine, profiled  # torch

    with profiled(of_this_machine()):
        yield


def _write(findings: Findings, comparison: dict[str, Any] | None, tell: Tell) -> Path:
    """Write report.html, report.json and the pictures; the path of the page."""
    folder = findings.reading.folder / "report"
    folder.mkdir(exist_ok=True)
    name = findings.reading.folder.name

    def keep(picture: Picture) -> str:
        figure = picture.draw(findings)
        save_png(figure, folder / f"{picture.name}.png")
        return as_data_uri(figure)

    with styled():
        drawn = []
        for picture in PICTURES:
            tell(f"{name}: {picture.title}")
            (folder / f"{picture.name}.png").unlink(missing_ok=True)  # of an earlier report
            if picture.applies(findings):
                drawn.append(page.Drawn(picture, keep(picture), picture.says(findings)))
        save_png(routes.passage(findings.reading), folder / "passage.png")
        tell(f"{name}: the page")
        shown = comparison and comparison | {"drawn": _draw_comparison(comparison, folder)}
        executed = findings.reading.summary.get("executed")
        rows = list(executed_rows(executed)) if executed else []
        html = page.render(findings, drawn, rows, shown)
    numbers = findings.to_json()
    if comparison:
        numbers["comparison"] = plain(
            {
                "runs": comparison["names"],
                "pairs": [vars(pair) for pair, _ in comparison["pairs"]],
                "not_compared": comparison["missing"],
                "side_by_side": dict(comparison["rows"]),
            }
        )
    write_whole(
        folder / "report.json",
        json.dumps(numbers, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
    )
    path = folder / "report.html"
    write_whole(path, html)
    return path


def _compare(found: Sequence[Findings]) -> dict[str, Any]:
    """Several runs: paired differences, and every diagnostic side by side."""
    readings = [findings.reading for findings in found]
    pairs, missing = paired(readings)
    names = names_of(readings)
    return {
        "names": names,
        "pairs": [(pair, position(pair)) for pair in pairs],
        "missing": missing,
        "rows": _side_by_side(found),
        "settings": [
            Setting(name, "variant", [run.summary["cost_macs_hard"]], [run.summary["val_nll_hard"]])
            for name, run in zip(names, readings, strict=True)
        ],
    }


def _side_by_side(found: Sequence[Findings]) -> list[tuple[str, list[str]]]:
    """Rows of a table with a column for each run."""
    rows: dict[str, list[str]] = {}
    for findings in found:
        reading = findings.reading
        layers = reading.diversity()
        figures = {
            "loss, soft": f"{reading.summary['val_nll_soft']:.4f}",
            "loss, hard": f"{reading.summary['val_nll_hard']:.4f}",
            "cost, MACs, hard": f"{reading.summary['cost_macs_hard']:.3f}",
            "effective mechanisms, load": _mean(layers, "effective_by_load"),
            "effective mechanisms, token": _mean(layers, "effective_per_token"),
            "routing information, nats": _mean(layers, "information"),
            "expected entropy, nats": _mean(layers, "expected"),
            "epistemic entropy, nats": _mean(layers, "epistemic"),
            "KL by layer, nats": _mean(layers, "kl"),
        }
        for line in findings.judgements():
            figures[line.question] = line.answer
        weights = findings.judged
        figures["k-hat below 0.7"] = "" if weights is None else f"{weights.usable:.0%}"
        for gap in findings.belief.get("amortisation", [])[:1]:
            figures["amortisation gap, share of the loss"] = (
                f"{gap['amortisation']['share_of_loss']:.2%}"
            )
        for name, found_one in findings.calibrated().items():
            figures[f"calibration error, {name}"] = f"{found_one.error:.3f}"
        for name, curve in findings.selective().items():
            figures[f"risk-coverage area, by {name}"] = f"{curve.area:.3f}"
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)
    return [(name, values) for name, values in rows.items() if len(values) == len(found)]


def _mean(layers: list[dict[str, float]], name: str) -> str:
    return f"{sum(layer[name] for layer in layers) / len(layers):.3f}"


def _draw_comparison(comparison: dict[str, Any], folder: Path) -> list[page.Drawn]:
    settings, pairs = comparison["settings"], [pair for pair, _ in comparison["pairs"]]
    points = [f"{one.label}: cost {one.cost:.3f}, loss {one.loss:.4f}" for one in settings]
    out = [
        _drawn(
            "pareto", "Loss against cost",
            "Down and to the left is better; the dashed line joins the runs that no other beats.",
            pareto(settings, "MACs of attention, hard routes (full attention = 1)"),
            "; ".join(points) + ".", folder,
        )
    ]  # fmt: skip
    if pairs:
        out.append(
            _drawn(
                "differences", "Paired differences",
                "A line that does not touch 0 is a difference that other sequences would show too.",
                differences(pairs), "; ".join(map(_say, pairs)) + ".", folder,
            )
        )  # fmt: skip
    return out


def _say(pair: Pair) -> str:
    return f"{pair.ours} minus {pair.theirs}: {pair.mean:+.4f}, {position(pair)}"


def _drawn(name: str, title: str, how: str, figure: Figure, says: str, folder: Path) -> page.Drawn:
    save_png(figure, folder / f"{name}.png")
    picture = Picture(
        name, "comparison", title, how, lambda findings: figure, lambda findings: says
    )
    return page.Drawn(picture, as_data_uri(figure), says)


def _print_summary(findings: Findings, out: Console) -> None:
    reading = findings.reading
    summary = reading.summary
    out.print(f"[bold]{escape(str(reading.folder))}[/bold]", soft_wrap=True)
    out.print(
        f"validation loss {summary['val_nll_soft']:.4f} soft, {summary['val_nll_hard']:.4f} hard; "
        f"cost {summary['cost_nominal_hard']:.1%} nominal, {summary['cost_macs_hard']:.1%} of full "
        f"attention's MACs; {summary['hard_fraction']:.0%} of tokens hard",
        soft_wrap=True,
    )
    if executed := summary.get("executed"):
        title = f"hard routes executed, sequences of {executed['length']:,} tokens"
        out.print(table_of_pairs(title, executed_rows(executed)))
    columns = {
        "effective_by_load": "N load",
        "effective_per_token": "N token",
        "information": "inform.",
        "entropy": "H/log K",
        "total": "total",
        "expected": "expected",
        "epistemic": "epistemic",
        "kl": "KL",
    }
    table = table_of_figures("diversity and uncertainty", "layer", columns.values())
    for layer, figures in enumerate(reading.diversity()):
        table.add_row(str(layer), *(f"{figures[key]:.3f}" for key in columns))
    out.print(table)
    out.print(
        "N: effective number of mechanisms, exp H, of the load and of a token's posterior mean. "
        "Routing information, uncertainty (total = expected + epistemic) and KL(q||p): nats per "
        "token.",
        style="dim",
    )
    out.print("\nverdict: collapse, belief, use", style="italic")
    for line in findings.judgements():
        colour = "dim" if line.is_good is None else "green" if line.is_good else "bold red"
        out.print(
            f"  {line.question} [{colour}]{line.answer}[/{colour}]: {escape(line.reason)}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
