"""A network that several processes share (FSDP): as good as whole, saved and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT, TEXT, error_line, run, run_here, train
from processes import started
from safetensors.torch import load_file
from test_preemption import free_port
from test_run import Killed, metrics, without_clock

import pyro_meta
from pyro_meta import ResidualBlock, Shape, UsageError
from pyro_meta.network.blocks.base import Stream
from pyro_meta.training.checkpoint_files import (
    WEIGHTS,
    is_ours,
    of_tensors,
    read_state,
    weights_sha256,
)
from pyro_meta.training.config import read_options
from pyro_meta.training.devices import make_fabric, micro_batches
from pyro_meta.training.run import Run


class NumberBlock(ResidualBlock):
    """A block with a parameter that no two processes can share."""

    def __init__(self, shape: Shape, mechanisms: Sequence[str], layer: int) -> None:
        super().__init__(shape, mechanisms, layer)
        self.one = torch.nn.Parameter(torch.ones(()))

    def look(self, stream: Stream) -> torch.Tensor:
        return self.one * super().look(stream)


TESTS = Path(__file__).parent
SHARED = [*MOMENT, "--strategy=fsdp"]
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that check shared models against whole ones, see sharing_pair.py."""
    folder = tmp_path_factory.mktemp("pair")
    words = [sys.executable, str(TESTS / "sharing_pair.py")]
    with (
        started([*words, "0", str(folder)], **PIPES) as first,
        started([*words, "1", str(folder)], **PIPES) as second,
    ):
        errors = [one.communicate()[1] for one in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), "\n".join(errors)
    return folder


def test_losses_gradients_and_checkpoints_are_those_of_a_whole_network(pair: Path) -> None:
    """The two processes compare; here is what they leave: shards, and a file that is gathered."""
    of_shards, gathered = (next((pair / one).iterdir()) for one in ("shards", "gathered"))
    for checkpoint in (of_shards, gathered):
        assert is_ours(checkpoint)
        assert read_state(checkpoint)["processes"] == 2
    names = of_tensors(WEIGHTS, read_state(of_shards)["files"])
    assert len(names) == 2 and all(name.startswith("model.shards/") for name in names)
    sizes = [(of_shards / name).stat().st_size for name in names]
    assert max(sizes) < 0.7 * (gathered / WEIGHTS).stat().st_size
    assert weights_sha256(read_state(of_shards)) != weights_sha256(read_state(gathered))


@pytest.mark.parametrize("harm", ["truncated", "missing", "swapped", "link"])
def test_a_harmed_shard_is_refused(pair: Path, tmp_path: Path, harm: str) -> None:
    checkpoint = tmp_path / "step-00000003"
    shutil.copytree(pair / "shards" / checkpoint.name, checkpoint)
    first, second = sorted((checkpoint / "model.shards").iterdir())
    if harm == "truncated":
        first.write_bytes(first.read_bytes()[:-1])
    elif harm == "missing":
        first.unlink()
    elif harm == "swapped":
        first.write_bytes(second.read_bytes())
    else:
        first.unlink()
        first.symlink_to(second)
    with pytest.raises(UsageError, match=r"checkpoint .* is damaged"):
        read_state(checkpoint)


def test_what_somebody_keeps_among_shards_is_never_removed(pair: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-00000003"
    shutil.copytree(pair / "shards" / checkpoint.name, checkpoint)
    (checkpoint / "model.shards" / "notes").write_text("mine")
    assert not is_ours(checkpoint)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optim.second_order=true"], "optim.second_order: true given"),
        (["--compile=true"], "compile: true given"),
        (["--block=test_fsdp.NumberBlock"], "parameter without dimensions, network.blocks.0.one"),
        (["--pretrained=gpt2"], "strategy: fsdp given"),
        (["--strategy=zero"], "strategy"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    tmp_path: Path, text_file: Path, words: list[str], said: str
) -> None:
    options = [*SHARED, *words, f"--data.path={text_file}", f"--out={tmp_path / 'run'}"]
    assert said in error_line(run_here("train", *options))
    assert not (tmp_path / "run").exists()


def test_a_batch_stays_cut_as_it_was_begun_wherever_it_can() -> None:
    """So that the draws of a run that goes on elsewhere are the same."""
    config, _ = read_options([*SHARED, "--accumulate=2"])
    assert micro_batches(config, 2) == 4
    assert micro_batches(config, 1, begun=4) == 4
    assert micro_batches(config, 4, begun=4) == 4
    assert micro_batches(config, 2, begun=1) == 4  # 1 is not to be shared out
    make_fabric(config, begun=4)
    with pytest.raises(UsageError, match=r"batch: 4 given; .* = 8"):
        make_fabric(config, begun=8)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What one process leaves that reads two micro-batches in a step, and its options."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "text.txt").write_text(TEXT)
    options = [*SHARED, f"--data.path={folder / 'text.txt'}"]
    assert train(*options, "--accumulate=2", f"--out={folder / 'run'}") == 0
    return folder / "run", options


def require_same_log(ours: Path, theirs: Path) -> None:
    for mine, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def same_numbers(ours: Any, theirs: Any) -> bool:
    """Whether two summaries have the same numbers: within 1e-4, which is rounding."""
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(
            same_numbers(ours[k], theirs[k]) for k in theirs
        )
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same_numbers, ours, theirs))
    if isinstance(theirs, float):
        return bool(ours == pytest.approx(theirs, rel=1e-3, abs=1e-4))
    return bool(ours == theirs)


