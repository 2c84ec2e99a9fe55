"""A last phase that refits the guide: the network stays as it was, to the last bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT, TEXT, train
from safetensors.torch import load_file
from slow import long

from pyro_meta import UsageError
from pyro_meta.inference.schedules import HardeningSchedule, KLSchedule, Optimisation, Tightening
from pyro_meta.study.description import Study
from pyro_meta.study.plan import expand
from pyro_meta.training.config import read_options
from pyro_meta.training.run import Run

REFIT = ["--steps=18", "--optim.refit=6", "--validate_every=0"]
NOT_REPEATABLE = ("tokens_per_second", "seconds")


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in NOT_REPEATABLE}
        for line in lines
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Run.open(folder).latest_checkpoint()
    assert checkpoint is not None
    return load_file(checkpoint / "model.safetensors")


def moments(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Run.open(folder).latest_checkpoint()
    assert checkpoint is not None
    return load_file(checkpoint / "optimiser.safetensors")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The same run without a refit and with one."""
    folder = tmp_path_factory.mktemp("refit")
    (folder / "text.txt").write_text(TEXT)
    words = [*MOMENT, "--validate_every=0", f"--data.path={folder / 'text.txt'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_META_CACHE", str(folder / "cache"))
        assert train(*words, f"--out={folder / 'plain'}") == 0
        assert train(*words, *REFIT, f"--out={folder / 'refit'}") == 0
        yield folder / "plain", folder / "refit"


def test_the_network_is_the_same_before_and_after(both: tuple[Path, Path]) -> None:
    """As a run that ends where the refit of the other begins; guide and loads have moved on."""
    before, after = map(weights, both)
    assert before.keys() == after.keys()
    frozen = [name for name in before if name.startswith("model.network.")]
    assert len(frozen) > 10
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    assert any(not torch.equal(before[name], after[name]) for name in before if "heads" in name)
    loads = [name for name in before if "load_posterior" in name]
    assert loads and all(not torch.equal(before[name], after[name]) for name in loads)


def test_no_moment_of_the_network_moves(both: tuple[Path, Path]) -> None:
    before, after = map(moments, both)
    of_network = [name for name in before if "network" in name]
    assert of_network
    for name in of_network:
        assert torch.equal(before[name], after[name]), name


def test_the_log_shows_the_refit(both: tuple[Path, Path]) -> None:
    plain, refit = map(records, both)
    assert plain == refit[:12], "schedules have run their course before"
    assert len(refit) == 18
    for record in refit[12:]:
        assert record["is_refitting"] is True and record["lr"] == 0.0
        assert record["threshold"] == 1.0 and record["kl_weight"] == KLSchedule().weight
        assert record["grad_norm"] > 0
    assert not any("is_refitting" in record for record in plain)


@pytest.mark.parametrize("at", [*long(10, 12), 13, *long(17)])
def test_a_killed_refit_resumes_to_the_same_losses(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed before the refit, as it begins, and within it."""

    class Killed(BaseException):
        pass

    append = Run.append_metrics

    def kill(self: Run, record: dict[str, Any]) -> None:
        append(self, record)
        if record["step"] == at:
            raise Killed

    words = ["--config", both[1] / "config.yaml", "--checkpoint_every=3"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", kill)
        with pytest.raises(Killed):
            train(*words, f"--out={tmp_path / 'killed'}")
    assert train("--resume", tmp_path / "killed") == 0
    assert records(tmp_path / "killed") == records(both[1])
    for name, value in weights(both[1]).items():
        assert torch.equal(value, weights(tmp_path / "killed")[name]), name


def test_a_run_may_be_a_refit_of_another_alone(both: tuple[Path, Path], tmp_path: Path) -> None:
    """With another weight of the KL, say."""
    folder = tmp_path / "alone"
    words = ["--steps=6", "--optim.refit=6", "--kl.weight=0.5"]
    assert train("--from", both[0], *words, f"--out={folder}") == 0
    for name, value in weights(both[0]).items():
        if name.startswith("model.network."):
            assert torch.equal(value, weights(folder)[name]), name
    assert [one["kl_weight"] for one in records(folder)] == [0.5] * 6


@pytest.mark.long
def test_a_refit_under_a_budget_moves_the_price(tmp_path: Path, text_file: Path) -> None:
    words = [*MOMENT, *REFIT, "--budget=0.5", f"--data.path={text_file}"]
    assert train(*words, f"--out={tmp_path / 'run'}") == 0
    found = records(tmp_path / "run")
    assert found[11]["lambda"] != found[17]["lambda"]
    assert found[11]["surcharge"] == found[17]["surcharge"]


def test_schedules_end_before_the_refit() -> None:
    optim = Optimisation(lr=1.0, final_lr=0.1, warmup=0.1, router=3.0, refit=20)
    assert [optim.progress(step, 120) for step in (0, 50, 100)] == [0.0, 0.5, 1.0]
    assert [optim.progress(step, 120) for step in (101, 110, 120)] == [1.05, 1.5, 2.0]
    assert optim.progress(1, 20) == 1.05, "nothing but a refit"
    for within in (1.05, 1.5, 2.0):
        assert optim.lr_at(within) == 0.0
        assert optim.router_lr_at(within) == pytest.approx(3 * optim.lr_at(within - 1))
        assert optim.is_refitting(within)
        assert not optim.is_resting(within) and not optim.has_settled(within)
        assert KLSchedule(weight=0.3)(within) == KLSchedule(weight=0.3)(1.0)
        assert HardeningSchedule(final=0.8)(within) == 0.8
        assert Tightening(end=0.5)(0.4, within) == 0.4
    assert optim.is_resting(1.0) and not optim.is_refitting(1.0)


def test_who_learns_no_route_has_nothing_to_refit() -> None:
    """Baselines of a study leave the phase out, and train their network as long."""
    study = Study.read(
        {
            "base": {"width": 16, "heads": 2, "steps": 30, "optim": {"refit": 10}},
            "baselines": {"periodic": False},
        },
        "study",
    )
    taken = {group.label: group.config for group in expand(study)}
    assert {label: (one.steps, one.optim.refit) for label, one in taken.items()} == {
        "routed": (30, 10), "full alone": (20, 0), "window alone": (20, 0), "linear alone": (20, 0),
        "PriorGuide": (20, 0), "PointGuide": (30, 10), "static split": (30, 10),
        "fixed loads of routed": (20, 0), "random loads of routed": (20, 0),
    }  # fmt: skip


def refused(*words: str) -> str:
    def build() -> None:
        read_options(words)[0].build(13)

    with pytest.raises(UsageError) as error:
        build()
    return str(error.value)


def test_a_refit_that_cannot_be_is_refused() -> None:
    assert "optim.refit: -1 given; at least 0" in refused("--optim.refit=-1")
    assert "optim.refit: 9 given; at most steps = 8" in refused("--steps=8", "--optim.refit=9")
    words = ["--optim.refit=9", "--guide=PriorGuide", "--prior=CostDirichlet"]
    assert "neither PriorGuide nor CostDirichlet learns anything" in refused(*words)
