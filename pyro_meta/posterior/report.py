"""The report of runs: what a router does, and whether to believe it; torch only where asked."""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from pyro_meta.analysis import page
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.json_values import as_json, encodable
from pyro_meta.analysis.plots import PICTURES, Picture, routes
from pyro_meta.analysis.plots.differences import differences
from pyro_meta.analysis.plots.pareto import Setting, pareto
from pyro_meta.analysis.plots.style import as_data_uri, as_png, save_png, short, styled, write_png
from pyro_meta.analysis.reading import Reading, require_finished
from pyro_meta.analysis.runs_in_pairs import Pair, names_of, paired, position
from pyro_meta.errors import UsageError
from pyro_meta.folders import write_whole
from pyro_meta.terminal.consoles import console, printable
from pyro_meta.terminal.progress import Tell, step_by_step
from pyro_meta.terminal.tables import executed_rows, table_of_figures, table_of_pairs

STEPS_OF_BELIEF = 6
FIRST_FILES = {"report.json", "belief.json"}
"""What a report writes before all else; a folder without them is not ours."""
MOST_PAIRS = 60
"""Differences that one picture shows; the table of the page has all."""


class Place(NamedTuple):
    """A run and where its report is written."""

    run: Path
    report: Path
    belief: Path
    """The folder of belief.json."""


def report(
    runs: Sequence[str],
    believes: bool,
    rereads: bool,
    into: str | None = None,
    trusts: bool = False,
) -> None:
    """Print the routing summary of each run and write its report.

    Parameters
    ----------
    runs
        Folders of runs; of several, each is compared with the others.
    believes
        Hold the guide against exact posteriors, with the checkpoint.
    rereads
        Write posterior.nc anew from the checkpoint first.
    into
        The folder to write to, of several runs their parent; by default RUN/report.
    trusts
        Import the classes that a run names, also those that pyro_meta does not ship.

    Raises
    ------
    UsageError
        A folder is no finished run, is damaged, or cannot be written to.
    """
    out, err = console(), console(stderr=True)
    places = _places(list({_resolved(run): Path(run) for run in runs}.values()), into)
    for place in places:
        _require_ready(place, believes, rereads, trusts)
    steps = len(places) * (1 + rereads + STEPS_OF_BELIEF * believes + len(PICTURES) + 1)
    with step_by_step(steps, err) as tell:
        found = [_findings(place, rereads, believes, trusts, tell) for place in places]
        with styled():
            comparison = _compare(found) if len(found) > 1 else None
            for findings, place in zip(found, places, strict=True):
                _write(findings, comparison, place.report, tell)
    for findings, place in zip(found, places, strict=True):
        _print_summary(findings, out)
        out.print(Text(f"wrote {printable(str(place.report / 'report.html'))}"), soft_wrap=True)


def _resolved(run: str) -> Path:
    try:
        return Path(run).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a NUL
        raise UsageError(f"{run} is not a run: {error}") from error


def _places(folders: Sequence[Path], into: str | None) -> list[Place]:
    """Where the report of each run is written, and what is asked of its network is kept."""
    for folder in folders:
        require_finished(folder)
    if into is not None and (reason := _refusal(Path(into), Path(into).parent)):
        raise UsageError(f"option --out: {into} cannot be written to: {reason}")
    if into is None:
        reports = [folder / "report" for folder in folders]
    elif len(folders) == 1:
        reports = [Path(into)]
    else:
        reports = [Path(into) / name for name in names_of(folders)]
    return [
        Place(folder, report, folder if into is None and _refusal(folder) is None else report)
        for folder, report in zip(folders, reports, strict=True)
    ]


def _require_ready(place: Place, believes: bool, rereads: bool, trusts: bool) -> None:
    """Raise `UsageError` for whatever would stop a report after minutes of work."""
    if rereads and (reason := _refusal(place.run)):
        raise UsageError(f"option --reread: {place.run} cannot be written to: {reason}")
    is_ours = place.report == place.run / "report"
    if is_ours and place.report.is_symlink():
        raise UsageError(f"{place.report} leads elsewhere; name another folder with --out FOLDER")
    if not is_ours and _holds_other_files(place.report):
        raise UsageError(
            f"option --out: {place.report} holds files that are no report; a new folder, an empty "
            "one, or one with an earlier report is allowed"
        )
    if reason := _refusal(place.report, *place.report.parents):
        hint = "; name another folder with --out FOLDER" if is_ours else ""
        option = "" if is_ours else "option --out: "
        raise UsageError(f"{option}{place.report} cannot be written to: {reason}{hint}")
    if believes or rereads:
        from pyro_meta.training.run import Run  # torch

        Run.open(place.run, trusts).config_yaml()


