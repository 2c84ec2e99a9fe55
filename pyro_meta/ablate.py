"""`python -m pyro_meta.ablate`: many runs, their baselines, and what they show."""

import math
import os
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from pyro_meta.errors import UsageError
from pyro_meta.folders import locked, write_whole
from pyro_meta.study.description import KEYS, KINDS, Study
from pyro_meta.study.publishing import publish_study, require_published
from pyro_meta.terminal.commands import (
    INTERRUPTED,
    answer,
    command_parser,
    parse,
    run_command,
    with_values,
)
from pyro_meta.terminal.consoles import busy, console, printable
from pyro_meta.terminal.mistakes import option_strings
from pyro_meta.terminal.option_files import loads, read_mapping, typed
from pyro_meta.terminal.streams import keep_going
from pyro_meta.terminal.trust import foreign_classes, require_shipped_options
from pyro_meta.training.options import Options, at_home, layers_of, preset
from pyro_meta.training.settings import DEFAULT_CLASSES, known_options, train_parser

if TYPE_CHECKING:
    from pyro_meta.study.job import Job
    from pyro_meta.study.plan import Group
    from pyro_meta.study.results import Results
    from pyro_meta.study.shards import Shard
    from pyro_meta.study.tables import Table

DESCRIPTION = """Train every combination of a grid of options under several seeds, with the
baselines that each routed setting has to beat, and compare them in pairs. --grid.OPTION '[a,b]'
gives an option of python -m pyro_meta.train several values; --OPTION a holds for all runs. What has
finished is never trained again: repeat the command, or name only --out, to go on. --debug alone
shows where an error came from, and --debug true is the option of the runs."""
BRIEF = ("val_nll_hard", "val_nll_soft", "cost_macs_hard", "truth.answer_accuracy_hard")
PAIRED = (
    "; differences of hard losses are paired, below 0 is better, ! leaves out 0 (95%), (1) is of "
    "one seed"
)
SETTINGS = (
    "losses of each setting minus those of the reference, paired by seed and sequence: below 0 is "
    "better, and where the interval leaves out 0 it is told apart (95%)"
)
NAME_WIDTH = 10  # at least; all figures find room beside it in 80 columns


def main(argv: list[str]) -> int:
    """Run a study as the options say; 0 when all runs finished, 1 when one failed, 130 stopped."""
    parser, options_of_runs = _parser(), train_parser()
    names = [f"--{prefix}{name.removeprefix('--')}"
             for prefix in ("", "grid.") for name in option_strings(options_of_runs)]  # fmt: skip
    answer(parser, argv, [*DEFAULT_CLASSES, *(f"grid.{name}" for name in DEFAULT_CLASSES)], *names)
    words = with_values(_without_own_debug(argv), options_of_runs)
    own, grid, base = _sort_words(words, option_strings(parser))
    if "--out=" in own:
        raise UsageError("option --out: it is empty; a folder is needed")
    options = parse(parser, own)
    if options.workers < 1:
        raise UsageError(f"option --workers: {options.workers} given; at least 1 is allowed")
    limit = options.time_limit
    if limit is not None and not (limit > 0 and math.isfinite(limit)):
        raise UsageError(f"option --time_limit: {limit} given; minutes above 0 are allowed")
    _require_one_way(options)
    out = _folder(options.out, options.study)
    study = _read_study(options, out, grid, base)
    command = shlex.join(["python", "-m", "pyro_meta.ablate", *argv])
    return _run(study, options, out, command)


