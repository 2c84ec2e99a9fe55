"""The benchmarks run and compare like with like; no timing decides anything here."""

import json
from pathlib import Path

import pytest
import torch
from conftest import build, text

from pyro_meta import bench
from pyro_meta.svi import Objective


@pytest.mark.usefixtures("double")
def test_the_plain_step_is_the_same_step() -> None:
    model, guide = build()
    model.kl_weight = 0.3
    torch.manual_seed(4)
    ours = Objective(model, guide)(*text()).loss
    torch.manual_seed(4)
    plain = bench._plain_loss(model, guide, *text())
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_the_benchmarks_write_their_json(tmp_path: Path) -> None:
    bench.main([f"--out={tmp_path}", "--repeats=1", "--lengths=[64,128]", "--layers=1"])
    for name in ("svi", "mechanisms"):
        facts = json.loads((tmp_path / f"{name}.json").read_text())
        assert {"command", "hardware", "versions", "setting"} <= facts.keys()
    assert set(facts["peak_memory_bytes"]) == {"64", "128"}


def test_the_exponent_of_a_quadratic_is_two() -> None:
    assert bench._exponent([10, 20, 40], [1.0, 4.0, 16.0]) == pytest.approx(2.0)
