"""`python -m pyro_meta.ablate`: many runs, their baselines, and what they show."""

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from pyro_meta.errors import UsageError
from pyro_meta.folders import write_whole
from pyro_meta.study.description import Study
from pyro_meta.terminal.commands import (
    INTERRUPTED,
    answer,
    command_parser,
    parse,
    run_command,
    with_values,
)
from pyro_meta.terminal.mistakes import option_strings
from pyro_meta.training.options import Options, preset, read_file
from pyro_meta.training.settings import DEFAULT_CLASSES, train_parser

if TYPE_CHECKING:
    from pyro_meta.study.plan import Group
    from pyro_meta.study.results import Results, Table
    from pyro_meta.study.runner import Job

DESCRIPTION = """Train every combination of a grid of options under several seeds, with the
baselines that each routed setting has to beat, and compare them. Every other option is one of
python -m pyro_meta.train and holds for all runs. What has finished is never trained again: repeat
the command, or name only --out, to go on."""
BRIEF = ("val_nll_hard", "val_nll_soft", "cost_macs_hard", "truth.answer_accuracy_hard")
NAME_WIDTH = 10  # at least; all figures find room beside it in 80 columns


def main(argv: list[str]) -> int:
    """Run a study as the options say; 0 when all runs finished, 1 when one failed, 130 stopped."""
    parser, options_of_runs = _parser(), train_parser()
    names = [f"--{prefix}{name.removeprefix('--')}"
             for prefix in ("", "grid.") for name in option_strings(options_of_runs)]  # fmt: skip
    answer(parser, argv, [*DEFAULT_CLASSES, *(f"grid.{name}" for name in DEFAULT_CLASSES)], *names)
    own, grid, base = _sort_words(with_values(argv, options_of_runs), option_strings(parser))
    options = parse(parser, own)
    if options.workers < 1:
        raise UsageError(f"option --workers: {options.workers} given; at least 1 is allowed")
    out = _folder(options.out, options.study)
    study = _read_study(options, out, grid, base)
    command = shlex.join(["python", "-m", "pyro_meta.ablate", *argv])
    return _run(study, options, out, command)


def _parser() -> ArgumentParser:
    parser = command_parser(
        "ablate",
        DESCRIPTION,
        usage="python -m pyro_meta.ablate [STUDY.yaml] [--out STUDY] [--grid.OPTION '[a,b]'] "
        "[options] [options of train]",
    )
    parser.add_argument("study", nargs="?", type=str, help="YAML: base, grid, variants, seeds, ...")
    parser.add_argument("--out", type=Path, help="Folder of the study (default: studies/NAME).")
    parser.add_argument("--workers", type=int, default=1, help="Runs to train at a time.")
    parser.add_argument("--seeds", type=int | list[int], help="How many seeds, or which ones.")
    parser.add_argument(
        "--baselines",
        type=bool | list[str],
        help="true, false, or some of mechanisms, fixed, random, prior, point.",
    )
    parser.add_argument(
        "--cost",
        type=Literal["macs", "nominal", "model"],  # the keys of COSTS
        default="macs",
        help="Cost to compare at: of attention, at MACs or nominal, or MACs of the whole model.",
    )
    parser.add_argument("--report_only", type=bool, default=False, help="Train nothing.")
    parser.add_argument("--dry_run", type=bool, default=False, help="List the runs and stop.")
    return parser


def _run(study: Study, options: Namespace, out: Path, command: str) -> int:
    """Train what is missing, compare, and show what came of it."""
    from pyro_meta.study.live import watching  # what needs PyTorch comes once words are understood
    from pyro_meta.study.plan import expand
    from pyro_meta.study.results import Results
    from pyro_meta.study.runner import Interrupted, Shelf, State, execute, place_known, study_lock

    console, shown = Console(), Console(stderr=True)
    with shown.status("reading the options of every run"):
        groups = expand(study)
    jobs = _jobs(groups)
    if options.dry_run:
        _list(groups, console)
        return 0
    if not options.report_only:
        with shown.status("preparing the text"):
            _prepare(groups)
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"option --out: cannot make {out}: {error.strerror}") from error
    with study_lock(out):
        write_whole(out / "study.yaml", study.as_yaml())

        def report(job: "Job | None" = None) -> Results:
            results = Results(groups, jobs, options.cost)
            results.write(out, command, study.as_yaml())
            return results

        if options.report_only:
            place_known(jobs, Shelf(out / "runs"))
        else:
            try:
                with watching(jobs, shown) as (show, tell):

                    def finished(job: "Job") -> None:
                        tell(job)
                        report()

                    execute(jobs, out, options.workers, show, finished)
            except Interrupted:
                report()
                console.print(
                    "interrupted and saved; go on with "
                    f"{escape(f'python -m pyro_meta.ablate --out {out}')}",
                    soft_wrap=True,
                )
                return INTERRUPTED
        results = report()
    _show(results, out, console)
    failed = [job for job in jobs if job.state == State.FAILED]
    for job in failed:
        console.print(f"[red]failed[/red]: {escape(f'{job.name}: {job.note}')}", soft_wrap=True)
    return 1 if failed else 0


