"""Enter the results that have no entry, or another one, into the index of those that stand.

    python benchmarks/record.py
    python benchmarks/record.py --command pretrained/study.json "python benchmarks/..."

Studies, scripts and `python -m pyro_meta.bench` write their own entries. This is for what was
brought here by hand: files of another machine, a note that was added, a picture that was drawn
again. What a JSON does not say of its making is taken from history: commit and date of the commit
that last changed it. Entries whose files have gone leave the index.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from results_read import CURRENT
from scripts import Parser, a_folder, run_script

from pyro_meta import results_index
from pyro_meta.checksums import sha256
from pyro_meta.errors import UsageError
from pyro_meta.results_index import Entry
from pyro_meta.study.publishing import made_by
from pyro_meta.terminal.checkout import commit, git
from pyro_meta.terminal.measured import entry_of

STUDY = ("study.json", "study.csv", "study.md", "study.yaml", "pareto*.png")


def results(folder: Path) -> dict[str, list[str]]:
    """Name of each result -> its files, the JSON first.

    Raises
    ------
    UsageError
        A file belongs to none.
    """
    found: dict[str, list[Path]] = {}
    studies = {path.parent for path in folder.rglob("study.yaml")}
    for study in studies:
        paths = [path for pattern in STUDY for path in sorted(study.glob(pattern))]
        found[study.relative_to(folder).as_posix()] = paths
    for path in folder.rglob("*.json"):
        if path.name == results_index.NAME or (path.parent in studies and path.name == STUDY[0]):
            continue
        pictures = sorted([*path.parent.glob(f"{path.stem}_*.png"), *path.parent.glob("*.html")])
        beside = [one for one in pictures if one.suffix == ".png" or one.stem == path.stem]
        found[path.relative_to(folder).as_posix()] = [path, *beside]
    known = {path for paths in found.values() for path in paths}
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and path not in known | {folder / results_index.NAME}:
            raise UsageError(f"{path} belongs to no study.yaml, and to no JSON")
    return {
        name: [path.relative_to(folder).as_posix() for path in paths]
        for name, paths in sorted(found.items())
    }


def entry(folder: Path, name: str, files: list[str], command: str | None) -> Entry:
    """What made a result, as far as its JSON and history tell.

    Raises
    ------
    UsageError
        The JSON is none of figures.
    """
    path = folder / files[0]
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        is_study = files[0] != name
        found = made_by(contents) if is_study else entry_of(contents, contents)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UsageError(f"{path} is no JSON of figures ({why})") from error
    code, date = changed(path)
    return replace(
        found,
        commit=found.commit or code,
        date=found.date or date,
        command=command or found.command,
    )


def changed(path: Path) -> tuple[str | None, str]:
    """The commit that a file was last changed in, wherever it lay then, and when."""
    if git(path.parent, "status", "--porcelain", "--", path.name) == "":
        words = ["--follow", "-M100%", "--diff-filter=AM"]  # moves change nothing
        said = git(path.parent, "log", "-1", *words, "--format=%H %cI", "--", path.name)
        if said:
            code, date = said.split()
            return code, date
    return commit(path.parent), datetime.now(UTC).isoformat(timespec="seconds")


def record(folder: Path, commands: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Bring the index up to what is there; the names whose entries were written or removed.

    Raises
    ------
    UsageError
        A file belongs to no result, or a command is of none.
    """
    there, said = results(folder), dict(commands)
    if unknown := [name for name in said if name not in there]:
        raise UsageError(f"option --command: {unknown[0]} given; a result in {folder} is allowed")
    known = results_index.read(folder)
    differing = {
        name
        for name, files in there.items()
        if name in said
        or name not in known
        or known[name].files != {path: sha256(folder / path) for path in files}
    }
    gone = known.keys() - there.keys()
    new = {name: entry(folder, name, there[name], said.get(name)) for name in sorted(differing)}
    results_index.withdraw(folder, known.keys() & (differing | gone))
    for name, one in new.items():
        before = known[name].command if name in known else None
        one = replace(one, command=one.command or before)
        results_index.publish(folder, name, {}, one, there[name])
    return sorted(differing | gone)


def main(words: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--folder", type=a_folder, default=CURRENT)
    parser.add_argument(
        "--command", nargs=2, action="append", default=[], metavar=("NAME", "COMMAND"),
        help="What made a result whose JSON does not say it.",
    )  # fmt: skip
    options = parser.parse_args(words)
    for name in record(options.folder, options.command):
        print(name)
    return 0


if __name__ == "__main__":
    run_script(main)
