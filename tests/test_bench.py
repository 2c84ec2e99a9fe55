"""The benchmarks run and compare like with like; no timing decides anything here."""

import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from commands import MOMENT
from conftest import build, text
from PIL import Image
from rich.console import Console
from test_cache import LooksBackAndSaysNothing
from torch import Tensor

from pyro_meta import bench, train
from pyro_meta.attention import routed_attention
from pyro_meta.attention.clock import MOST, interleaved
from pyro_meta.errors import UsageError
from pyro_meta.guides import DirichletGuide, FixedGuide, Guide
from pyro_meta.network.macs import attention_macs, dense_macs, full_attention_macs
from pyro_meta.network.route import Decision
from pyro_meta.network.transformer import Transformer
from pyro_meta.speed import MECHANISMS, arithmetic, mechanisms_by_length, trained_run
from pyro_meta.speed.command import _print_routed
from pyro_meta.speed.mechanisms_by_length import growth_exponent
from pyro_meta.speed.routed_by_share import break_even
from pyro_meta.speed.scene import Attention, Scene
from pyro_meta.speed.timed_parts import DECODED, PARTS, routed
from pyro_meta.terminal.commands import run_command

TINY = Scene(repeats=1, layers=2, width=32, heads=2, window=8, vocabulary=13)
SHARES = (0.0, 0.1, 1.0)


def in_this_process(function: Any, **arguments: Any) -> Any:
    """For speed; the routed benchmark below starts real ones."""
    return function(**arguments)


def test_mechanisms_by_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mechanisms_by_length, "in_fresh_process", in_this_process)
    bench.main(["--what=mechanisms", f"--out={tmp_path}", "--repeats=1", "--lengths=[64,128]"])
    facts = json.loads((tmp_path / "mechanisms.json").read_text())
    assert {"command", "hardware", "versions", "setting"} <= facts.keys()
    assert set(facts["peak_memory_bytes"]) == {"64", "128"}
    said = capsys.readouterr().out
    assert "128 tokens" in said
    for name in mechanisms_by_length.MECHANISMS:
        assert re.search(rf"^ *{name} +[\d.]+ +[\d.]+ *$", said, re.M)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The routed benchmark at tiny sizes, by the command's own main."""
    folder = tmp_path_factory.mktemp("routed")
    words = ["--what=routed", f"--out={folder}", "--repeats=1", "--lengths=[64,600]"]
    bench.main([*words, "--shares=[0,0.1,1]", "--layers=1", "--threads=1", "--device=cpu"])
    return folder


def test_the_routed_benchmark_says_all_it_should(measured: Path) -> None:
    facts = json.loads((measured / "routed.json").read_text())
    assert {"command", "hardware", "versions", "setting"} <= facts.keys()
    assert "--shares=[0,0.1,1]" in facts["command"] and facts["hardware"]["threads"] == 1
    names = [*MECHANISMS, *map(routed, SHARES)]
    rows = {(p["part"], p["length"], p["route"]) for p in facts["points"]}
    assert rows == {(part, T, name) for part in PARTS for T in (64, 600) for name in names}
    assert len(facts["points"]) == len(rows)
    for point in facts["points"]:
        low, high = point["seconds_range"]
        assert 0 < low <= point["seconds"] <= high
        if point["route"] == "full":
            assert point["ratio_to_full"] == 1
    assert all(set(facts["break_even_share"][part]) == {"64", "600"} for part in PARTS)
    ratios = facts["macs_ratio_to_full"]["600"]
    assert 0 < ratios["0"] < ratios["0.1"] < ratios["1"] == 1
    of_parts = facts["macs_ratio_of_parts"]["600"]
    assert of_parts["attention"] == ratios and list(of_parts) == list(PARTS)
    assert of_parts["training"]["1"] == 1, "nobody is asked"
    assert of_parts["prefill"]["1"] > 1 and of_parts["decoding"]["1"] > 1, "a router is asked"