def _parser() -> ArgumentParser:
    parser = command_parser(
        "ablate",
        DESCRIPTION,
        has_own_debug=True,
        usage="python -m pyro_meta.ablate [STUDY.yaml] [--out STUDY] [--grid.OPTION '[a,b]'] "
        "[options] [options of train]",
    )
    parser.add_argument("study", nargs="?", type=str, help=f"YAML: {', '.join(KEYS)}.")
    parser.add_argument("--out", type=Path, help="Folder of the study (default: studies/NAME).")
    parser.add_argument("--workers", type=int, default=1, help="Runs to train at a time.")
    parser.add_argument(
        "--time_limit",
        type=float,
        metavar="MINUTES",
        help="What each run may take: it then saves, and the next one begins (default: no limit).",
    )
    parser.add_argument("--seeds", type=int | list[int], help="How many seeds, or which ones.")
    parser.add_argument(
        "--baselines",
        type=bool | list[str],
        help=f"true, false, or some of {', '.join(KINDS[:-1])}.",
    )
    parser.add_argument(
        "--reference",
        type=str | None,
        metavar="SETTING",
        help="The setting that all others of the grid are compared to, in pairs: its name, as "
        "--dry_run lists it (default: the first).",
    )
    parser.add_argument(
        "--cost",
        type=Literal["macs", "nominal", "model"],  # the keys of COSTS
        default="macs",
        help="Cost to compare at: of attention, at MACs or nominal, or MACs of the whole model.",
    )
    parser.add_argument(
        "--trust",
        type=bool,
        default=False,
        help="Let the study.yaml of --out import classes that pyro_meta does not ship: their code "
        "is run (default: false).",
    )
    parser.add_argument(
        "--shard",
        type=str | None,
        metavar="i/n",
        help="Train share i of n, such as 2/4: for shards that share the folder of the study, each "
        "begun by itself, by any scheduler (default: all runs).",
    )
    parser.add_argument(
        "--launcher",
        type=Literal["here", "slurm", "local"],
        default="here",
        help="Where to train: here, or as --workers jobs of slurm, or local ones of this machine, "
        "both through submitit. The command then ends at once.",
    )
    parser.add_argument(
        "--launcher_options",
        type=dict[str, Any] | None,
        help="What submitit is to ask for, such as '{timeout_min: 600, slurm_partition: gpu}' "
        "(default: a day for each job).",
    )
    parser.add_argument(
        "--publish",
        type=Path | None,
        metavar="FOLDER",
        help="When the study ends, or is reported, copy its tables, pictures and study.yaml to "
        "FOLDER/NAME, NAME being that of --out, and write its entry in FOLDER/index.json.",
    )
    parser.add_argument("--report_only", type=bool, default=False, help="Train nothing.")
    parser.add_argument(
        "--dry_run",
        type=bool,
        default=False,
        help="List the runs, time a few steps of each setting, say how many hours all will take, "
        "and stop.",
    )
    return parser


def _require_one_way(options: Namespace) -> None:
    """Raise `UsageError` for ways of running a study that do not go together."""
    is_elsewhere = options.launcher != "here"
    for name, is_given in (("shard", options.shard is not None), ("launcher", is_elsewhere)):
        if is_given and options.report_only:
            raise UsageError(f"option --{name}: it is given beside --report_only, and trains")
    if is_elsewhere and options.shard is not None:
        raise UsageError(
            f"option --shard: given beside --launcher {options.launcher}, which gives one to each "
            "of --workers jobs"
        )
    if options.publish is not None and options.dry_run:
        raise UsageError("option --publish: it does nothing with --dry_run")
    if options.launcher_options is not None and not is_elsewhere:
        raise UsageError("option --launcher_options: it does nothing without --launcher slurm")


def _run(study: Study, options: Namespace, out: Path, command: str) -> int:
    """Look whether all that is asked for can be done, then do it."""
    from pyro_meta.study.plan import expand  # what needs PyTorch comes once words are understood
    from pyro_meta.study.runner import study_lock
    from pyro_meta.study.shards import Shard

    if options.publish is not None:
        require_published(options.publish, out)
    shard = None if options.shard is None else Shard.read(options.shard)
    shown, errors = console(), console(stderr=True)
    with busy(errors, "reading the options of every run"):
        groups = expand(study)
    if options.dry_run:
        jobs = _jobs(groups) if shard is None else shard.of(_jobs(groups))
        _list(groups, jobs, shown)
        with busy(errors, "preparing the text") as tell:
            _prepare(groups, tell)
        with busy(errors, "timing a few steps of every setting"):
            shown.print(f"{len(jobs)} runs, {_hours(jobs, out)}", soft_wrap=True)
        return 0
    _require_place(out)
    if not options.report_only:
        with busy(errors, "preparing the text") as tell:
            _prepare(groups, tell)
    _make(out)
    if options.launcher != "here":
        with study_lock(out):
            write_whole(out / "study.yaml", study.as_yaml())
        _launch(groups, study, options, out, shown)
        return 0
    with study_lock(out, shard, options.report_only), keep_going():  # whether anybody looks or not
        return _train(groups, study, options, out, shard, command, shown, errors)