# -- what is asked for -----------------------------------------------------------------------


def _sort_words(
    argv: Sequence[str], of_command: Collection[str]
) -> tuple[list[str], dict[str, Any], list[Options]]:
    """Words of this command, axes of the grid, and layers of training options."""
    own: list[str] = []
    grid: dict[str, Any] = {}
    base: list[Options] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            own.append(word)
            continue
        is_alone = name in ("report_only", "dry_run", "help") or name.endswith(".help")
        if not has_value and words and not words[0].startswith("--"):
            if not is_alone or words[0] in ("true", "false"):
                value, has_value = words.pop(0), "="
        if not has_value and not is_alone:
            raise UsageError(f"option --{name}: a value is missing")
        if f"--{name}" in of_command:
            is_switch = not has_value and name != "help"
            own.append(f"--{name}{has_value}{value}" + "=true" * is_switch)
        elif name.startswith("grid."):
            grid[name.removeprefix("grid.")] = _yaml(value, name)
        elif name == "config":
            base.append(read_file(Path(value)))
        elif name == "preset":
            base.append(read_file(preset(value)))
        else:
            base.append({name: value})
    return own, grid, base


def _yaml(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"option --{name}: {text!r} is no list such as [a,b]") from error


def _folder(out: Path | None, study: str | None) -> Path:
    if out is None and study is None:
        raise UsageError("option --out: a folder is needed, unless a STUDY.yaml gives its name")
    return out or Path("studies") / Path(str(study)).stem


def _read_study(options: Any, out: Path, grid: dict[str, Any], base: list[Options]) -> Study:
    """The study of the file, else of the folder, with what the command line adds to it."""
    source = Path(options.study) if options.study else out / "study.yaml"
    is_described = bool(grid or base or options.seeds is not None or options.baselines is not None)
    given: dict[str, Any] = {}
    if options.study or (source.is_file() and not is_described):
        given = dict(read_file(source))
    layers = given.get("base") or {}
    given["base"] = [*(layers if isinstance(layers, list) else [layers]), *base]
    if grid:
        given["grid"] = {**(given.get("grid") or {}), **grid}
    if options.seeds is not None and isinstance(given.get("baselines"), dict):
        given["baselines"] = {**given["baselines"], "seeds": None}  # all those of the command line
    for name in ("seeds", "baselines"):
        if (value := getattr(options, name)) is not None:
            given[name] = value
    return Study.read(given, str(source) if options.study else "study")


def _jobs(groups: "list[Group]") -> "list[Job]":
    """The runs seed by seed, so that a look in between compares like with like."""
    from pyro_meta.study.runner import Job

    seeds = dict.fromkeys(seed for group in groups for seed in group.seeds)
    return [Job(group, seed) for seed in seeds for group in groups if seed in group.seeds]


def _prepare(groups: "list[Group]") -> None:
    """Prepare every text once, and refuse one that is too short, before the first run."""
    corpora: dict[str, Any] = {}
    for group in groups:
        key = yaml.safe_dump(yaml.safe_load(group.config_yaml)["data"])
        if key not in corpora:
            corpora[key] = group.config.data.corpus()
        corpora[key].require(group.config.context)


# -- what is shown ---------------------------------------------------------------------------


def _list(groups: "list[Group]", console: Console) -> None:
    for group in groups:
        seeds = ", ".join(map(str, group.seeds))
        line = f"{escape(group.label)}  [dim]seeds {seeds}[/dim]"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{sum(len(group.seeds) for group in groups)} runs")


def _show(results: "Results", out: Path, console: Console) -> None:
    if results.results:
        console.print(terminal_table(results.table(BRIEF, digits=3)), crop=False)
        console.print(
            "* no setting on the same text beats it in loss and cost; differences of hard losses "
            "are paired, below 0 is better, ! leaves out 0 (95%), (1) is of one seed",
            style="dim",
        )
    for name in ("study.md", "study.csv", "study.json", *results.pictures()):
        if (out / name).exists():
            console.print(f"wrote {escape(str(out / name))}", soft_wrap=True)


def terminal_table(table: "Table") -> RichTable:
    """A table whose figures stay whole: where room is short they stand above their spread, and
    names are broken."""
    shown = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column(table.headings[0], min_width=NAME_WIDTH, overflow="fold")
    for heading, *cells in list(zip(table.headings, *table.rows, strict=True))[1:]:
        longest = max(len(word) for cell in (heading, *cells) for word in cell.split())
        shown.add_column(heading, justify="right", min_width=longest)
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown


if __name__ == "__main__":
    run_command(main)
