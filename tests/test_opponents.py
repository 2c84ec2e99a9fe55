"""What one would run instead computes what it is said to; no timing decides anything here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attention import rms_ratio

from pyro_meta import bench
from pyro_meta.attention import routed_attention
from pyro_meta.attention.ops.dense import window_attention
from pyro_meta.speed import opponents
from pyro_meta.speed.scene import MECHANISMS, Attention, Scene
from pyro_meta.speed.timed_parts import routed

TINY = Scene(repeats=1, layers=1, width=32, heads=2, window=8, vocabulary=13)
EAGER_FLEX = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.mark.parametrize("length", [1, 7, 60])
def test_the_public_routine_gives_what_ours_gives(length: int) -> None:
    attention, choice = Attention.of(TINY, length), TINY.choices(0.3, length)[0]
    q, k, v = attention.inputs[:3]
    with torch.no_grad():
        theirs = opponents.public_routing(q, k, v, choice, TINY.window)
        ours = routed_attention(attention.mechanisms, attention.gain, choice, attention.inputs)
    assert rms_ratio(theirs.transpose(1, 2).flatten(2), ours) < 1e-5


def test_it_runs_a_mechanism_on_all_tokens_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def noting(name: str) -> None:
        attend = getattr(opponents, name)

        def run(q: torch.Tensor, *args: Any) -> torch.Tensor:
            ran.append(f"{name} {q.shape[2]}")
            return attend(q, *args)  # type: ignore[no-any-return]

        monkeypatch.setattr(opponents, name, run)

    for name in ("_full", "_window", "_linear"):
        noting(name)
    q, k, v = Attention.of(TINY, 9).inputs[:3]
    choice = torch.ones(1, 9, dtype=torch.long)
    choice[0, 4] = 0
    opponents.public_routing(q, k, v, choice, TINY.window)
    assert ran == ["_full 9", "_window 9"]


@EAGER_FLEX
def test_the_flex_window_is_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    attention = Attention.of(TINY, 150)
    run = opponents.flex_window(attention, TINY.window)
    assert callable(run)
    q, k, v = attention.inputs[:3]
    found: Any = run()
    torch.testing.assert_close(found, window_attention(q, k, v, TINY.window))


def test_what_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("no C++ compiler\nand more of it")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    assert opponents.flex_window(Attention.of(TINY, 20), 8) == "RuntimeError: no C++ compiler"


@EAGER_FLEX
def test_one_that_computes_something_else_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(opponents, "window_attention", lambda q, k, v, window: v + 3)
    why = opponents.flex_window(Attention.of(TINY, 20), 8)
    assert isinstance(why, str) and why.startswith("it gives other numbers: by up to ")


def test_the_command_writes_and_prints_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opponents, "flex_window", lambda attention, window: "there is none")
    monkeypatch.setattr(opponents, "PUBLIC_LENGTH", 100)
    words = ["--what=opponents", f"--out={tmp_path}", "--repeats=1", "--lengths=[64,130]"]
    bench.main([*words, "--shares=[0,0.1]", "--threads=1", "--device=cpu"])
    facts = json.loads((tmp_path / "opponents.json").read_text())
    assert {"command", "hardware", "versions", "setting", "profile"} <= facts.keys()
    names = [*MECHANISMS, routed(0), routed(0.1)]
    rows = [(row["length"], row["route"]) for row in facts["points"]]
    expected = [(64, opponents.PUBLIC), *((T, name) for T in (64, 130) for name in names)]
    assert sorted(rows) == sorted(expected)
    for row in facts["points"]:
        low, high = row["seconds_range"]
        assert 0 < low <= row["seconds"] <= high
        if row["route"] == "full":
            assert row["ratio_to_full"] == 1
    left_out = [(row["length"], row["route"]) for row in facts["left_out"]]
    assert left_out == [(64, opponents.FLEX), (130, opponents.FLEX), (130, opponents.PUBLIC)]
    said = capsys.readouterr().out
    assert "flex window, 64 tokens: there is none" in said
    assert "meta-attention, 130 tokens: it loops over positions" in said


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
def test_flex_compiles_or_says_why() -> None:
    found = opponents.flex_window(Attention.of(Scene(), 256), 64)
    assert callable(found) or found