def _train(
    groups: "list[Group]",
    study: Study,
    options: Namespace,
    out: Path,
    shard: "Shard | None",
    command: str,
    shown: Console,
    errors: Console,
) -> int:
    """Train what is missing, compare, and show what came of it."""
    from pyro_meta.study.job import State
    from pyro_meta.study.live import watching
    from pyro_meta.study.results import Results
    from pyro_meta.study.runner import Interrupted, execute
    from pyro_meta.study.shelf import Shelf, as_they_are, place_known

    whole = _jobs(groups)
    jobs = whole if shard is None else shard.of(whole)
    write_whole(out / "study.yaml", study.as_yaml())

    def report() -> Results:
        with locked(out / ".results.lock", busy="", waits=True):  # shards may end at once
            found = whole if shard is None else as_they_are(whole, jobs, out / "runs")
            results = Results(groups, found, options.cost)
            results.write(out, command, study.as_yaml())
        return results

    is_interrupted = False
    with watching(jobs, errors) as watch:

        def finished(job: "Job") -> None:
            watch.tell(job)
            report()

        shelf = Shelf(out / "runs")
        for line in shelf.unread:
            watch.say(line)
        place_known(jobs, shelf)
        if options.report_only:
            for job in jobs:
                if job.damage is not None:
                    watch.say(f"{job.name} is not whole, and does not count: {job.damage}")
        else:
            try:
                execute(
                    jobs, shelf, out / "logs", options.workers, watch, finished, options.time_limit
                )
            except Interrupted:
                is_interrupted = True
    results = report()
    if is_interrupted:
        _show_way_on(jobs, study, options.publish, out, shard, shown)
        return INTERRUPTED
    _show(results, out, shown)
    if options.publish is not None:
        _publish(results, out, options.publish, shown)
    failed = [job for job in jobs if job.state == State.FAILED]
    for job in failed:
        shown.print(f"[red]failed[/red]: {escape(f'{job.name}: {job.note}')}", soft_wrap=True)
    return 1 if failed else 0


# -- what is asked for -----------------------------------------------------------------------


def _without_own_debug(argv: Sequence[str]) -> list[str]:
    """The words but --debug alone, which is of this command and no option of the runs."""
    after = [*argv, ""][1:]
    return [
        word for word, next_word in zip(argv, after, strict=True)
        if word != "--debug" or next_word.lower() in ("true", "false")
    ]  # fmt: skip


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
        is_alone = name in ("report_only", "dry_run", "trust", "help") or name.endswith(".help")
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
            base += _layers(Path(value), name)
        elif name == "preset":
            base += _layers(preset(value), name)
        else:
            base.append({name: typed(at_home(value))})
    return own, grid, base


def _layers(path: Path, option: str) -> list[Options]:
    """The options of a file, after those of the preset that it names."""
    layers = layers_of(path, f"option --{option}", DEFAULT_CLASSES, known_options())
    return [options for _, options in layers]


def _yaml(text: str, name: str) -> Any:
    return loads(text, f"option --{name}: {text[:60]}")


def _folder(out: Path | None, study: str | None) -> Path:
    if out is None and study is None:
        raise UsageError("option --out: a folder is needed, unless a STUDY.yaml gives its name")
    return out or Path("studies") / Path(str(study)).stem