def _holds_other_files(folder: Path) -> bool:
    """Whether a folder is in use, and not for a report: its files might be replaced."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return bool(names) and names.isdisjoint(FIRST_FILES)


def _refusal(*folders: Path) -> str | None:
    """Why files cannot be made in the first of some folders that is there; None if they can."""
    try:
        for folder in folders:
            try:
                folder.stat()
            except FileNotFoundError:
                continue
            with tempfile.TemporaryFile(dir=folder):
                return None
        return os.strerror(errno.ENOENT)
    except (OSError, ValueError) as error:  # such as a name with a NUL
        return getattr(error, "strerror", None) or str(error)


def _findings(place: Place, rereads: bool, believes: bool, trusts: bool, tell: Tell) -> Findings:
    """Read a run, and ask its network what only that can say."""
    belief: dict[str, Any] | None = None
    name = place.run.resolve().name
    if rereads:
        tell(f"{name}: drawing from the posterior anew")
        from pyro_meta.posterior.readout import rereading  # torch

        with _profiled(), rereading(place.run, trusts):
            reading = Reading.of(place.run)
    else:
        tell(f"{name}: reading")
        reading = Reading.of(place.run)
    if believes:
        from pyro_meta.posterior.belief import believe  # torch
        from pyro_meta.training.run import Run

        run = Run.open(place.run, trusts)
        place.belief.mkdir(parents=True, exist_ok=True)
        with _profiled():
            belief = believe(run, lambda what: tell(f"{name}: {what}"), place.belief)
    return Findings(reading, belief)


@contextmanager
def _profiled() -> Iterator[None]:
    """Hard routes are dispatched by the profile of this machine."""
    from pyro_meta.attention.profile import of_this_machine, profiled  # torch

    with profiled(of_this_machine()):
        yield


class Comparison(NamedTuple):
    """Several runs beside each other, drawn once for all of their reports."""

    names: list[str]
    pairs: list[tuple[Pair, str]]
    """Each with who is better."""
    missing: list[str]
    """Why other pairs are not there."""
    rows: list[tuple[str, list[str]]]
    drawn: list[page.Drawn]
    pictures: dict[str, bytes]
    """Name -> PNG."""

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.names,
            "pairs": [vars(pair) for pair, _ in self.pairs],
            "not_compared": self.missing,
            "side_by_side": dict(self.rows),
        }


def _write(findings: Findings, comparison: Comparison | None, folder: Path, tell: Tell) -> None:
    """Write report.html, report.json and the pictures, each of them whole."""
    folder.mkdir(parents=True, exist_ok=True)
    name = findings.reading.name
    numbers = findings.to_json()
    if comparison is not None:
        numbers["comparison"] = comparison.to_json()
    write_whole(folder / "report.json", as_json(numbers))  # first: it says whose folder this is
    drawn = []
    for picture in PICTURES:
        tell(f"{name}: {picture.title}")
        path = folder / f"{picture.name}.png"
        if picture.applies(findings):
            figure = picture.draw(findings)
            save_png(figure, path)
            drawn.append(page.Drawn(picture, as_data_uri(figure), picture.says(findings)))
        else:
            path.unlink(missing_ok=True)  # of an earlier report
    save_png(routes.passage(findings.reading), folder / "passage.png")
    tell(f"{name}: the page")
    executed = findings.reading.summary.get("executed")
    rows = list(executed_rows(executed)) if executed else []
    html = page.render(findings, drawn, rows, comparison and comparison._asdict())
    for title, png in () if comparison is None else comparison.pictures.items():
        write_png(png, folder / f"{title}.png")
    write_whole(folder / "report.html", encodable(html))


def _compare(found: Sequence[Findings]) -> Comparison:
    """Several runs: paired differences, and every diagnostic side by side."""
    readings = [findings.reading for findings in found]
    pairs, missing = paired(readings)
    names = [printable(str(name)) for name in names_of([one.folder for one in readings])]
    settings = [
        Setting(
            short(name), "variant", [run.summary["cost_macs_hard"]], [run.summary["val_nll_hard"]]
        )
        for name, run in zip(names, readings, strict=True)
    ]
    figures = dict(_draw_comparison(settings, pairs))
    return Comparison(
        names=names,
        pairs=[(pair, position(pair)) for pair in pairs],
        missing=missing,
        rows=_side_by_side(found),
        drawn=[
            page.Drawn(picture, as_data_uri(figure), picture.says(found[0]))
            for picture, figure in figures.items()
        ],
        pictures={picture.name: as_png(figure) for picture, figure in figures.items()},
    )


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
            "marginal KL by layer, nats": _mean(layers, "marginal_kl"),
            "expected entropy, nats": _mean(layers, "expected"),
            "epistemic entropy, nats": _mean(layers, "epistemic"),
            "KL by layer, nats": _mean(layers, "kl"),
        }
        for line in findings.judgements():
            figures[line.question] = line.answer
        weights = findings.judged
        figures["k-hat below 0.7, given x"] = "" if weights is None else f"{weights.usable:.0%}"
        if found_single := findings.belief.get("one_token"):
            figures["effective share of draws, one token"] = (
                f"{found_single['efficiency_median']:.2f}"
            )
            figures["gap, share of the loss"] = f"{found_single['gap']['share_of_loss']:.2%}"
        for name, found_one in findings.calibrated().items():
            figures[f"calibration error, {name}"] = f"{found_one.error:.3f}"
        for name, curve in findings.selective().items():
            figures[f"risk-coverage area, by {name}"] = f"{curve.area:.3f}"
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)
    return [(name, values) for name, values in rows.items() if len(values) == len(found)]


def _mean(layers: list[dict[str, float]], name: str) -> str:
    return f"{sum(layer[name] for layer in layers) / len(layers):.3f}"


def _draw_comparison(
    settings: Sequence[Setting], pairs: Sequence[Pair]
) -> Iterator[tuple[Picture, Figure]]:
    points = [f"{one.label}: cost {one.cost:.3f}, loss {one.loss:.4f}" for one in settings]
    yield _picture(
        "pareto", "Loss against cost",
        "Down and to the left is better; the dashed line joins the runs that no other beats.",
        pareto(settings, "MACs of attention, hard routes (full attention = 1)"),
        "; ".join(points) + ".",
    )  # fmt: skip
    if pairs:
        widest = sorted(pairs, key=lambda pair: -abs(pair.mean))[:MOST_PAIRS]
        shown = [pair for pair in pairs if pair in widest]
        some = f" The {len(shown)} widest of {len(pairs)}." if len(shown) < len(pairs) else ""
        yield _picture(
            "differences", "Paired differences",
            "A line that does not touch 0 is a difference that other sequences would show too."
            + some,
            differences(shown), "; ".join(map(_say, shown)) + ".",
        )  # fmt: skip


def _say(pair: Pair) -> str:
    return f"{pair.ours} minus {pair.theirs}: {pair.mean:+.4f}, {position(pair)}"


def _picture(name: str, title: str, how: str, figure: Figure, says: str) -> tuple[Picture, Figure]:
    """A picture of several runs, which is drawn already."""
    return (
        Picture(name, "comparison", title, how, lambda findings: figure, lambda findings: says),
        figure,
    )


def _print_summary(findings: Findings, out: Console) -> None:
    reading = findings.reading
    summary = reading.summary
    out.print(Text(printable(str(reading.folder)), "bold"), soft_wrap=True)
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
    for name, figures in zip(reading.layer_names, reading.diversity(), strict=True):
        row = name.removeprefix("layer ").replace(", heads ", ".")  # short, for 80 columns
        table.add_row(row, *(f"{figures[key]:.3f}" for key in columns))
    out.print(table)
    out.print(
        f"{'' if int(reading.facts['groups']) == 1 else '0.1: layer 0, heads 1. '}"
        "N: effective number of mechanisms, exp H, of the load and of a token's posterior mean. "
        "Routing information, uncertainty (total = expected + epistemic) and KL(q||p): nats per "
        "token.",
        style="dim",
    )
    out.print("\nverdict: collapse, belief, use", style="italic")
    for line in findings.judgements():
        colour = "dim" if line.is_good is None else "green" if line.is_good else "bold red"
        parts = (f"  {line.question} ", (line.answer, colour), f": {printable(line.reason)}")
        out.print(Text.assemble(*parts), soft_wrap=True)
