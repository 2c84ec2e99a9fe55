"""The report of runs: what a router does, and whether to believe it; torch only where asked."""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from pyro_meta.analysis import markdown, of_run, side_by_side
from pyro_meta.analysis import page as html
from pyro_meta.analysis.document import Document, Drawn
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.json_values import as_json, encodable
from pyro_meta.analysis.plots import PICTURES, drawing
from pyro_meta.analysis.plots.style import styled
from pyro_meta.analysis.reading import Reading, require_finished
from pyro_meta.analysis.runs_in_pairs import names_of
from pyro_meta.analysis.side_by_side import Shown, in_pairs, pictures
from pyro_meta.errors import UsageError
from pyro_meta.folders import write_together
from pyro_meta.posterior.printed import print_summary
from pyro_meta.terminal.consoles import console, printable
from pyro_meta.terminal.progress import Tell, step_by_step

Form = Literal["html", "md", "json"]
"""Formats of a report."""
STEPS_OF_BELIEF = 6
FIRST_FILES = {"report.json", "belief.json"}
"""What a report writes before all else; a folder without them is not ours."""


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
    form: Form = "html",
) -> None:
    """Print the routing summary of each run and write its report.

    Parameters
    ----------
    runs
        Folders of runs; of several there is a page side by side, too.
    believes
        Hold the guide against exact posteriors, with the checkpoint.
    rereads
        Write posterior.nc anew from the checkpoint first.
    into
        The folder to write to; of several runs it has the page side by side, and below it a
        folder of each. By default RUN/report, and side by side in that of the first.
    trusts
        Import the classes that a run names, also those that pyro_meta does not ship.
    form
        How it is written. report.json is there in any case.

    Raises
    ------
    UsageError
        A folder is no finished run, is damaged, or cannot be written to.
    """
    out, err = console(), console(stderr=True)
    places = _places(list({_resolved(run): Path(run) for run in runs}.values()), into)
    home = places[0].report if into is None else Path(into)
    for place in places:
        _require_ready(place, believes, rereads, trusts)
    if len(places) > 1:
        _require_own(home, "comparison", into)
    pictured = len(PICTURES) * (form != "json")
    steps = len(places) * (1 + rereads + STEPS_OF_BELIEF * believes + pictured + 1)
    with step_by_step(steps, err) as tell:
        found = [_findings(place, rereads, believes, trusts, tell) for place in places]
        with styled():
            documents = []
            for findings, place in zip(found, places, strict=True):
                documents.append(_document(findings, form, tell))
                tell(f"{findings.reading.name}: writing")
                _write(findings, documents[-1], place.report, form)
            if len(places) > 1:
                _write_comparison(found, documents, places, home, form)
    for findings, place in zip(found, places, strict=True):
        print_summary(findings, out)
        _tell_of(place.report / f"report.{form}", out)
    if len(places) > 1:
        _tell_of(home / f"comparison.{form}", out)


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


def _require_own(home: Path, name: str, into: str | None) -> None:
    """Raise `UsageError` where the page of several runs would replace files of somebody else."""
    if into is None or (home / f"{name}.json").exists():
        return
    theirs = [f"{name}.{form}" for form in ("html", "md")] + ["pareto.png", "differences.png"]
    if there := [one for one in theirs if (home / one).exists()]:
        raise UsageError(
            f"option --out: {home} holds {', '.join(there)} of something else; another folder is "
            "allowed"
        )


def _tell_of(path: Path, out: Console) -> None:
    out.print(Text(f"wrote {printable(str(path))}"), soft_wrap=True)


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


def _document(findings: Findings, form: Form, tell: Tell) -> Document:
    """What is said of a run, with its pictures as far as the format has any."""
    if form == "json":
        drawn = list(drawing.said(findings, PICTURES))
    else:
        drawn = list(drawing.drawn(findings, PICTURES, form == "html", tell))
    return of_run.document(findings, drawn, drawing.passage(findings, form != "json"))


def _write(findings: Findings, document: Document, folder: Path, form: Form) -> None:
    """Write report.json, the page and the pictures: all of them, or none."""
    numbers = findings.to_json() | document.to_json()
    drawn = [*document.parts("picture"), *(one.picture for one in document.parts("passage"))]
    _write_all(folder, "report", numbers, document, drawn, form)
    if form != "json":
        for left in {picture.name for picture in PICTURES} - {one.name for one in drawn}:
            (folder / f"{left}.png").unlink(missing_ok=True)  # of an earlier report


def _write_all(
    folder: Path,
    name: str,
    numbers: dict[str, Any],
    document: Document,
    drawn: Sequence[Drawn],
    form: Form,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, str | bytes] = {
        folder / f"{name}.json": as_json(numbers)  # first: it says whose folder this is
    }
    if form != "json":
        files |= {folder / f"{one.name}.png": one.png for one in drawn}
        page = html.render(document) if form == "html" else markdown.render(document)
        files[folder / f"{name}.{form}"] = encodable(page)
    write_together(files)


def _write_comparison(
    found: Sequence[Findings], documents: Sequence[Document], places: Sequence[Place],
    home: Path, form: Form,
) -> None:  # fmt: skip
    """Write the page of several runs, side by side."""
    names = [printable(str(name)) for name in names_of([place.run for place in places])]
    pairs, missing = in_pairs(found)
    drawn = [] if form == "json" else [*pictures(names, found, pairs, form == "html")]
    folders = [_address(place.report, home) for place in places]
    runs = [
        Shown(name, findings, document, "" if form == "json" else f"{folder}report.{form}", folder)
        for name, findings, document, folder in zip(names, found, documents, folders, strict=True)
    ]
    document = side_by_side.document(runs, drawn, pairs, missing)
    numbers = {
        "runs": names,
        "pairs": [vars(pair) for pair in pairs],
        "not_compared": missing,
        "reports": [
            findings.to_json() | own.to_json()
            for findings, own in zip(found, documents, strict=True)
        ],
    } | document.to_json()
    _write_all(home, "comparison", numbers, document, drawn, form)


def _address(folder: Path, home: Path) -> str:
    """Of a folder, from a page in another one; empty for that itself."""
    between = os.path.relpath(folder.resolve(), home.resolve())
    return "" if between == "." else quote(os.fsencode(between)) + "/"