def _read_study(options: Any, out: Path, grid: dict[str, Any], base: list[Options]) -> Study:
    """The study of the file, else of the folder, with what the command line adds to it."""
    source = Path(options.study) if options.study else out / "study.yaml"
    is_described = bool(grid or base or options.seeds is not None or options.baselines is not None)
    given: dict[str, Any] = {}
    is_gone_on_with = not options.study and not is_described
    if is_gone_on_with and not source.is_file():
        raise UsageError(
            f"option --out: {out} has no study.yaml to go on with; a new study needs a STUDY.yaml, "
            "or options such as --grid.prior or --seeds"
        )
    if options.study or is_gone_on_with:
        given = read_mapping(source, "study")
    layers = given.get("base") or {}
    given["base"] = [*(layers if isinstance(layers, list) else [layers]), *base]
    if grid:
        given["grid"] = {**(given.get("grid") or {}), **grid}
    if options.seeds is not None and isinstance(given.get("baselines"), dict):
        given["baselines"] = {**given["baselines"], "seeds": None}  # all those of the command line
    for name in ("seeds", "baselines", "reference"):
        if (value := getattr(options, name)) is not None:
            given[name] = value
    study = Study.read(given, str(source) if options.study else "study")
    if is_gone_on_with and not options.trust:  # it may be somebody else's
        require_shipped_options(_options_of(study), source, "study")
    return study


def _options_of(study: Study) -> list[Options]:
    """All options that a study names."""
    return [*study.base, study.grid, *study.variants.values(), *study.baselines.also.values()]


