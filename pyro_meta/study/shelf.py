"""The folder of a study's runs, each known by its options.

runs/NAME/            a run
runs/NAME-2/          another one of that name, with other options
runs/NAME.damaged/    one that could not be gone on with: kept, and never looked at again
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from pyro_meta.checksums import require_plain
from pyro_meta.folders import PARTIAL
from pyro_meta.study.job import Job, State
from pyro_meta.study.plan import Loads
from pyro_meta.study.wholeness import damage
from pyro_meta.terminal.consoles import printable

DAMAGED = ".damaged"
MOST_BYTES, MOST_PIECES = 1 << 20, 100_000
"""What a config.yaml may hold; a run's own has some hundred values."""
_SET_ASIDE = re.compile(rf".+{re.escape(DAMAGED)}(-\d+)?")


class Shelf:
    """The folder of runs.

    Parameters
    ----------
    folder
        Where they are; whatever else is there is left alone.

    Attributes
    ----------
    unread
        What has a config.yaml that is none, in a line each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unread: list[str] = []
        self._known: dict[str, list[Path]] = {}
        for run in sorted(folder.iterdir()):
            is_ours = PARTIAL not in run.name and not _SET_ASIDE.fullmatch(run.name)
            path = run / "config.yaml"
            if not is_ours or not run.is_dir() or not path.exists():
                continue
            try:
                if require_plain(path) > MOST_BYTES:
                    raise ValueError("it is too long")
                key = _key(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
                why = " ".join(str(error).split()) or type(error).__name__
                self.unread.append(
                    f"{printable(str(run))} is left alone: its config.yaml is none: "
                    f"{printable(why)}"
                )
            else:
                self._known.setdefault(key, []).append(run)

    def place(self, job: Job, loads: Loads | None = None) -> None:
        """Give `job` its configuration and its folder, and see how far it is."""
        job.config_yaml = job.group.run_yaml(job.seed, loads)
        known = self._known.setdefault(_key(job.config_yaml), [])
        if not known:
            known.append(self._free(job.name))
        finished = [run for run in known if (run / "summary.json").is_file()]
        job.folder = next((run for run in finished if damage(run) is None), known[0])
        job.refresh()
        if job.folder in finished:
            job.damage = damage(job.folder)
            if job.damage is None:
                job.finish()

    def set_aside(self, job: Job) -> Path:
        """Keep the folder of `job` under a name that says that it is damaged; the new name."""
        assert job.folder is not None
        names = (f"{job.folder.name}{DAMAGED}{number}" for number in _numbers())
        aside = next(path for path in map(self.folder.joinpath, names) if _is_free(path))
        job.folder.rename(aside)
        job.state, job.damage, job.is_renewed = State.WAITING, None, True
        job.step, job.loss, job.note = 0, None, ""
        return aside

    def _free(self, name: str) -> Path:
        taken = {run for runs in self._known.values() for run in runs}
        folders = (self.folder / f"{name}{number}" for number in _numbers())
        return next(path for path in folders if path not in taken and _is_free(path))


class _Loader(yaml.SafeLoader):
    """YAML as it is written for a run: without merged mappings, which can grow without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge nothing: such a key is then refused."""


def _key(config_yaml: str) -> str:
    """Options in one spelling; raises what YAML and JSON do for what is no mapping of them."""
    options = yaml.load(config_yaml, Loader=_Loader)
    if not isinstance(options, dict):
        raise ValueError("it holds no mapping of options")
    pieces = json.JSONEncoder(sort_keys=True, default=str).iterencode(options)
    spelled = "".join(itertools.islice(pieces, MOST_PIECES))
    if next(pieces, None) is not None:
        raise ValueError("it holds too many values")
    return spelled


def _is_free(path: Path) -> bool:
    return not path.exists() and not path.is_symlink()


def _numbers() -> Iterator[str]:
    """What stands behind a name: nothing, -2, -3 and so on."""
    return itertools.chain([""], (f"-{number}" for number in itertools.count(2)))


def as_they_are(jobs: list[Job], ours: list[Job], folder: Path) -> list[Job]:
    """All jobs of a study for a shard's results: `ours`, and the others as their folders are."""
    others = [Job(job.group, job.seed) for job in jobs]
    place_known(others, Shelf(folder))
    own = {(id(job.group), job.seed): job for job in ours}
    return [own.get((id(job.group), job.seed), job) for job in others]


def place_known(jobs: list[Job], shelf: Shelf) -> None:
    """Place every job whose loads are known by now; one whose loads never will be has failed."""
    by_run = {(id(job.group), job.seed): job for job in jobs}
    for job in jobs:
        if job.folder is not None or job.state != State.WAITING:
            continue
        if job.group.loads_of is None:
            shelf.place(job)
            continue
        teacher = by_run[id(job.group.loads_of), job.seed]
        if summary := teacher.summary():
            shelf.place(job, [list(row.values()) for row in summary["load_by_layer"]])
        elif teacher.state == State.FAILED:
            job.fail(f"{teacher.name} failed, whose loads it takes")
        else:
            job.note = f"for the loads of {teacher.name}"
