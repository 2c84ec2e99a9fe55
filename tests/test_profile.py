"""What each way costs on this machine: what it decides, and where it is kept; no clock decides."""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT, error_line, run_here, train
from test_dispatch import Case, assert_same, refuse

import pyro_meta.bench
import pyro_meta.generate
from pyro_meta import UsageError
from pyro_meta.attention import (
    Full,
    Inputs,
    Linear,
    Sizes,
    Window,
    build_mechanisms,
    clock,
    profile,
    routed_attention,
    ways,
)
from pyro_meta.attention.masked_trials import SIZES, MaskedTimes
from pyro_meta.attention.ops import masked
from pyro_meta.attention.profile import (
    DEFAULT,
    MaskedWork,
    Profile,
    Work,
    fit,
    fit_masked,
    of_this_machine,
    profiled,
)
from pyro_meta.folders import cache_folder
from pyro_meta.posterior import belief, report
from pyro_meta.speed import depth_gates

NO_MASK = {"masked_cost": 1e9, "masked_cost_with_gradients": 1e9}
NEVER = Profile(1e9, 1e9, **NO_MASK)
ALWAYS = Profile(1e-9, 1e-9, sequence_macs=1e-9, **NO_MASK)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path / "cache"))
    profile._say.cache_clear()
    yield
    profile._say.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Profile]:
    """What measuring gives, one after another; the environment asks for it."""
    monkeypatch.setenv("PYRO_META_PROFILE", "measured")
    coming = [replace(DEFAULT, gathered_cost=cost) for cost in (2.0, 3.0)]
    monkeypatch.setattr(profile, "measure", lambda: coming.pop(0))
    return coming


def kept() -> Path:
    (path,) = (cache_folder() / "profile").glob("*.json")
    return path


@pytest.mark.parametrize("traced", [False, True])
def test_a_profile_decides_the_way_and_not_the_values(
    traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case([90, 50], shares=(0.3, 0.4, 0.2, 0.1))
    expected = case.results("dense")
    for other, refused in ((NEVER, "serve"), (ALWAYS, "forward")):
        with profiled(other), monkeypatch.context() as patch:
            for kind in (Full, Window):  # half of what linear attention does is done in either way
                patch.setattr(kind, refused, refuse)
            if traced:
                assert_same(case.results("auto"), expected)
            else:
                with torch.no_grad():
                    assert_same([case.run("auto")], expected[:1])
        assert profile.current() is DEFAULT


def test_gradients_have_a_cost_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([90, 50], shares=(0.3, 0.4, 0.3))
    monkeypatch.setattr(Full, "serve", refuse)
    with profiled(replace(ALWAYS, gathered_cost_with_gradients=1e9)):
        case.run("auto")
        with torch.no_grad(), pytest.raises(AssertionError):
            case.run("auto")


def test_work_of_one_query_by_hand() -> None:
    """The last of 4 tokens, d = 2 and 3 heads: 2 d (t + 1) MACs per head, blocks of 4 or of 2."""
    queries = profile.Queries(torch.tensor([0]), torch.tensor([3]))
    q = torch.zeros(5, 3, 4, 2)
    work = Work.of(Full(2, 1), queries, q, block=2)
    everyone = 5 * 3 * (4 * (1 + 2 + 3 + 4) + 2 * 2 * 4 * 4 / 2)
    assert work == Work(everyone, own=3 * (4 * 4 + 2 * 2 * 1 * 2 / 2), on_keys=0, sequences=5)
    ratio = replace(DEFAULT, gathered_cost=2, sequence_macs=7).serving(work, False)
    assert ratio == 2 * work.own + 7 * 5
    assert Work.of(Linear(2, 1), queries, q, 2).on_keys == 5 * 3 * (4 * 8 + 2 * 2 * 4 * 4 / 2) / 2
    work = Work.of(Window(2, 1, sinks=2), queries, q, 2)  # it sees 3 keys, as many as the third
    assert work.own == 3 * (4 * 3 + 2 * 2 * 1 * 2 / 2)
    assert work.everyone == 5 * 3 * (4 * (1 + 2 + 3 + 3) + 2 * 2 * 4 * 4 / 2)


def test_a_fit_finds_the_profile_that_the_times_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "ROUNDS", 1)
    truth = replace(DEFAULT, gathered_cost=1.9, gathered_cost_with_gradients=0.7, sequence_macs=4e5)
    works = [profile.tried(trial)[0] for trial in profile.trials()]
    plain, traced = ([truth.serving(one, way) / one.everyone for one in works] for way in (0, 1))
    cost, sequence = fit(works, plain)
    assert (cost, sequence) == pytest.approx((1.9, 4e5))
    assert fit(works, traced, sequence)[0] == pytest.approx(0.7)
    softmax = [one for one in works if not one.on_keys]
    assert fit(softmax, [0.0] * len(softmax)) == (profile.LEAST_COST, profile.LEAST_SEQUENCE_MACS)


