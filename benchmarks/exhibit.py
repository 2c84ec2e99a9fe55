"""The exhibit: every prior beside every guide that may train with it, on one page.

    python benchmarks/exhibit.py --workers 2          or: make exhibit
    python benchmarks/exhibit.py --steps 20 --json /tmp/exhibit.json      options of train for all

All pairs are trained under the first seed of `benchmarks/studies/exhibit.yaml`, in OUT/all; the
best at equal cost then with its other seeds, in OUT/best. Each run gets its report, and bounds on
the evidence of a few validation sequences (OUT/figures). What is there is not made again: repeat
the command to go on.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from exhibit_figures import TEXTS, Figures, looked_at, threads_for
from exhibit_page import render
from exhibit_pairs import Pair, Pairs, find_pairs
from exhibit_rows import MOST_COST, Row, at_equal_cost, fill_gaps
from scripts import Parser, a_count, a_file, a_file_to_write, a_folder_to_write, a_whole

from pyro_meta import ablate
from pyro_meta.analysis.json_values import plain
from pyro_meta.folders import write_whole
from pyro_meta.terminal.commands import run_command
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.terminal.option_files import read_mapping
from pyro_meta.training.config import Config, read_options
from pyro_meta.training.options import layered
from pyro_meta.training.settings import DEFAULT_CLASSES


def study_parser(doc: str | None, name: str) -> Parser:
    """A parser of where a study of `benchmarks/studies` is read, and where it and its JSON go."""
    parser = Parser(doc)
    parser.add_argument("--out", type=a_folder_to_write, default=f"studies/{name}")
    parser.add_argument(
        "--json", type=a_file_to_write, default=f"benchmarks/results/current/{name}.json"
    )
    parser.add_argument("--workers", type=a_count, default=1, help="Runs at a time.")
    parser.add_argument("--study", type=a_file, default=f"benchmarks/studies/{name}.yaml")
    return parser


def run_study(
    study: dict[str, Any], pairs: Iterable[Pair], seeds: list[int], out: Path, words: Sequence[str]
) -> int:
    """Train pairs under seeds; the exit code of `pyro_meta.ablate`."""
    out.mkdir(parents=True, exist_ok=True)
    variants = {pair.name: pair.options for pair in pairs}
    asked = study | {"variants": variants, "seeds": seeds}
    path = out / "asked.yaml"
    write_whole(path, yaml.safe_dump(asked, sort_keys=False))
    return ablate.main([str(path), f"--out={out}", *words])


def collect(rows: dict[str, Row], out: Path, kept: Path, workers: int) -> None:
    """Take the figures of every finished run of a study into `rows`, by the names of pairs."""
    runs = json.loads((out / "study.json").read_text())["runs"]
    for run in runs:
        if run["state"] == "failed" and run["group"] in rows:
            rows[run["group"]].failed = f"seed {run['seed']}: {run['note']}"
    done = [run for run in runs if run["state"] == "finished" and run["group"] in rows]
    places = [(out / run["folder"], kept / f"{Path(run['folder']).name}.json") for run in done]
    for run, (figures, wrong) in zip(done, look_at(places, workers), strict=True):
        if wrong:
            rows[run["group"]].failed = wrong
        else:
            rows[run["group"]].figures[run["seed"]] = figures


def look_at(places: Sequence[tuple[Path, Path]], workers: int) -> Iterator[tuple[Figures, str]]:
    """The figures of runs in order, and what went wrong with each, some at a time.

    Parameters
    ----------
    places
        Of each run its folder, and the file that keeps its figures.
    workers
        How many at a time.
    """
    tasks = [(folder, kept, threads_for(workers)) for folder, kept in places]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for number, found in enumerate(pool.map(looked_at, tasks), start=1):
            name = places[number - 1][0].name
            print(f"looked at {number} of {len(places)} runs: {name}", file=sys.stderr)
            yield found


def write(rows: Sequence[Row], pairs: Pairs, facts: dict[str, Any], path: Path) -> None:
    """Write the JSON, and the page beside it."""
    fill_gaps(rows)
    contents = facts | {
        "rows": [row.to_json() for row in rows],
        "at_equal_cost": [row.pair.name for row in at_equal_cost(rows)],
        "most_cost": MOST_COST,
        "refused": [vars(one) for one in pairs.refused],
        "same": pairs.same,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    page = path.with_suffix(".html")
    write_whole(page, render(rows, pairs, facts | {"json": path.name}))
    write_measured(path, plain(contents), beside=[page])
    print(f"wrote {path} and {path.with_suffix('.html')}")


def _facts(study: dict[str, Any], config: Config, argv: Sequence[str]) -> dict[str, Any]:
    return {
        **measured_by(["python", "benchmarks/exhibit.py", *argv]),
        "study": study,
        "steps": config.steps,
        "kl_weight": config.kl.weight,
        "texts": TEXTS,
        "text": f"{config.data.corpus().description}.",
    }


def main(argv: list[str]) -> int:
    """Train, look and write; 0 when all pairs were trained, 1 when one failed, 130 stopped."""
    parser = study_parser(__doc__, "exhibit")
    parser.add_argument("--best", type=a_whole, default=6, help="Pairs that get all seeds.")
    options, words = parser.parse_known_args(argv)
    study = read_mapping(options.study, "study")
    base, (first, *others) = study["base"], study["seeds"]
    pairs = find_pairs([base])
    config = read_options([*layered([base], DEFAULT_CLASSES), *words])[0]
    rows = {pair.name: Row(pair) for pair in pairs.trained}
    facts, kept = _facts(study, config, argv), options.out / "figures"
    words = [*words, f"--workers={options.workers}"]
    code = run_study(study, pairs.trained, [first], options.out / "all", words)
    if code not in (0, 1):
        return code
    collect(rows, options.out / "all", kept, options.workers)
    write([*rows.values()], pairs, facts, options.json)
    best = [row for row in at_equal_cost([*rows.values()]) if not row.failed][: options.best]
    if not best or not others:
        return code
    further = run_study(study, [row.pair for row in best], others, options.out / "best", words)
    if further not in (0, 1):
        return further
    for row in best:
        row.is_best = True
    collect(rows, options.out / "best", kept, options.workers)
    write([*rows.values()], pairs, facts, options.json)
    return max(code, further)


if __name__ == "__main__":
    run_command(main)
