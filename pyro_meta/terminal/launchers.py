"""Who has started this process, and as which of how many: torchrun, srun, ourselves, or a person.

Asked before Fabric is made, so that one process alone prints what goes wrong; `make_fabric` sees to
it that Fabric comes to the same rank.
"""

import os
from typing import NamedTuple

from pyro_meta.errors import UsageError

PARENT = "PYRO_META_LAUNCHED_BY"
"""Variable that holds the process id of the command which launched this one."""
INTERACTIVE = ("bash", "interactive")
"""Names of Slurm jobs whose shell is ours: srun has started that, and not us."""
OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class Place(NamedTuple):
    """This process among those that train together."""

    launcher: str
    """`torchrun`, `srun`, `pyro-meta` (a process that the first one has launched), or `python`."""
    rank: int
    world: int | None
    """Processes in all; None where `--devices` decides."""
    nodes: int = 1


def place() -> Place:
    """Where the environment says that we are.

    A variable such as LOCAL_RANK alone says nothing: shells and schedulers leave it behind.

    Raises
    ------
    UsageError
        A launcher's variable holds no number, or the launcher is one that is not known here.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        world, local = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
        return Place("torchrun", _number("RANK"), world, max(1, world // max(1, local)))
    if "SLURM_NTASKS" in environment and "SLURM_PROCID" in environment:
        if environment.get("SLURM_JOB_NAME") not in INTERACTIVE and _number("SLURM_NTASKS") > 1:
            nodes = _number("SLURM_NNODES") if "SLURM_NNODES" in environment else 1
            return Place("srun", _number("SLURM_PROCID"), _number("SLURM_NTASKS"), nodes)
    if environment.get(PARENT) == str(os.getppid()):
        return Place("pyro-meta", _number("LOCAL_RANK"), _number("WORLD_SIZE"))
    for name in OF_MPI:
        if name in environment and _number(name) > 1:
            raise UsageError(
                f"{environment[name]} processes were started by MPI ({name}); torchrun, srun or "
                "--devices are allowed"
            )
    return Place("python", 0, None)


def is_first_process() -> bool:
    """Whether this process is the one that prints, known before any launch."""
    return place().rank == 0


def _number(name: str) -> int:
    given = os.environ.get(name, "")
    if not given.isdecimal():
        raise UsageError(f"environment: {name} is {given!r}; the launcher's number is needed")
    return int(given)
