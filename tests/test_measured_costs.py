"""Measured costs: what they mean and where they are kept; no test looks at a clock."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build

import pyro_meta.network.measured_costs as timing
from pyro_meta import CostDirichlet, Shape, Transformer, UsageError
from pyro_meta.attention.clock import Calls
from pyro_meta.folders import cache_folder
from pyro_meta.network.costs import Costs, costs_at

SHAPE = Shape(vocabulary=7, context=32, width=16, layers=2, heads=2, window=4)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Transformer:
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path))
    return Transformer(SHAPE, ["window", "full"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that each mechanism is said to take, and how often any was asked."""
    seconds = {"full": 0.4, "window": 0.1, "linear": 0.2, "calls": 0.0}

    def read(calls: Calls, *_: object) -> dict[str, list[float]]:
        seconds["calls"] += 1
        return {name: [seconds[name.partition(",")[0]]] for name in calls}

    monkeypatch.setattr(timing, "interleaved", read)
    return seconds


def test_costs_are_times_over_that_of_full_attention(
    network: Transformer, clock: dict[str, float]
) -> None:
    assert timing.measure_costs(network) == [0.25, 1.0]
    without = Transformer(SHAPE, ["linear", "window"])
    assert timing.measure_costs(without) == [0.5, 0.25]
    costs = costs_at(network, "measured", torch.arange(5))
    torch.testing.assert_close(costs, torch.tensor([0.25, 1.0]).expand(5, 2))


def test_real_times_are_positive_and_full_is_the_unit(network: Transformer) -> None:
    costs = timing.measure_costs(network)
    assert costs[0] > 0 and costs[1] == 1.0
    kept = json.loads(next((cache_folder() / "costs").glob("*.json")).read_text())
    assert kept["costs"] == costs and kept["device"] == "cpu" and kept["context"] == 32


def test_costs_are_timed_once_and_anew_on_demand(
    network: Transformer, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing.measure_costs(network)
    calls = clock["calls"]
    clock["window"] = 0.2
    assert timing.measure_costs(network) == [0.25, 1.0] and clock["calls"] == calls
    assert timing.measure_costs(network, refresh=True) == [0.5, 1.0]
    clock["window"] = 0.3
    monkeypatch.setenv("PYRO_META_REFRESH_COSTS", "1")
    assert timing.measure_costs(network) == pytest.approx([0.75, 1.0])
    monkeypatch.delenv("PYRO_META_REFRESH_COSTS")
    next((cache_folder() / "costs").glob("*.json")).write_text("{")
    clock["window"] = 0.1
    assert timing.measure_costs(network) == [0.25, 1.0], "a damaged file is replaced"


def test_other_sinks_are_timed_for_themselves(
    network: Transformer, clock: dict[str, float]
) -> None:
    assert timing.measure_costs(network) == [0.25, 1.0]
    clock["window"] = 0.2
    assert timing.measure_costs(Transformer(replace(SHAPE, sinks=2), ["window", "full"])) == [
        0.5,
        1.0,
    ]
    assert timing.measure_costs(network) == [0.25, 1.0]


def test_a_cache_that_cannot_be_written_is_named(
    network: Transformer, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set PYRO_META_CACHE to a folder that can be written"):
        timing.measure_costs(network)


def test_a_prior_keeps_the_costs_that_it_began_with(
    network: Transformer, clock: dict[str, float]
) -> None:
    began = CostDirichlet(network, cost="measured")
    clock["window"] = 0.3
    timing.measure_costs(network, refresh=True)
    resumed = CostDirichlet(network, cost="measured")
    assert not torch.equal(resumed.costs.measured, began.costs.measured)
    resumed.load_state_dict(began.state_dict())
    positions = torch.arange(3)
    torch.testing.assert_close(resumed.costs(positions), torch.tensor([0.25, 1.0]).expand(3, 2))
    assert torch.equal(resumed(0, positions).concentration, began(0, positions).concentration)


def test_only_measured_costs_are_state(network: Transformer) -> None:
    for unit in ("macs", "nominal", [1.0, 0.5]):
        assert not Costs(network, unit).state_dict()
    assert not build()[0].prior.state_dict()
