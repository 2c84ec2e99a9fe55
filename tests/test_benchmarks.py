"""What the scripts of benchmarks/ compare is the same; no timing decides anything here."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calls_per_token
import flex_cpu
import pretrained_table
import pytest
import svi
import targets
import torch
from bookkeeping import bookkeeping, recorded_arithmetic
from conftest import build, text
from targets import Target, slowest, speed_up
from test_bench import SHARES, TINY
from test_dispatch import EAGER_FLEX
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from pyro_meta import bench
from pyro_meta.attention import backend, routed_attention
from pyro_meta.attention.ops import gathered
from pyro_meta.inference.elbo import Objective
from pyro_meta.speed import MECHANISMS
from pyro_meta.speed.scene import Attention, Scene
from pyro_meta.speed.timed_parts import PARTS, routed


@pytest.mark.usefixtures("double")
def test_the_plain_step_is_the_same_step() -> None:
    model, guide = build()
    model.kl_weight = 0.3
    torch.manual_seed(4)
    ours = Objective(model, guide)(*text()).loss
    torch.manual_seed(4)
    plain = svi.plain_loss(model, guide, *text())
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_the_svi_benchmark_writes_its_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svi, "LAYERS", 1)
    monkeypatch.setattr(svi, "REPEATS", 1)
    monkeypatch.setattr(sys, "argv", ["svi.py", str(tmp_path / "svi.json")])
    svi.main()
    facts = json.loads((tmp_path / "svi.json").read_text())
    assert {"command", "hardware", "versions", "setting"} <= facts.keys()
    assert facts["ratio_of_medians"] > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attention_alone_gives_what_the_routed_one_gives(precision: str) -> None:
    scene = Scene(**vars(TINY) | {"precision": precision})
    calls = PARTS["attention"].calls(scene, 40, SHARES)
    assert list(calls) == [*MECHANISMS, *map(routed, SHARES)]
    kernels = {}
    for name, call in calls.items():
        with recorded_arithmetic() as recorded:
            call()
        kernels[name] = {function.__name__ for function, _, _ in recorded}
        for function, args, _ in recorded:
            assert "scaled" not in function.__name__ or args[0].dtype == scene.dtype
    assert kernels["full"] == kernels["window"] == {"scaled_dot_product_attention"}
    assert "matmul" in kernels["linear"] and "scaled_dot_product_attention" not in kernels["linear"]
    assert kernels[routed(0.1)] >= kernels["linear"] | kernels["full"]


# -- flex_attention on a CPU -------------------------------------------------------------------


@EAGER_FLEX
def test_flex_attention_is_timed_beside_ways_that_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At lengths that no block divides; the compiler is left out, which takes long."""
    monkeypatch.setattr(flex_cpu, "_flex", lambda: flex_attention)
    monkeypatch.setattr(flex_cpu, "SAMPLE", 500)
    target = tmp_path / "flex.json"
    words = ["flex_cpu.py", "--json", str(target), "--lengths", "130", "500", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", words)
    flex_cpu.main()
    points = json.loads(target.read_text())["points"]
    assert [(one["length"], one["share_of_full"]) for one in points] == [
        (length, share) for length in (130, 500) for share in flex_cpu.SHARES
    ]
    assert all(one["largest_difference"].keys() == {"gathered", "masked", "flex"} for one in points)
    assert all(one["flex_over_gathered"] > 0 for one in points)
    monkeypatch.setattr(flex_cpu, "by_flex", flex_cpu.full)
    with pytest.raises(SystemExit, match=r"flex: .* from the formula at 130 tokens"):
        flex_cpu.main()


def test_without_a_compiler_the_other_ways_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(flex_cpu, "by_flex", fails)
    found = flex_cpu.measured(TINY, [64], [0.5], 1)
    assert found["left_out"] == {"flex": "RuntimeError: no C++ compiler"}
    assert found["points"][0]["ratio_to_full"].keys() == {"gathered", "masked"}
    assert "left out: RuntimeError: no C++ compiler\n" in capsys.readouterr().err


# -- calls of a decoded token ------------------------------------------------------------------


def test_functions_and_operations_of_a_decoded_token_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls_per_token, "LAYERS", 1)
    found = calls_per_token.of_transformer(2, calls_per_token.KV_HEADS, ("full", "window"))
    for count in found.values():
        assert count.calls > count.operations > 10
    assert found["routed"].calls > found["full"].calls + 10, "its guide is asked"
    again = calls_per_token.of_transformer(2, calls_per_token.KV_HEADS, ("full", "window"))
    assert again["full"].operations == found["full"].operations