def test_masked_work_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 tokens in rows of 2, 2 and 1 meet 2, 4 and 5 keys; 2 sequences of 3 heads, d = 4."""
    monkeypatch.setattr(masked, "ROWS", 2)
    pairs = 2 * (2 * 2 + 2 * 4 + 1 * 5)
    work = MaskedWork.of(2, 3, 5, 4)
    assert work == MaskedWork(macs=2 * 4 * 3 * pairs, numbers=pairs)
    one = replace(DEFAULT, masked_cost=2, masked_cost_with_gradients=3, mask_macs=7)
    assert one.masking(work, False) == 2 * work.macs + 7 * pairs
    assert one.masking(work, True) == 3 * work.macs + 7 * pairs


def test_a_fit_finds_what_a_masked_call_costs() -> None:
    times = []
    for B, T in SIZES:  # full attention of 4 heads of width 32, in blocks of 512
        everyone = B * 4 * 64 * (T * (T + 1) / 2 + T * min(512, T) / 2)
        work = MaskedWork.of(B, 4, T, 32)
        plain, traced = (cost * work.macs + 30 * work.numbers for cost in (1.7, 0.9))
        times.append(MaskedTimes(30 * work.numbers / everyone, plain / everyone, traced / everyone))
    assert fit_masked(SIZES, times) == pytest.approx((1.7, 0.9, 30))
    nothing = [MaskedTimes(0.0, 0.0, 0.0)] * len(SIZES)
    least = (profile.LEAST_COST, profile.LEAST_COST, profile.LEAST_MASK_MACS)
    assert fit_masked(SIZES, nothing) == least


def test_mechanisms_are_weighed_beside_each_other_by_what_a_mac_of_each_takes() -> None:
    one = replace(DEFAULT, window_cost=3.0)
    assert [one.unit(kind(8, 4)) for kind in (Full, Window, Linear)] == [1.0, 3.0, 1.0]


def test_a_dear_window_makes_one_masked_call_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it costs little by itself, each mechanism is run by itself."""
    calls = []
    run = ways.masked_attention
    monkeypatch.setattr(ways, "masked_attention", lambda *x: calls.append(x) or run(*x))
    inputs = Inputs(*torch.randn(5, 1, 2, 512, 8))
    choice = (torch.arange(512) % 2)[None]
    mechanisms = build_mechanisms(("full", "window"), Sizes(8, 16))
    for cost, expected in ((1e-3, 0), (1e3, 1)):
        with profiled(replace(DEFAULT, window_cost=cost)), torch.no_grad():
            routed_attention(list(mechanisms), torch.ones(2, 16), choice, inputs)
        assert len(calls) == expected


def test_what_is_measured_is_finite_and_positive() -> None:
    before = torch.random.get_rng_state()
    found = profile.measure()
    assert all(math.isfinite(value) and value > 0 for value in asdict(found).values())
    assert found.launch_macs == DEFAULT.launch_macs
    assert found.gathered_block == DEFAULT.gathered_block
    assert torch.equal(before, torch.random.get_rng_state()), "no draw of a model's is taken"


def test_it_is_measured_once_and_anew_on_demand(
    measured: list[Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [of_this_machine().gathered_cost for _ in range(3)] == [2.0] * 3
    found = json.loads(kept().read_text())
    assert found["profile"]["gathered_cost"] == 2.0 and found["threads"] == 1
    monkeypatch.setenv("PYRO_META_REFRESH_PROFILE", "1")
    assert of_this_machine().gathered_cost == 3.0
    monkeypatch.delenv("PYRO_META_REFRESH_PROFILE")
    assert of_this_machine().gathered_cost == 3.0 and not measured


@pytest.mark.parametrize(
    "change",
    [
        {"gathered_cost": -1.0},
        {"gathered_cost": math.nan},
        {"gathered_cost": None},
        {"gathered_cost": "2"},
        {"of_another_version": 1.0},
    ],
)
def test_a_damaged_file_is_measured_anew(measured: list[Profile], change: dict[str, Any]) -> None:
    of_this_machine()
    whole = json.loads(kept().read_text())
    kept().write_text(json.dumps(whole | {"profile": whole["profile"] | change}))
    assert of_this_machine().gathered_cost == 3.0
    assert json.loads(kept().read_text())["profile"]["gathered_cost"] == 3.0


def test_a_file_of_a_version_that_measured_less_is_measured_anew(measured: list[Profile]) -> None:
    of_this_machine()
    whole = json.loads(kept().read_text())
    del whole["profile"]["mask_macs"]
    kept().write_text(json.dumps(whole))
    assert of_this_machine().gathered_cost == 3.0
    assert json.loads(kept().read_text())["profile"]["mask_macs"] == DEFAULT.mask_macs


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"profile": 3}', '"profile"'])
def test_a_file_that_is_no_profile_is_replaced(measured: list[Profile], text: str) -> None:
    of_this_machine()
    kept().write_text(text)
    assert of_this_machine().gathered_cost == 3.0


def test_without_a_folder_to_write_to_the_default_is_taken_and_said_once(
    measured: list[Profile],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path / "file"))
    assert [of_this_machine() for _ in range(2)] == [DEFAULT] * 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("set PYRO_META_CACHE") == said.err.count("\n") == 1