@pytest.mark.long
@pytest.mark.parametrize("words", [[], ["--heads=4", "--groups=kv", "--budget=0.7"]])
def test_two_processes_that_share_a_network_train_as_one(
    tmp_path: Path, text_file: Path, words: list[str]
) -> None:
    """Losses, summary and weights; and what is left is read as any other run is."""
    options = [*SHARED, *words, f"--data.path={text_file}"]
    two = run("train", *options, "--devices=2", f"--out={tmp_path / 'two'}")
    assert two.returncode == 0, two.stderr
    assert "warning" not in two.stderr
    assert train(*options, "--accumulate=2", f"--out={tmp_path / 'one'}") == 0
    require_same_log(tmp_path / "two", tmp_path / "one")
    ours, theirs = (
        without_clock(json.loads((tmp_path / one / "summary.json").read_text()))
        for one in ("two", "one")
    )
    for key in ("seconds", "tokens_per_second"):
        del ours[key], theirs[key]
    assert same_numbers(ours, theirs), (ours, theirs)
    two_weights, one_weights = (
        load_file(next((tmp_path / one).glob("checkpoint/*/model.safetensors")))
        for one in ("two", "one")
    )
    assert two_weights.keys() == one_weights.keys()
    for name, value in one_weights.items():
        assert torch.allclose(two_weights[name].double(), value.double(), atol=1e-4), name
    assert pyro_meta.load(tmp_path / "two").summary["val_nll_hard"] == ours["val_nll_hard"]
    assert run_here("report", tmp_path / "two").returncode == 0


# One process of several, as torchrun starts them, that is killed on its way.
KILLED = """
import os, runpy, signal, sys
from pathlib import Path
import pyro_meta.training.checkpoint as checkpoint

moment, dying = sys.argv.pop(1), int(sys.argv.pop(1))
write, rename, saves = checkpoint.write_shards, Path.rename, []

def die():
    if int(os.environ["RANK"]) == dying:
        os.kill(os.getpid(), signal.SIGKILL)

def write_shards(folder, tensors):
    saves.append(folder)
    if moment == "while writing" and len(saves) == 5:  # that of step 8: two of each
        die()
    write(folder, tensors)

def renamed(self, target):
    if moment == "before the rename" and str(target).endswith("step-00000008"):
        die()
    done = rename(self, target)
    if moment == "after it" and str(target).endswith("step-00000008"):
        die()
    return done

checkpoint.write_shards, Path.rename = write_shards, renamed
runpy.run_module("pyro_meta.train", run_name="__main__")
"""


def of_two(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells each of two processes."""
    return {
        "TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("moment", "dying", "saved"),
    [
        ("while writing", 1, 4),
        ("while writing", 0, 4),
        ("before the rename", 0, 4),
        ("after it", 0, 8),
    ],
)
def test_a_killed_run_of_two_goes_on_with_one(
    tmp_path: Path, whole_run: tuple[Path, list[str]], moment: str, dying: int, saved: int
) -> None:
    """Killed around the checkpoint of step 8; the last whole one stands, and the draws go on."""
    whole, options = whole_run
    folder, port = tmp_path / "run", free_port()
    words = [sys.executable, "-c", KILLED, moment, str(dying), *options, f"--out={folder}"]
    with (
        started(words, of_two(0, port), **PIPES) as first,
        started(words, of_two(1, port), **PIPES) as second,
    ):
        killed, other = (first, second) if dying == 0 else (second, first)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        os.killpg(other.pid, signal.SIGKILL)  # as torchrun ends the others
        other.communicate()
    latest = Run.open(folder).latest_checkpoint()
    assert latest is not None and latest.name == f"step-{saved:08d}"
    assert not (latest / WEIGHTS).exists(), "shards alone"
    model, *_ = Run.open(folder).load()  # from shards, by one
    assert all(torch.isfinite(one).all() for one in model.parameters())
    assert train("--resume", folder, "--devices=1") == 0
    require_same_log(folder, whole)
    names = [path.name for path in (folder / "checkpoint").iterdir()]
    assert names == ["step-00000012"]


@pytest.mark.long
def test_a_killed_run_of_one_goes_on_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_run: tuple[Path, list[str]]
) -> None:
    whole, options = whole_run
    append = Run.append_metrics

    def killed(self: Run, record: dict[str, Any]) -> None:
        append(self, record)
        if record["step"] == 6:
            raise Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", killed)
        with pytest.raises(Killed):
            train(*options, "--accumulate=2", f"--out={folder}")
    done = run("train", "--resume", folder, "--devices=2")
    assert done.returncode == 0, done.stderr
    require_same_log(folder, whole)
    assert "devices: 2" in (folder / "config.yaml").read_text()
    shards = next((folder / "checkpoint").iterdir()) / "optimiser.shards"
    assert len(list(shards.iterdir())) == 2