# -- bookkeeping -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("way", ["gather", "flex"])
def test_arithmetic_is_recorded_and_masks_and_tables_are_not(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Every kernel is recorded; nothing is while masks and plans are made."""
    attention = Attention.of(TINY, 300)
    choice = TINY.choices(0.3, 300)[0]
    made: list[int] = []

    masks = gathered._masks

    def watched_masks(*args: Any) -> Iterator[Tensor]:
        before = len(calls)
        for mask in masks(*args):
            made.append(len(calls) - before)
            yield mask
            before = len(calls)

    monkeypatch.setattr(gathered, "_masks", watched_masks)
    with torch.no_grad(), backend(way), recorded_arithmetic() as calls:
        out = routed_attention(attention.mechanisms, attention.gain, choice, attention.inputs)
    kernels = [f.__name__ for f, _, _ in calls]
    if way == "gather":
        assert len(made) == kernels.count("scaled_dot_product_attention") > 0
        assert sum(made) == 0
        assert kernels.count("mul") == 3, "the gains, and no mask"
    else:
        assert kernels.count("flex_attention") == 2, "full and window"
    assert kernels.count("matmul") >= 4, "linear"
    with torch.no_grad(), backend(way):
        again = routed_attention(attention.mechanisms, attention.gain, choice, attention.inputs)
    assert torch.equal(out, again), "recording changes nothing"
    for function, args, kwargs in calls:
        function(*args, **kwargs)


@pytest.mark.parametrize(("routed_s", "replay_s", "share"), [(4.0, 3.0, 0.25), (3.0, 3.1, 0.0)])
def test_bookkeeping_is_what_is_left_of_the_replay(
    monkeypatch: pytest.MonkeyPatch, routed_s: float, replay_s: float, share: float
) -> None:
    counts: dict[str, int] = {}

    def timed(scene: Scene, calls: Any, repeats: int) -> dict[str, list[float]]:
        for name, call in calls.items():
            with recorded_arithmetic() as recorded:
                call()
            counts[name] = len(recorded)
        return {"routed": [routed_s] * repeats, "arithmetic": [replay_s] * repeats}

    monkeypatch.setattr(Scene, "time", timed)
    found = bookkeeping(TINY, 128, 0.5)
    assert found["share_of_time"] == pytest.approx(share)
    assert (found["length"], found["share_of_full"]) == (128, 0.5)
    assert 0 < counts["arithmetic"] <= counts["routed"], "it repeats arithmetic and nothing else"


# -- targets -----------------------------------------------------------------------------------


def test_a_target_is_met_on_the_right_side() -> None:
    assert Target("fast", 3.0, at_least=3.0).met and not Target("fast", 2.9, at_least=3.0).met
    assert Target("small", 0.1, at_most=0.1).met and not Target("small", 0.2, at_most=0.1).met
    assert Target("unknown", None, at_least=3.0).met is None


def test_targets_read_the_right_points() -> None:
    def point(length: int, route: str, ratio: float) -> dict[str, Any]:
        return {"part": "attention", "length": length, "route": route, "ratio_to_full": ratio}

    points = [
        point(256, "routed 0.5", 3.0),
        point(512, "routed 0.5", 1.05),
        point(512, "window", 9.0),
        point(8192, "routed 0.1", 0.25),
        point(8192, "routed 0.05", 0.2),
    ]
    assert speed_up(points, "attention", 8192) == 4.0
    assert speed_up(points, "prefill", 8192) is None
    assert slowest(points, "attention") == 1.05
    assert slowest(points, "prefill") is None


@pytest.mark.long
def test_all_targets_are_judged_from_the_files_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a close look at tiny sizes."""
    threads = torch.get_num_threads()
    words = ["--what=routed", "--repeats=1", "--lengths=[64,600]", "--shares=[0.1,1]", "--layers=1"]
    words += ["--parts=[attention,prefill]", "--device=cpu", f"--threads={threads}"]
    bench.main([*words, f"--out={tmp_path}"])
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "current"
    for name in ("svi.json", "mechanisms.json"):
        shutil.copy(results / "epyc" / name, tmp_path)
    monkeypatch.setattr(sys, "argv", ["targets.py", str(tmp_path)])
    targets.main()
    facts = json.loads((tmp_path / "targets.json").read_text())
    assert facts["memory"]["peak_bytes_full"] != 0
    assert 0 <= facts["bookkeeping"]["share_of_time"] < 1
    assert {row["length"] for row in facts["limits"]["attention"]} == {64, 600}
    assert all(row["limit_seconds"] > 0 for row in facts["limits"]["attention"])
    rows = {row["target"]: row for row in facts["targets"]}
    assert all((row["met"] is None) == (row["measured"] is None) for row in rows.values())
    (slow,) = (row for what, row in rows.items() if what.startswith("a training step"))
    assert slow["measured"] is None, "it was not asked for"
    known = {what for what, row in rows.items() if row["measured"] is not None}
    assert "attention alone, any share, any T >= 512: time over that of full" in known
    assert "window: growth exponent, forward and backward" in known
    assert "SVI step over the same step in plain PyTorch" in known
    assert not any("T=8192" in what and "dense" not in what for what in known), "longer than asked"
    assert "targets" in capsys.readouterr().out


# -- the study of a pretrained model ---------------------------------------------------------------


def left(folder: Path, name: str, rows: dict[str, tuple[list[float], float]], **more: Any) -> None:
    """A file as the study leaves it: losses by document, and visits."""
    found = {row: {"by_sequence": one, "visits": visits} for row, (one, visits) in rows.items()}
    part = {"texts": ["library-a", "speech-b", "speech-c"], "rows": found} | more
    (folder / f"{name}-64.json").write_text(json.dumps({"losses": {"64": part}}))


def test_answers_are_counted_over_depths_and_seeds(tmp_path: Path) -> None:
    def cells(*accuracies: float) -> list[dict[str, float]]:
        return [{"accuracy": one, "asked": 3, "length": 64, "depth": 0.5} for one in accuracies]

    for seed, accuracies in ((0, (1.0, 1 / 3)), (2, (0.0, 2 / 3))):
        rows = {f"routes-s{seed}: routes, hard, at 0.33": cells(*accuracies)}
        rows |= {"full": cells(1.0, 1.0)} if seed == 0 else {}
        asked = {"passkey": {"chance": 1e-5, "rows": rows}}
        where = tmp_path / "questions" if seed else tmp_path
        where.mkdir(exist_ok=True)
        (where / f"routes-s{seed}-64.json").write_text(json.dumps({"retrieval": asked}))
    found = pretrained_table.retrieval(tmp_path, 64)["passkey"]
    assert found["chance"] == 1e-5 and found["rows"] == {
        "routes: routes, hard, at 0.33": {"right": 6, "asked": 12},
        "full": {"right": 6, "asked": 6},
    }
    assert pretrained_table.retrieval(tmp_path, 128) == {}


def test_rows_of_the_study_are_paired_by_seed_and_document(tmp_path: Path) -> None:
    """Seeds and documents that are harder than others make no difference between rows."""
    hard = [0.0, 0.2, 0.5]
    left(tmp_path, "a", {"full": (hard, 1.0), "window": ([x + 1 for x in hard], 0.2)})
    for name, seeds, behind in (("routes", (0, 1, 2), 0.1), ("static-split", (1, 2), 0.3)):
        rows = {
            f"{name}-s{seed}: routes, hard, at {at}": (
                [x + behind / (1 + (at > 0.4)) + 0.05 * seed for x in hard],
                at + 0.01 * (name != "routes"),
            )
            for seed in seeds
            for at in (0.33, 0.43)
        }
        left(tmp_path, name, rows)
    left(tmp_path, "layers", {"layers by loss, at 0.33": ([x + 0.4 for x in hard], 0.33)})
    found = pretrained_table.summary(tmp_path, [64], [0.33, 0.43])["64"]
    ahead = found["routes_ahead_of"]
    split = ahead["static split, at 0.33"]
    assert split["ahead"] == pytest.approx(0.2) and [*split["by_seed"]] == [1, 2]
    assert split["interval"] == pytest.approx((0.2, 0.2)), "what is alike in both is left out"
    # the split gains .15 from .34 to .44 of the visits, and has .01 more than the routes
    assert split["ahead_at_equal_visits"] == pytest.approx(0.2 + 0.01 * 1.5)
    layers = ahead["layers by loss, at 0.33"]
    assert layers["ahead"] == pytest.approx(0.4 - 0.1 - 0.05) and layers["seeds"] == 3
    assert found["rows"]["routes: routes, hard, at 0.33"]["by_seed"] == pytest.approx(
        [0.1, 0.15, 0.2]
    )
    macs = {"dense": 900.0, "full_attention": 33.0, "router": 10.0}
    (tmp_path / "others-32.json").write_text(json.dumps({"macs_per_token": macs}))
    fewer = pretrained_table.summary(tmp_path, [64], [0.33])["64"]["fewer_macs"]
    run = 0.33 + (0.33 - 0.2) / (1 - 0.2) * 0.2  # where it is full, the window runs, too
    of_routes = fewer["routes: routes, hard, at 0.33"]
    assert of_routes["attention"] == pytest.approx(1 - run)
    after = 900 + 10 + run * 65  # attention grows with the length
    assert of_routes["whole_model"] == pytest.approx(1 - after / (900 + 65))
    (tmp_path / "others-32.json").unlink()
    left(tmp_path, "other", {"full": (hard, 1.0)}, texts=["x", "y", "z"])
    with pytest.raises(SystemExit, match="other documents"):
        pretrained_table.summary(tmp_path, [64], [0.33])