def _require_place(out: Path) -> None:
    """Raise `UsageError`, before long work, where a study's folder cannot be made or written."""
    try:
        nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
        is_folder = nearest.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"option --out: {out}: {error.strerror}") from error
    if not is_folder:
        raise UsageError(f"option --out: {nearest} is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"option --out: {nearest} cannot be written")


def _make(out: Path) -> None:
    """Make the folders of a study; raises `UsageError`."""
    for folder in (out / "runs", out / "logs"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"option --out: cannot make {folder}: {error.strerror}") from error


def _jobs(groups: "list[Group]") -> "list[Job]":
    """The runs seed by seed, so that a look in between compares like with like."""
    from pyro_meta.study.job import Job

    seeds = dict.fromkeys(seed for group in groups for seed in group.seeds)
    return [Job(group, seed) for seed in seeds for group in groups if seed in group.seeds]


def _prepare(groups: "list[Group]", told: Callable[[str], object]) -> None:
    """Prepare every text once, and refuse one that is too short, before the first run."""
    from pyro_meta.data.preparing import telling

    corpora: dict[str, Any] = {}
    for group in groups:
        key = yaml.safe_dump(yaml.safe_load(group.config_yaml)["data"])
        if key not in corpora:
            with telling(told):
                corpora[key] = group.config.data.corpus()
        corpora[key].require(group.config.context)


# -- what is shown ---------------------------------------------------------------------------


def _list(groups: "list[Group]", jobs: "list[Job]", shown: Console) -> None:
    reference = next((group.reference for group in groups if group.reference), None)
    for group in groups:
        if seeds := ", ".join(str(job.seed) for job in jobs if job.group is group):
            role = "; the reference" if group is reference else ""
            line = f"{escape(printable(group.label))}  [dim]seeds {seeds}{role}[/dim]"
            shown.print(line, highlight=False, soft_wrap=True)


def _hours(jobs: "list[Job]", out: Path) -> str:
    """How long the runs will take, but for what of them is there already, in words."""
    from pyro_meta.study.estimate import seconds_of
    from pyro_meta.study.job import State
    from pyro_meta.study.shelf import Shelf, place_known

    groups = list({id(job.group): job.group for job in jobs}.values())
    if (out / "runs").is_dir():
        place_known(jobs, Shelf(out / "runs"))
    left = [job for job in jobs if job.state != State.FINISHED]
    finished = f"{len(jobs) - len(left)} finished; " if len(left) < len(jobs) else ""
    is_busy = (
        hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    )  # before the timing is the load
    seconds = seconds_of(groups) if left else {}
    hours = sum(seconds[job.group.label] * (1 - job.step / job.steps) for job in left) / 3600
    beside = "; timed beside other work, without which they take less" if is_busy and left else ""
    return f"{finished}about {hours:.2g} hours on this machine, one after the other{beside}"


def _words_on(study: Study, out: Path) -> list[str]:
    """The words behind `python` that go on with a study."""
    words = ["-m", "pyro_meta.ablate", "--out", str(out)]
    return [*words, "--trust"] if any(foreign_classes(_options_of(study))) else words


def _launch(
    groups: "list[Group]", study: Study, options: Namespace, out: Path, shown: Console
) -> None:
    """Hand in a job for each shard, and say how to follow them."""
    from pyro_meta.study.cluster import submit
    from pyro_meta.study.shards import Shard

    count = min(options.workers, len(_jobs(groups)))
    words = [*_words_on(study, out), f"--cost={options.cost}"]
    if options.time_limit is not None:
        words.append(f"--time_limit={options.time_limit:g}")
    if options.publish is not None:
        words.append(f"--publish={options.publish.absolute()}")
    shards = [Shard(index, count) for index in range(1, count + 1)]
    commands = [[*words, f"--shard={shard}"] for shard in shards]
    logs = out / "cluster"
    ids = submit(options.launcher, logs, commands, options.launcher_options or {})
    follow = shlex.join(["python", *_words_on(study, out), "--report_only"])
    shown.print(
        f"{count} jobs: {', '.join(ids)}; what they say is in {escape(str(logs))}, and what has "
        f"finished is shown by {escape(follow)}",
        soft_wrap=True,
    )


def _show_way_on(
    jobs: "list[Job]",
    study: Study,
    folder: Path | None,
    out: Path,
    shard: "Shard | None",
    shown: Console,
) -> None:
    """How to go on with a study that was interrupted."""
    words = ["python", *_words_on(study, out)]
    if shard is not None:
        words += ["--shard", str(shard)]
    if folder is not None:
        words += ["--publish", str(folder)]
    cut_short = [job.name for job in jobs if job.is_cut_short]
    saved = "interrupted" if cut_short else "interrupted and saved"
    shown.print(f"{saved}; go on with {escape(shlex.join(words))}", soft_wrap=True)
    for name in cut_short:
        shown.print(f"{escape(name)} goes on from its last checkpoint", soft_wrap=True)


def _show(results: "Results", out: Path, shown: Console) -> None:
    from pyro_meta.study.results import TO

    if results.results:
        table = results.table(BRIEF, digits=3)
        shown.print(terminal_table(table), crop=False)
        paired = PAIRED if set(table.headings) & set(TO) else ""
        shown.print(f"* no setting on the same text beats it in loss and cost{paired}", style="dim")
    if results.of_settings:
        shown.print(terminal_table(results.settings()), crop=False)
        shown.print(SETTINGS, style="dim")
    for problem in results.problems:
        shown.print(escape(problem), soft_wrap=True)
    for name in results.files():
        if (out / name).exists():
            shown.print(f"wrote {escape(str(out / name))}", soft_wrap=True)


def _publish(results: "Results", out: Path, folder: Path, shown: Console) -> None:
    """Copy what the study has left to a folder of results."""
    names = [name for name in (*results.files(), "study.yaml") if (out / name).exists()]
    with locked(out / ".results.lock", busy="", waits=True):  # a shard may be writing them
        publish_study(folder, out, names)
    shown.print(f"published in {escape(str(folder / out.resolve().name))}", soft_wrap=True)


def terminal_table(table: "Table") -> RichTable:
    """A table whose figures stay whole: where room is short they stand above their spread, and
    names are broken."""
    shown = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    first, *_ = headings = [printable(heading) for heading in table.headings]
    shown.add_column(Text(first), min_width=NAME_WIDTH, overflow="fold")
    for heading, *cells in list(zip(headings, *table.rows, strict=True))[1:]:
        longest = max(len(word) for cell in (heading, *cells) for word in cell.split())
        shown.add_column(Text(heading), justify="right", min_width=longest)
    for row in table.rows:
        shown.add_row(*(escape(printable(cell)) for cell in row))
    return shown


if __name__ == "__main__":
    run_command(main)
