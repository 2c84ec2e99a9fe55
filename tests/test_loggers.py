"""Figures of training in a logger of Fabric: the same as in metrics.jsonl."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from commands import MOMENT, train
from lightning_fabric.loggers import Logger

from pyro_meta import UsageError
from pyro_meta.training.loggers import figures_of, logging_to, make_logger, require_logger
from pyro_meta.training.request import read_request

RECORDS: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.5, "entropy_by_layer": [0.25, 0.5]},
    {"step": 2, "loss": 2.0, "entropy_by_layer": [0.2, 0.4], "load": {"full": 0.75}},
]


class Kept(Logger):
    """A logger of somebody's own, made without arguments."""

    lines: ClassVar[list[Any]] = []

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.lines.append((step, metrics))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def finalize(self, status: str) -> None:
        self.lines.append(status)


def log(name: str, run: Path) -> list[dict[str, Any]]:
    """Log the records; what the watch behind has seen."""
    seen: list[dict[str, Any]] = []
    with logging_to(make_logger(name, run), seen.append) as watch:
        for record in RECORDS:
            watch(record)
    return seen


def test_nested_figures_have_flat_names() -> None:
    assert figures_of(RECORDS[1] | {"note": "text", "deep": [{"a": 1}]}) == {
        "loss": 2.0, "entropy_by_layer/0": 0.2, "entropy_by_layer/1": 0.4, "load/full": 0.75,
        "deep/0/a": 1.0,
    }  # fmt: skip


def test_a_csv_file_holds_every_figure_and_a_resumed_run_another(tmp_path: Path) -> None:
    assert log("csv", tmp_path) == RECORDS
    log("csv", tmp_path)
    for version in (0, 1):
        path = tmp_path / "logs" / "csv" / f"version_{version}" / "metrics.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert [int(row["step"]) for row in rows] == [1, 2]
        assert [float(row["loss"]) for row in rows] == [2.5, 2.0]
        assert rows[0]["load/full"] == "" and float(rows[1]["load/full"]) == 0.75


def records_of(path: Path) -> Iterator[bytes]:
    """The records of a file of TensorBoard: length, its checksum, content, its checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_tensorboard_holds_every_figure(tmp_path: Path) -> None:
    writer = pytest.importorskip("tensorboardX")
    log("tensorboard", tmp_path)
    (path,) = (tmp_path / "logs" / "tensorboard" / "version_0").iterdir()
    found = set()
    for record in records_of(path):
        event = writer.proto.event_pb2.Event.FromString(record)
        found |= {(event.step, one.tag, one.simple_value) for one in event.summary.value}
    for record in RECORDS:
        for name, value in figures_of(record).items():
            single = struct.unpack("f", struct.pack("f", value))[0]
            assert (record["step"], name, single) in found


def test_a_logger_of_ones_own_is_told_how_it_ended(tmp_path: Path) -> None:
    Kept.lines.clear()
    log("test_loggers.Kept", tmp_path)
    assert Kept.lines == [(one["step"], figures_of(one)) for one in RECORDS] + ["success"]
    Kept.lines.clear()
    with (
        pytest.raises(ZeroDivisionError),
        logging_to(make_logger("test_loggers.Kept", tmp_path), lambda record: None),
    ):
        raise ZeroDivisionError
    assert Kept.lines == ["aborted"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cvs", "cvs given; csv, tensorboard or an import path is allowed"),
        ("no.such.Thing", "cannot import 'no.such.Thing'"),
        ("pathlib.Path", "pathlib.Path is no lightning_fabric.loggers.Logger"),
    ],
)
def test_what_is_no_logger_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UsageError, match="option --logger: ") as caught:
        require_logger(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_option_belongs_to_the_command_and_not_to_the_run() -> None:
    assert read_request(["--steps=3", "--logger", "csv"]).logger == "csv"
    assert read_request(["--steps=3", "--logger", "csv"]).options == ["--steps=3"]
    assert read_request(["--resume=a", "--logger=csv"]).logger == "csv"
    assert read_request(["--steps=3"]).logger is None
    for words in (["--logger"], ["--logger=", "--steps=3"], ["--logger", "--steps=3"]):
        with pytest.raises(UsageError, match="--logger: a value is missing"):
            read_request(words)


def test_a_run_is_logged_as_its_metrics_are(tmp_path: Path, text_file: Path) -> None:
    run = tmp_path / "run"
    words = [*MOMENT, "--steps=4", "--readout.draws=2", "--readout.block_draws=0"]
    assert train(*words, f"--data.path={text_file}", f"--out={run}", "--logger=csv") == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    path = run / "logs" / "csv" / "version_0" / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in lines]
    last = [float(row["entropy_by_layer/1"]) for row in rows]
    assert last == [line["entropy_by_layer"][1] for line in lines]
    assert "logger" not in (run / "config.yaml").read_text()