@pytest.mark.parametrize("mechanisms", [("full", "window"), MECHANISMS])
def test_arithmetic_is_that_of_the_parts_that_are_timed(mechanisms: tuple[str, ...]) -> None:
    """Of whole texts, and of the tokens after one: as the executed routes are counted."""
    scene, T, share = dataclasses.replace(TINY, mechanisms=mechanisms), 64, 0.25
    found = arithmetic.ratios_of_parts(scene, T, [share], list(PARTS))
    of_share = {part: ratios[f"{share:g}"] for part, ratios in found.items()}
    dense = scene.network(T)[0].network.dense_macs()
    built = Attention.of(scene, T).mechanisms

    def macs(choices: Tensor) -> float:
        return sum(attention_macs(built, scene.heads, layer) for layer in choices)

    choices = scene.choices(share, T)
    full, along = macs(torch.zeros_like(choices)) / T, macs(choices) / T
    assert of_share["training"] == pytest.approx((dense + along) / (dense + full))
    router = arithmetic.router_macs(scene)
    assert router > 0
    assert of_share["prefill"] == pytest.approx((dense + along + router) / (dense + full))
    after = torch.zeros(scene.layers, 1, T + 1, dtype=torch.long)
    newest = [macs(after + one) - macs(after[:, :, 1:] + one) for one in range(len(built))]
    mixed = share * newest[0] + (1 - share) * sum(newest[1:]) / (len(built) - 1)
    assert of_share["decoding"] == pytest.approx((dense + router + mixed) / (dense + newest[0]))


@pytest.mark.parametrize("names", ["[window,full]", "[full]", "[full,full]", "[full,chunk]"])
def test_routes_that_cannot_be_timed_are_refused(names: str) -> None:
    with pytest.raises(UsageError, match=r"--mechanisms: .* given; full, then one or more of"):
        bench.main(["--what=routed", f"--mechanisms={names}"])


def test_the_table_has_macs_and_times_by_length_and_share() -> None:
    def point(part: str, length: int, share: float, ratio: float) -> dict[str, Any]:
        own = {"part": part, "length": length, "route": routed(share)}
        return own | {"share_of_full": share, "ratio_to_full": ratio}

    times = {"attention": ((64, 0.5), (600, 0.25)), "decoding": ((64, 1.25), (600, 1.0))}
    points = [
        point(part, length, share, ratio * (1 + share))
        for part, own in times.items()
        for length, ratio in own
        for share in (0.0, 1.0)
    ]
    result = {
        "points": points,
        "macs_ratio_to_full": {64: {"0": 0.5, "1": 1.0}, 600: {"0": 0.2, "1": 1.0}},
        "break_even_share": {part: {64: None, 600: None} for part in times},
    }
    out = Console(width=80, record=True, file=io.StringIO())
    _print_routed(result, out)
    rows = [line.split() for line in out.export_text().splitlines()]
    assert ["tokens", "0%", "100%"] in rows
    assert ["MACs", "of", "attention", "600", "20%", "100%"] in rows
    assert ["attention", "600", "4.00", "2.00"] in rows
    assert ["decoding", "64", "0.80", "0.40"] in rows


def test_the_depth_benchmark_says_all_it_should(tmp_path: Path) -> None:
    words = ["--what=depth", "--repeats=1", "--lengths=[64]", "--shares=[0.25,0.5]", "--layers=2"]
    bench.main([*words, f"--out={tmp_path}", "--threads=1", "--device=cpu"])
    facts = json.loads((tmp_path / "depth.json").read_text())
    assert {"command", "hardware", "versions", "setting"} <= facts.keys()
    rows = [(row["route"], row["passed_by"]) for row in facts["points"]]
    assert rows == [(name, share) for name in ("full", "routed 0.1") for share in (0, 0.25, 0.5)]
    for row in facts["points"]:
        assert row["seconds"] > 0 and row["repeats"] >= 1
        assert (row["macs_ratio"] == 1) == (row["passed_by"] == 0)
    whole, _, half = (row["macs_ratio"] for row in facts["points"][:3])
    shape = Scene(layers=2).shape(64)
    dense, attention = 64 * dense_macs(shape), full_attention_macs(shape, 64)
    kv = 64 * (dense_macs(shape, skipped=1) - dense_macs(shape))
    assert half == pytest.approx(whole + (kv - attention) / (dense + 2 * attention))


