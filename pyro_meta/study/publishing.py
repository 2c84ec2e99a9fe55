"""The small files of a study, copied into a folder of results beside those of others.

study.json, study.csv, study.md, study.yaml and the pictures; no runs, and no checkpoints.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_meta import results_index
from pyro_meta.errors import UsageError
from pyro_meta.results_index import Entry

OPTION = "option --publish"


def require_published(folder: Path, out: Path) -> None:
    """Raise `UsageError`, before long work, where a study cannot be published in `folder`."""
    name = out.resolve().name
    if (folder / name).resolve() == out.resolve():
        raise UsageError(
            f"{OPTION}: {folder} given, in which the study itself lies; another folder is allowed"
        )
    try:
        results_index.require_place(folder, name)
    except (UsageError, OSError) as error:
        raise UsageError(f"{OPTION}: {error}") from error


def publish_study(folder: Path, out: Path, names: Sequence[str]) -> None:
    """Copy files of the study in `out` to `folder`/NAME, and write its entry.

    Raises
    ------
    UsageError
        It cannot be done; the study itself is as it was.
    """
    require_published(folder, out)
    name = out.resolve().name
    try:
        files = {f"{name}/{one}": (out / one).read_bytes() for one in names}
        study = json.loads(files[f"{name}/study.json"])
        results_index.publish(folder, name, files, made_by(study))
    except OSError as error:
        raise UsageError(
            f"{OPTION}: cannot write {error.filename or folder}: {error.strerror}; the study is "
            f"whole, and --report_only --publish {folder} tries again"
        ) from error


def made_by(study: dict[str, Any]) -> Entry:
    """The entry of a study.json: seeds, commits and the date of the runs that have finished."""
    finished = [run for run in study["runs"] if run["summary"]]

    def said(key: str) -> list[str]:
        values = [run["summary"].get(key) for run in finished]
        return sorted({one for one in values if isinstance(one, str)})

    commits = said("commit")
    return Entry(
        commit=commits[0] if len(commits) == 1 else commits or None,
        command=study["command"],
        seeds=sorted({run["seed"] for run in finished}),
        date=max(said("finished"), default=None),
        hardware=study["hardware"],
        versions=study["versions"],
    )
