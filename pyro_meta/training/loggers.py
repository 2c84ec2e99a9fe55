"""Figures of training sent on to a logger of Fabric, such as TensorBoard, beside metrics.jsonl.

    RUN/logs/csv/version_0/metrics.csv
    RUN/logs/tensorboard/version_0/

A run that is resumed begins the next version.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from pyro_meta.errors import UsageError
from pyro_meta.terminal.naming import NoSuchClass, find_class
from pyro_meta.terminal.progress import Watch

FOLDER = "logs"
OURS: Mapping[str, Callable[..., Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}


def require_logger(name: str) -> None:
    """Raise `UsageError`, before there is a run, where `make_logger` would."""
    if name in OURS:
        make_logger(name, Path())  # ours write nothing before the first record
    else:
        _kind(name)


def make_logger(name: str, run: Path) -> Logger:
    """The logger that `name` means: csv, tensorboard, or the import path of a class of Fabric's.

    Such a class is made without arguments, and reads from its environment where to write.

    Raises
    ------
    UsageError
        There is no such logger, or a package that it needs is not installed.
    """
    try:
        if name in OURS:
            return OURS[name](run / FOLDER, name=name)
        return _kind(name)()
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        extra = "; pip install 'pyro-meta[tensorboard]'" if name == "tensorboard" else ""
        reason = str(error).splitlines()[0]
        raise UsageError(f"option --logger: {name} cannot be made: {reason}{extra}") from error
    except Exception as error:  # whatever another's class raises
        raise UsageError(
            f"option --logger: {name} cannot be made: {' '.join(str(error).split())}"
        ) from error


def _kind(name: str) -> Callable[[], Logger]:
    try:
        found = find_class(name, {}, "wandb_logger.MyLogger")
    except NoSuchClass as error:
        reason = str(error) if "." in name else "csv, tensorboard or an import path is allowed"
        raise UsageError(f"option --logger: {name} given; {reason}") from error
    if not issubclass(found, Logger):
        raise UsageError(f"option --logger: {name} is no lightning_fabric.loggers.Logger")
    return found


@contextmanager
def logging_to(logger: Logger | None, watch: Watch) -> Iterator[Watch]:
    """`watch`, which has every record logged as well; the logger is closed at the end."""
    if logger is None:
        yield watch
        return

    def watch_and_log(record: dict[str, Any]) -> None:
        watch(record)
        logger.log_metrics(figures_of(record), step=record["step"])

    status = "aborted"
    try:
        yield watch_and_log
        status = "success"
    finally:
        logger.finalize(status)


def figures_of(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record, those of lists and mappings under names such as `load/full`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, list):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping):
            found |= figures_of(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            found[f"{prefix}{name}"] = float(value)
    return found