def test_gates_have_exact_shares_and_are_the_same_again() -> None:
    scene = Scene(layers=4)
    gates = scene.gates(0.3, 100)
    assert gates.shape == (4, 1, 100) and gates[0].all()
    assert (~gates).sum((1, 2)).tolist() == [0, 40, 40, 40]
    assert torch.equal(gates, scene.gates(0.3, 100)) and not torch.equal(gates[1], gates[2])


def test_the_pictures_show_something_and_are_drawn_again(measured: Path, tmp_path: Path) -> None:
    shutil.copy(measured / "routed.json", tmp_path)
    bench.main(["--what=draw", f"--out={tmp_path}"])
    for name in ("routed_by_length.png", "routed_by_share.png"):
        assert (measured / name).is_file()
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 900 and picture.height > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats=0"], "option --repeats: 0 given"),
        (["--graphs=true", "--device=cpu"], "option --graphs: true given, without CUDA; false is"),
        (["--threads=0"], "option --threads: 0 given"),
        (["--threads=100000"], "option --threads: 100000 given; 1 to "),
        (["--lengths=[64]"], "two or more different lengths"),
        (["--what=mechanisms", "--lengths=[64]"], "two or more different lengths"),
        (["--what=routed", "--lengths=[]"], "one or more different lengths"),
        (["--what=routed", "--lengths=[0]"], "one or more different lengths"),
        (["--what=mechanisms", "--run=here"], "option --run: it does nothing with --what mech"),
        (["--what=mechanisms", "--layers=2"], "--layers: it does nothing with --what mechanisms"),
        (["--what=depth", "--parts=[decoding]"], "--parts: it does nothing with --what depth; --o"),
        (["--what=draw", "--lengths=[1,2]"], "option --lengths: it does nothing with --what draw"),
        (["--what=draw", "--threads=1"], "option --threads: it does nothing with --what draw"),
        (["--lengths=[64,64]"], "two or more different lengths"),
        (["--lengths=[0,64]"], "two or more different lengths"),
        (["--shares=[0.1,1.2]"], "option --shares: [0.1, 1.2] given"),
        (["--shares=[0.1,.nan]"], "option --shares: nan given"),
        (["--shares=[]"], "option --shares: [] given"),
        (
            ["--what=depth", "--shares=[0.9]"],
            "option --shares: [0.9] given; above 0 and at most 0.75",
        ),
        (["--what=depth", "--layers=1"], "option --layers: 1 given; 2 or more are allowed"),
        (["--what=depth", "--run=here"], "option --run: it does nothing with --what depth"),
        (["--parts=[decode]"], "option --parts: ['decode'] given; one or more of attention, "),
        (["--what=draw"], "routed.json: No such file or directory"),
        (["--run=nowhere"], "nowhere is not a run"),
        (["--waht=draw"], "did you mean --what"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        bench.main([f"--out={tmp_path / 'out'}", *words])
    assert message in str(caught.value)


def test_an_error_is_one_line_and_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["bench", f"--out={tmp_path / 'file' / 'below'}"])
    with pytest.raises(SystemExit) as caught:
        run_command(bench.main)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: option --out: cannot make")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"points": 3}', '{"points": []}', '{"points": [1]}', '{"points": [{}]}',
     '{"points": [{"part": "attention", "length": "far", "route": "routed 1"}]}'],
)  # fmt: skip
def test_what_cannot_be_drawn_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "routed.json").write_text(content)
    with pytest.raises(
        UsageError, match=r"cannot draw .*routed\.json: it is not what --what routed"
    ):
        bench.main(["--what=draw", f"--out={tmp_path}"])


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, measured: Path) -> None:
    (tmp_path / "depth.json").mkdir()
    words = ["--what=depth", "--repeats=1", "--lengths=[16]", "--shares=[0.5]", "--layers=2"]
    with pytest.raises(UsageError, match=r"--out: cannot write .*depth\.json: Is a directory"):
        bench.main([*words, f"--out={tmp_path}", "--device=cpu"])
    shutil.copy(measured / "routed.json", tmp_path)
    (tmp_path / "routed_by_share.png").mkdir()
    with pytest.raises(UsageError, match=r"--out: cannot write .*by_share\.png: Is a directory"):
        bench.main(["--what=draw", f"--out={tmp_path}"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="--device: cuda given"):
        bench.main(["--what=routed", "--device=cuda"])


def test_the_growth_exponent_of_a_quadratic_is_two() -> None:
    assert growth_exponent([10, 20, 40], [1.0, 4.0, 16.0]) == pytest.approx(2.0)


# -- the parts ---------------------------------------------------------------------------------


def test_routes_have_exact_shares_and_are_the_same_again() -> None:
    choices = TINY.choices(0.1, 200)
    assert choices.shape == (2, 1, 200)
    for layer in choices:
        assert layer.flatten().bincount().tolist() == [20, 90, 90]
    assert not torch.equal(choices[0], choices[1])
    assert torch.equal(choices, TINY.choices(0.1, 200))
    two = dataclasses.replace(TINY, mechanisms=("full", "window"))
    assert two.choices(0.1, 200)[0].flatten().bincount().tolist() == [20, 180]
    assert set(TINY.choices(1.0, 7).flatten().tolist()) == {0}


class Watch(NamedTuple):
    """A pass through the network: what was read, along which choices, and how."""

    tokens: int
    choices: Tensor  # [L, tokens]
    is_half: bool
    has_cache: bool


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """Every pass through a transformer from here on."""
    passes: list[Watch] = []
    states = Transformer.states

    def watching(self: Transformer, tokens: Tensor, route: Any, *rest: Any) -> Tensor:
        seen: list[Tensor] = []

        def noted(layer: int, features: Any) -> Decision:
            decision: Decision = route(layer, features)
            seen.append(decision.route)
            return decision

        out = states(self, tokens, noted, *rest)
        is_half = torch.is_autocast_enabled("cpu")
        passes.append(Watch(tokens.numel(), torch.cat(seen), is_half, any(rest)))
        return out

    monkeypatch.setattr(Transformer, "states", watching)
    return passes


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["prefill", "training", "decoding"])
def test_every_part_runs_what_it_names_in_either_precision(
    part: str, precision: str, watched: list[Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU runs, as far as a CPU can."""
    asked: list[int] = []
    read = DirichletGuide.read
    monkeypatch.setattr(
        DirichletGuide, "read", lambda self, features: asked.append(1) or read(self, features)
    )
    scene = Scene(**vars(TINY) | {"precision": precision})
    calls = PARTS[part].calls(scene, 40, SHARES)
    assert list(calls) == [*MECHANISMS, *map(routed, SHARES)]
    for name, call in calls.items():
        watched.clear(), asked.clear()
        call()
        is_routed = name not in MECHANISMS
        assert sum(one.tokens for one in watched) == PARTS[part].tokens(40)
        assert all(one.is_half == (precision == "bfloat16") for one in watched)
        assert all(one.has_cache == (part == "decoding") for one in watched)
        times = len(watched) if is_routed and part != "training" else 0
        assert len(asked) == scene.layers * times
        choices = torch.cat([one.choices for one in watched], 1)
        if not is_routed:
            assert (choices == MECHANISMS.index(name)).all()
        elif part != "decoding":
            assert torch.equal(choices, scene.choices(float(name.split()[1]), 40)[:, 0])


def test_a_training_step_has_gradients_and_the_others_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = TINY.network(40)
    monkeypatch.setattr(Scene, "network", lambda *_: pair)
    weight = pair[0].network.readout.weight
    for part, has_gradient in (("prefill", False), ("decoding", False), ("training", True)):
        PARTS[part].calls(TINY, 40, [])["window"]()
        assert (weight.grad is not None) == has_gradient


def test_alone_and_routed_to_one_are_the_same_attention() -> None:
    """Like is compared with like: the opponents give what the dispatch gives."""
    attention = Attention.of(TINY, 50)
    for index in range(3):
        choice = torch.full((1, 50), index)
        routed_one = routed_attention(
            attention.mechanisms, attention.gain, choice, attention.inputs
        )
        torch.testing.assert_close(attention.alone(index), routed_one)


def test_interleaving_takes_turns_and_counts_rounds() -> None:
    order: list[str] = []
    calls: Any = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved(calls, repeats=2, warm_up=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert {name: len(own) for name, own in seconds.items()} == {"a": 2, "b": 2}
    assert len(interleaved(calls, 2, 0, longer_s=float("inf"))["a"]) == 2 * MOST
    assert len(interleaved(calls, 5, 0, enough_s=0.0)["a"]) == 1


def test_break_even_by_hand() -> None:
    assert break_even([0.0, 0.5, 1.0], [0.2, 0.8, 1.2]) == 0.5, "between 0.5 and 1 nobody looked"
    assert break_even([1.0, 0.0], [0.9, 0.3]) == 1.0
    assert break_even([0.0, 0.5, 1.0], [0.2, 1.1, 0.9]) == 0.0, "up to it all are faster"
    assert break_even([0.0, 1.0], [1.1, 0.9]) is None
    assert break_even([], []) is None


def test_a_run_of_ones_own_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    words = [*MOMENT, "--steps=2", f"--data.path={tmp_path / 'text.txt'}"]
    assert train.main([*words, f"--out={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    words = ["--what=routed", f"--out={tmp_path}", "--repeats=1", "--lengths=[32]"]
    bench.main([*words, f"--run={tmp_path / 'run'}", "--layers=1", "--parts=[decoding]"])
    facts = json.loads((tmp_path / "routed.json").read_text())
    assert {point["part"] for point in facts["points"]} == {"decoding"}
    figures = facts["trained_run"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["executed"]
    assert figures["run"] == "run"
    assert figures["macs_per_token_model"] == summary["macs_per_token_model"]
    for part in ("training", "decoding"):
        own = figures[part]
        ratio = own["tokens_per_second_routed"] / own["tokens_per_second_full"]
        assert own["speed_up"] == pytest.approx(ratio)
    said = capsys.readouterr().out
    for part in ("attention alone", "a training step", "decoding"):
        assert f"times as fast as full, {part}" in said


@pytest.mark.parametrize("kind", [DirichletGuide, FixedGuide, LooksBackAndSaysNothing])
def test_a_training_step_and_decoding_along_the_routes_of_a_run(
    kind: type[Guide], watched: list[Watch]
) -> None:
    """Of a router, of a mixture, and of a router that has to see whole texts."""
    model, guide = build(guide=kind)
    model.train()
    tokens = text(2, 20)[0]
    trained_run.training(model, guide, tokens, TINY)
    first, *steps = watched
    assert len(steps) == 2 * 2, "two ways, one round to warm up and one that counts"
    for one in steps:
        is_full = (one.choices == 0).all() if one.choices.dim() == 2 else False
        assert is_full or torch.equal(one.choices, first.choices)
    assert model.training and all(p.grad is None for p in model.network.parameters())
    watched.clear()
    trained_run.decoding(model, guide, tokens[:1], TINY)
    assert [one.tokens for one in watched] == [10, 10, *[1] * (4 * DECODED)]
    assert all(one.has_cache for one in watched)


def test_a_run_without_full_has_no_opponent() -> None:
    model, guide = build(mechanisms=("window", "linear"))
    for part in (trained_run.training, trained_run.decoding):
        own = part(model, guide, text(1, 20)[0], TINY)
        assert own["tokens_per_second_full"] is own["speed_up"] is None
        assert own["tokens_per_second_routed"] > 0