def test_a_kept_profile_is_read_where_nothing_can_be_written(
    measured: list[Profile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_this_machine()

    def refused(*args: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert of_this_machine().gathered_cost == 2.0 and capsys.readouterr().err == ""


def test_a_measurement_that_fails_is_said_and_not_kept(
    measured: list[Profile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Profile:
        raise RuntimeError("no clock")

    monkeypatch.setattr(profile, "measure", fail)
    assert of_this_machine() is DEFAULT
    assert "no clock" in capsys.readouterr().err
    assert not list((cache_folder() / "profile").glob("*.json"))


def test_who_asks_for_the_default_or_for_a_gpu_has_nothing_measured(
    measured: list[Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "measure", refuse)
    assert of_this_machine("cuda") is DEFAULT
    monkeypatch.setenv("PYRO_META_PROFILE", "default")
    assert of_this_machine() is DEFAULT
    monkeypatch.setenv("PYRO_META_PROFILE", "fast")
    with pytest.raises(UsageError, match=r"PYRO_META_PROFILE: 'fast' given; measured and default"):
        of_this_machine()
    assert not (cache_folder() / "profile").exists()


def test_tests_measure_nothing() -> None:
    assert os.environ["PYRO_META_PROFILE"] == "default"


def test_commands_take_the_profile_of_this_machine(
    text_file: Path, tmp_path: Path, measured: list[Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that executes routes measures it; a mistaken option does not."""
    seen: list[float] = []

    def noting(result: Any) -> Callable[..., Any]:
        def note(*args: Any) -> Any:
            seen.append(profile.current().gathered_cost)
            return result

        return note

    out = f"--out={tmp_path / 'bench'}"
    with pytest.raises(UsageError):
        pyro_meta.bench.main(["--what=depth", out, "--layers=0"])
    assert len(measured) == 2
    monkeypatch.setattr(depth_gates, "bench_depth", noting({"points": []}))
    pyro_meta.bench.main(["--what=depth", out])
    assert json.loads((tmp_path / "bench" / "depth.json").read_text())["profile"] == asdict(
        replace(DEFAULT, gathered_cost=2.0)
    )
    pays = ways.pays
    monkeypatch.setattr(ways, "pays", lambda *args: noting(pays(*args))())
    train(*MOMENT, f"--data.path={text_file}", f"--out={tmp_path / 'run'}")
    assert 2.0 in seen[1:]
    for name, module in (("_show", pyro_meta.generate), ("believe", belief)):
        monkeypatch.setattr(module, name, noting(None))
    seen.clear()
    pyro_meta.generate.main([str(tmp_path / "run"), "--max_tokens=1"])
    assert 2.0 in seen
    seen.clear()
    (place,) = report._places([tmp_path / "run"], None)
    report._findings(place, False, True, False, lambda what: None)
    assert seen == [2.0] and len(measured) == 1
    assert profile.current() is DEFAULT


@pytest.mark.parametrize(
    ("module", "words"),
    [("train", MOMENT), ("bench", ("--what=depth", "--layers=2"))],
    ids=["train", "bench"],
)
def test_an_unknown_profile_is_refused_in_one_line_and_leaves_no_folder(
    module: str,
    words: tuple[str, ...],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYRO_META_PROFILE", "fast")
    of_text = (f"--data.path={text_file}",) if module == "train" else ()
    refused = run_here(module, *words, *of_text, f"--out={tmp_path / 'out'}")
    assert error_line(refused).endswith(
        "PYRO_META_PROFILE: 'fast' given; measured and default are allowed"
    )
    assert not (tmp_path / "out").exists()
