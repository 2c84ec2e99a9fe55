"""Runs that route a pretrained model, from the command line: trained, resumed, read, measured."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pytest
import torch
import yaml
from commands import TEXT, error_line, run_here, train
from pretrained_models import refused, tiny
from processes import finish
from pyro.infer import TraceMeanField_ELBO
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import pyro_meta
from pyro_meta import CategoricalGuide, LoadGuide, UsageError
from pyro_meta.analysis import plots, reading
from pyro_meta.analysis.plots import routes as routes_plots
from pyro_meta.guides import along_means, walk
from pyro_meta.pretrained import convert, load_routes, save_routes
from pyro_meta.pretrained.conversion import deployed
from pyro_meta.pretrained.loading import load_model
from pyro_meta.study.description import Study
from pyro_meta.study.plan import expand
from pyro_meta.training.config import read_options, train_words
from pyro_meta.training.run import Run

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SHORT = [
    "--context=32", "--window=4", "--sinks=2", "--steps=12", "--validation_tokens=128",
    "--checkpoint_every=4", "--accelerator=cpu", "--warm.texts=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder, with a tokenizer of single bytes, and a text beside it."""
    folder = tmp_path_factory.mktemp("base")
    made = tiny("Llama", vocab_size=len(LETTERS))
    made.save_pretrained(folder / "model")
    tokenizer = Tokenizer(models.BPE({one: at for at, one in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "text.txt").write_text(TEXT)
    return folder


def words(base: Path, out: Path, *more: str) -> list[str]:
    given = [f"--pretrained={base / 'model'}", f"--data.path={base / 'text.txt'}", f"--out={out}"]
    return [*given, *SHORT, *more]


@pytest.fixture(scope="module")
def routes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run; to be left as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_META_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert train(*words(base, base / "routes")) == 0
        yield base / "routes"


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_preset_is_that_of_pretrained_models(routes: Path) -> None:
    model, guide, _, config = Run.open(routes).load()
    assert isinstance(guide, CategoricalGuide) and guide.follows
    assert (config.target, config.budget, config.groups) == ("model", 0.4, "kv")
    assert model.network.mechanism_names == ["full", "window"]
    assert config.tighten.end == 0.5


def test_a_run_leaves_what_its_routes_cost_and_gain(routes: Path) -> None:
    summary = json.loads((routes / "summary.json").read_text())
    rows = summary["beside"]
    assert list(rows) == [
        "routes, hard", "routes, soft", "random tokens, the same loads", "full", "window",
    ]  # fmt: skip
    assert rows["full"]["visits"] == pytest.approx(1.0)
    assert rows["window"]["visits"] <= rows["routes, hard"]["visits"] < 1
    assert rows["random tokens, the same loads"]["visits"] == pytest.approx(
        rows["routes, hard"]["visits"], abs=0.03
    ), "dealt out among near tokens of the same sequence"
    assert summary["prior"]["lambda"] != 0


def test_weights_are_as_they_were(base: Path, routes: Path) -> None:
    model, _, _, _ = Run.open(routes).load()
    assert not any(one.requires_grad for one in model.network.parameters())
    before = load_model(str(base / "model"), model.network.hf_model.dtype).state_dict()  # type: ignore[attr-defined]
    for name, weight in model.network.hf_model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(weight, before[name])


def test_a_run_that_is_stopped_goes_on_to_the_same_losses(
    base: Path, routes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the price and the loads, too, which are no weights."""
    from pyro_meta.training import loop

    figures, count = loop._figures, 0

    def dying(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return figures(*given)

    monkeypatch.setattr(loop, "_figures", dying)
    with pytest.raises(KeyboardInterrupt):
        train(*words(base, tmp_path / "run"))
    monkeypatch.undo()
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path / "cache"))
    assert train("--resume", tmp_path / "run") == 0
    assert losses(tmp_path / "run") == losses(routes)
    ours, theirs = (
        json.loads((one / "summary.json").read_text()) for one in (tmp_path / "run", routes)
    )
    for name in ("val_nll_hard", "load", "beside", "prior"):
        assert ours[name] == theirs[name]


def test_another_model_in_its_place_is_refused(base: Path, routes: Path) -> None:
    """Whoever reads the run."""
    weights = base / "model" / "model.safetensors"
    before = weights.read_bytes()
    other = load_model(str(base / "model"))
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(base / "model")
    try:
        for command, more in (("generate", ["--prompt=the"]), ("evaluate", [])):
            assert "is of another model" in error_line(run_here(command, routes, *more))
        with pytest.raises(UsageError, match="is of another model"):
            train("--resume", routes, "--steps=13")
    finally:
        weights.write_bytes(before)


def test_text_goes_on(routes: Path) -> None:
    found = [
        run_here("generate", routes, "--prompt=the quick", "--max_tokens=9", *more)
        for more in ([], ["--cache=false"])
    ]
    assert found[0].returncode == 0 and found[0].stdout.startswith("the quick")
    assert found[0].stdout == found[1].stdout


def test_a_run_stays_in_the_precision_that_it_was_trained_in(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever machine reads it: `auto` is settled once, when the run begins."""
    for is_half, settled in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr("pyro_meta.training.config.has_bfloat16", lambda _, half=is_half: half)
        config, saved = read_options(words(base, tmp_path / "run"))
        assert config.precision == yaml.safe_load(saved)["precision"] == settled
        (tmp_path / "saved.yaml").write_text(saved)
        monkeypatch.setattr("pyro_meta.training.config.has_bfloat16", lambda _, h=is_half: not h)
        again, _ = read_options([f"--config={tmp_path / 'saved.yaml'}"])
        assert again.precision == settled


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_converted_model_says_what_its_run_says(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Greedily, in the dtype that the run was trained in."""
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path / "cache"))
    assert train(*words(base, tmp_path / "run", f"--precision={precision}", "--steps=4")) == 0
    model, guide, vocabulary, _ = Run.open(tmp_path / "run").load()
    hf_model: Any = model.network.hf_model  # type: ignore[attr-defined]
    half = precision == "bf16-mixed"
    assert hf_model.dtype == (torch.bfloat16 if half else torch.float32)
    told = run_here("generate", tmp_path / "run", "--prompt=the quick", "--max_tokens=9",
                    "--greedy=true")  # fmt: skip
    prompt = torch.from_numpy(vocabulary.encode("the quick"))[None]
    new = convert(hf_model, guide).generate(prompt, max_new_tokens=9, do_sample=False)
    assert vocabulary.decode(new[0].tolist()) + "\n" == told.stdout


def test_a_report_shows_a_passage_by_group(routes: Path, tmp_path: Path) -> None:
    done = run_here("report", routes, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    text = next((tmp_path / "report").rglob("*.html")).read_text()
    assert "layer 2, heads 1" in text
    assert (tmp_path / "report" / "heads.png").is_file()


@pytest.mark.long
def test_a_report_of_very_many_heads_shows_the_most_mixed_first(
    routes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (reading, routes_plots, plots):
        monkeypatch.setattr(module, "MOST_ROWS", 3)
    done = run_here("report", routes, "--belief=false", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    run = reading.Reading.of(routes)
    assert run.has_many_rows and sorted(run.rows) == list(range(6))
    mixed = [min(run.shares[row]) for row in run.rows]
    assert mixed == sorted(mixed, reverse=True)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"heads.png", "forest.png", "passage.png"} <= names
    assert not {"load_by_layer.png", "simplex.png"} & names


@pytest.mark.long
def test_a_report_of_one_mechanism_has_no_map_of_heads(base: Path, tmp_path: Path) -> None:
    alone = ["--mechanisms=[full]", "--target=text", "--guide=PriorGuide", "--budget=null"]
    assert train(*words(base, tmp_path / "alone", *alone, "--steps=1")) == 0
    done = run_here("report", tmp_path / "alone", "--belief=false")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "alone" / "report" / "heads.png").exists()


def test_runs_are_evaluated_side_by_side(base: Path, routes: Path, tmp_path: Path) -> None:
    assert train("--preset=head_split", *words(base, base / "split")) == 0
    _, guide, _, _ = Run.open(base / "split").load()
    assert isinstance(guide, LoadGuide) and guide.follows
    out = tmp_path / "found" / "figures.json"
    done = run_here(
        "evaluate", routes, base / "split", "--lengths=[32,120]", "--tokens=600",
        "--retrieval=[passkey,pairs]", "--depths=[0.5]", "--questions=1", "--json", out,
    )  # fmt: skip
    assert done.returncode == 2 and "has room for" in error_line(done)
    done = run_here(
        "evaluate", routes, base / "split", "--lengths=[120]", "--tokens=600",
        "--retrieval=[passkey]", "--depths=[0.5]", "--questions=1", "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    rows = found["losses"]["120"]["rows"]
    assert {"routes: routes, hard", "split: routes, hard", "full", "window"} <= rows.keys()
    assert len(rows["full"]["by_sequence"]) == len(found["losses"]["120"]["texts"])
    (cell,) = found["retrieval"]["passkey"]["rows"]["full"]
    assert cell["length"] == 120 and found["retrieval"]["passkey"]["chance"] == 1e-5
    assert "behind full" in done.stdout and "chance" in done.stdout


def test_runs_are_evaluated_at_equal_visits(routes: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = run_here(
        "evaluate", routes, "--budgets=[0.5,0.8]", "--lengths=[100]", "--tokens=600",
        "--retrieval=[passkey]", "--depths=[0.5]", "--questions=1", "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    rows = found["losses"]["100"]["rows"]
    for visits in (0.5, 0.8):
        row = rows[f"routes: routes, hard, at {visits}"]
        assert row["visits"] == pytest.approx(visits, abs=0.03) and "price" in row
        assert f"routes: random tokens, the same loads, at {visits}" in rows
        assert f"routes: routes, hard, at {visits}" in found["retrieval"]["passkey"]["rows"]
    assert not any("soft" in name for name in rows)
    assert {"full", "window"} <= rows.keys()
    done = run_here(
        "evaluate", routes, "--budgets=[0.5]", "--lengths=[100]", "--tokens=600", "--alone=false",
        "--retrieval=[passkey]", "--depths=[0.5]", "--questions=1", "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    less = json.loads(out.read_text())
    name = "routes: routes, hard, at 0.5"
    assert less["losses"]["100"]["rows"].keys() == {
        name, "routes: random tokens, the same loads, at 0.5",
    }  # fmt: skip
    assert less["losses"]["100"]["rows"][name] == rows[name]
    assert less["retrieval"]["passkey"]["rows"].keys() == {name}


def test_a_finished_run_knows_what_its_routes_spend(routes: Path) -> None:
    _, guide, _, _ = Run.open(routes).load()
    summary = json.loads((routes / "summary.json").read_text())
    assert guide.spending is not None
    assert list(guide.spending.visits) == summary["spending"]["visits"]
    made = guide.model.network.hf_model  # type: ignore[attr-defined]
    convert(made, guide, budget=0.7, checks=False)
    assert float(guide.execution.price) == pytest.approx(guide.spending.price_for(0.7))


def test_losses_by_document(routes: Path, tmp_path: Path) -> None:
    for name, length in (("long.txt", 400), ("longer.txt", 900), ("short.txt", 20)):
        (tmp_path / name).write_text(TEXT[:length])
    done = run_here("evaluate", routes, "--documents", tmp_path, "--lengths=[100]")
    assert done.returncode == 0, done.stderr
    assert "longer.txt" in done.stdout and "short.txt" not in done.stdout
    done = run_here("evaluate", routes, "--documents", tmp_path / "short.txt")
    assert "no file of more than 32 tokens" in error_line(done)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lengths=[1]"], "--lengths: 1 given"),
        (["--depths=[1.5]"], "--depths: 1.5 given"),
        (["--questions=0"], "--questions: 0 given"),
        (["--tokens=0"], "--tokens: 0 given"),
        (["--documents=nowhere.txt"], "nowhere.txt"),
        (["--budgets=[0.4,0]"], "--budgets: 0.0 given; above 0, at most 1"),
    ],
)
def test_bad_words_are_told_in_one_line(routes: Path, more: list[str], message: str) -> None:
    assert message in error_line(run_here("evaluate", routes, *more))


def test_two_runs_of_one_name_are_refused(routes: Path) -> None:
    assert "two runs are called routes" in error_line(run_here("evaluate", routes, routes))


def test_its_clock_is_taken(base: Path, routes: Path, tmp_path: Path) -> None:
    given = ["--what=converted", f"--out={tmp_path}", "--lengths=[24]", "--repeats=1"]
    done = run_here("bench", *given, f"--run={routes}")
    assert done.returncode == 0, done.stderr
    (point,) = json.loads((tmp_path / "converted.json").read_text())["points"]
    assert point["length"] == 24 and 0 < point["visits"] < 1
    assert set(point["times_as_fast"]["prefill"]) == {"routed", "all full"}
    assert "--run: a run of a pretrained model" in error_line(run_here("bench", *given))


@pytest.mark.long
def test_its_clock_is_taken_at_a_budget(routes: Path, tmp_path: Path) -> None:
    """Prices are moved length by length, and more visits are more visits."""
    given = ["--what=converted", "--lengths=[24,32]", "--repeats=1", f"--run={routes}"]
    visits = {}
    for budget in (0.5, 0.8):
        out = tmp_path / f"{budget}"
        done = run_here("bench", *given, f"--out={out}", f"--budget={budget}")
        assert done.returncode == 0, done.stderr
        points = json.loads((out / "converted.json").read_text())["points"]
        visits[budget] = [point["visits"] for point in points]
    for fewer, more in zip(visits[0.5], visits[0.8], strict=True):
        assert abs(fewer - 0.5) < 0.1 and abs(more - 0.8) < 0.1


def test_its_routes_are_deployed_and_saved(base: Path, routes: Path, tmp_path: Path) -> None:
    """The price that the guide follows comes along."""
    _, guide, _, _ = Run.open(routes).load()
    made = guide.model.network.hf_model  # type: ignore[attr-defined]
    tokens = torch.arange(20)[None] % len(LETTERS)
    with torch.no_grad():
        wanted = convert(made, guide)(input_ids=tokens).logits
    save_routes(made, tmp_path / "saved")
    again = load_routes(load_model(str(base / "model"), made.dtype), tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, wanted)
    ours, theirs = deployed(again).guide.model, guide.model
    assert ours.temperature == theirs.temperature == Run.open(routes).config().kl.weight
    assert ours.text_tokens == theirs.text_tokens is not None


@pytest.mark.long
def test_a_study_trains_it_beside_its_baselines(base: Path, tmp_path: Path) -> None:
    """Who learns nothing looks once: the network is as it is."""
    options = {
        "pretrained": str(base / "model"),
        "data": {"path": str(base / "text.txt")},
        "context": 32, "window": 4, "sinks": 2, "steps": 4, "validation_tokens": 64,
        "checkpoint_every": 4, "accelerator": "cpu",
    }  # fmt: skip
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"base": options, "seeds": [0]}))
    done = run_here("ablate", study, "--out", tmp_path / "out", "--workers=1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        name: Run.open(tmp_path / "out" / "runs" / f"{name}-s0").config()
        for name in (
            "routed", "full-alone", "window-alone", "every-2nd-layer-full", "PriorGuide",
            "PointGuide", "static-split", "fixed-loads-of-routed", "random-loads-of-routed",
        )
    }  # fmt: skip
    steps = {name: one.steps for name, one in found.items()}
    assert {name for name, count in steps.items() if count == 4} == {
        "routed", "PointGuide", "static-split",
    }  # fmt: skip
    losses = {}
    for name in ("full-alone", "window-alone", "routed"):
        folder = tmp_path / "out" / "runs" / f"{name}-s0"
        losses[name] = json.loads((folder / "summary.json").read_text())
    beside = losses["routed"]["beside"]
    assert losses["full-alone"]["val_nll_hard"] == pytest.approx(beside["full"]["loss"], abs=1e-4)
    assert losses["window-alone"]["val_nll_hard"] == pytest.approx(
        beside["window"]["loss"], abs=1e-4
    )


def test_the_example_runs(base: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "examples" / "pretrained.py"
    done = finish([sys.executable, str(example), str(base / "model"), str(tmp_path / "routes")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 5
    assert (tmp_path / "routes" / "routes.json").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers=3"], "layers: 3 given, and it does nothing with --pretrained"),
        (["--mechanisms=[window]"], "full is not among --mechanisms"),
        (["--budget=0.0001"], "is allowed in the unit macs"),
        (["--warm.texts=-1"], "warm.texts: -1 given; at least 0 is allowed"),
        (["--warm.texts=0", "--warm.passes=3"], "warm.passes: 3 given, and it does nothing"),
        (["--optim.second_order=true", "--guide=PointGuide"], "PointGuide draws no choices"),
        (
            [
                "--guide=TokenTableGuide",
                "--prior=CostDirichlet",
                "--warm.texts=0",
                "--budget=null",
                "--optim.offsets=5",
            ],
            "optim.offsets: 5 given, and TokenTableGuide",
        ),
        (
            ["--warm.texts=2", "--context=6", "--budget=null", "--tighten=null"],
            "warm.texts: in 6 tokens",
        ),
        (["--warm.sharpness=0"], "warm.sharpness: 0.0 given; above 0 is allowed"),
        (["--prior=CostDirichlet", "--guide=TokenTableGuide"], "TokenTableGuide has no logits"),
        (["--pretrained=/nowhere"], "/nowhere is no folder"),
        (["--prior=CostCategorical", "--budget=null", "--tighten=null"], "no price of compute"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    base: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        train(*words(base, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_guide_that_has_begun_starts_warm_no_more(
    base: Path, routes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = ["--steps=1", "--optim.lr=1e-9", "--optim.final_lr=0"]
    begun = ["--from", str(routes), *still, f"--out={tmp_path / 'on'}"]
    assert train(*begun) == 0 and "warm start" not in capsys.readouterr().out
    ours, theirs = (Run.open(one).load()[1].state_dict() for one in (tmp_path / "on", routes))
    for name, value in theirs.items():
        if name.startswith(("heads", "centre", "scale")):
            torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)
    with pytest.raises(UsageError, match=r"option --warm\.texts=2: given beside --from"):
        train("--from", str(routes), "--warm.texts=2", f"--out={tmp_path / 'two'}")
    other = ["--from", str(routes), *still, "--guide=LoadGuide", f"--out={tmp_path / 'split'}"]
    assert train(*other) == 0 and "warm start" in capsys.readouterr().out, "it begins anew"


@pytest.mark.parametrize(
    "more",
    [
        ["--guide=DirichletGuide"],
        ["--prior=CostDirichlet"],
        ["--budget=null"],
        ["--guide=PriorGuide", "--budget=null"],
        ["--guide=PointGuide"],
        ["--guide.follows=false"],
    ],
)
def test_what_the_preset_says_is_for_whom_it_concerns(more: list[str]) -> None:
    config, text = read_options(["--pretrained=some/where", *more])
    assert config.pretrained == "some/where"
    assert config.tighten.end == (0.0 if "--budget=null" in more else 0.5)
    assert read_options(train_words(text))[1] == text


def test_an_argument_that_nobody_takes_is_refused_where_a_person_gave_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("preset: pretrained\nguide: {folows: true}\n")
    with pytest.raises(UsageError, match="folows"):
        read_options([f"--config={tmp_path / 'mine.yaml'}"])
    with pytest.raises(UsageError, match="follows"):
        read_options(["--pretrained=x", "--guide=DirichletGuide", "--guide.follows=true"])


def test_a_run_knows_its_model_wherever_it_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base)
    config, text = read_options(["--pretrained=model"])
    assert config.pretrained == str(base / "model") and str(base / "model") in text


def test_a_name_is_looked_up_here_and_nowhere_else() -> None:
    """No connection is tried, by which many seconds would pass."""
    with mock.patch("socket.socket.connect", side_effect=AssertionError("fetched")):
        assert "cannot be loaded" in refused(lambda: load_model("gpt-nonexistent"))


def test_runs_of_two_models_are_each_beside_their_own(
    base: Path, routes: Path, tmp_path: Path
) -> None:
    other = load_model(str(base / "model"))
    with torch.no_grad():
        other.lm_head.weight.mul_(3)  # type: ignore[union-attr, operator]
    other.save_pretrained(tmp_path / "model")
    tokenizer = (base / "model" / "tokenizer.json").read_text()
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer)
    (tmp_path / "text.txt").write_text(TEXT)
    assert train(*words(tmp_path, tmp_path / "other", "--steps=2")) == 0
    found = {}
    for number, runs in enumerate([(routes, tmp_path / "other"), (tmp_path / "other", routes)]):
        out = tmp_path / f"{number}.json"
        done = run_here("evaluate", *runs, "--lengths=[32]", "--tokens=64", "--json", out)
        assert done.returncode == 0, done.stderr
        found[number] = json.loads(out.read_text())["losses"]["32"]["rows"]
    assert found[0].keys() == found[1].keys() and "full" not in found[0]
    for name, row in found[0].items():
        assert row == found[1][name]
    assert found[0]["routes: full"]["loss"] != found[0]["other: full"]["loss"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lengths=[8]"], "--lengths: 8 given; more than 8 are allowed"),
        (["--lengths=[30000]"], "a context of 30000 needs at least"),
        (["--budget=1.5"], "--budget: 1.5 given; above 0 and below 1 is allowed"),
        (["--what=routed", "--budget=0.5"], "--budget: it does nothing with --what routed"),
    ],
)
def test_a_clock_that_cannot_be_taken_is_told_of(
    routes: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    given = ["--what=converted", f"--out={tmp_path}", f"--run={routes}", "--repeats=1", *more]
    assert message in error_line(run_here("bench", *given))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lengths=[200]"], "knows 128 positions"),
        (["--retrieval=[passkey]", "--lengths=[40]"], "has room for"),
        (["--retrieval=[passkey]", "--digits=0"], "0 digits given"),
        (["--depths=[]"], "--depths: none given"),
        (["--json=/proc/x/y.json"], "/proc/x"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_is_read(
    routes: Path, more: list[str], message: str
) -> None:
    with mock.patch("pyro_meta.study.held_out.routes_beside", side_effect=AssertionError("read")):
        assert message in error_line(run_here("evaluate", routes, *more))


def test_a_study_plans_its_baselines(base: Path) -> None:
    """Who learns nothing takes one step; a split learns as its preset says, if there is a price."""
    options = {
        "pretrained": str(base / "model"), "data": {"path": str(base / "text.txt")},
        "context": 32, "window": 4, "sinks": 2, "steps": 4, "validation_tokens": 64,
    }  # fmt: skip

    def planned(**more: Any) -> dict[str, Any]:
        study = Study.read({"base": options | more, "seeds": [0]}, "test")
        return {group.label: group.config for group in expand(study)}

    found = planned()
    learns = {"routed", "PointGuide", "static split"}
    assert {label for label, config in found.items() if config.steps == 4} == learns
    assert found.keys() > {"full alone", "window alone", "every 2nd layer full", "PriorGuide"}
    assert all(config.budget is None for label, config in found.items() if label not in learns)
    assert found["static split"].optim.lr == 0.05 and found["static split"].budget == 0.4
    free = planned(budget=None, prior="CostCategorical", guide={"follows": False})
    assert free["static split"].budget is None
    assert "routed" in planned(prior="CostDirichlet")


def test_a_run_is_an_object(routes: Path) -> None:
    """Routes by key-value head, ELBO and continuation of a text, each beside a second way."""
    run = pyro_meta.load(routes)
    text = TEXT[:20]
    found, runs = run.routes(text), run.routes(text, hard=True)
    assert found.shape == (3, 2, 20, 2) and "".join(found.text.values) == text
    tokens = torch.from_numpy(run.vocabulary.encode(text))
    with torch.no_grad():
        walked = walk(run.model, run.guide, tokens[None], along_means())
    for layer, mean in enumerate(walked.means):
        slow = mean[0].transpose(0, 1).float().numpy()
        np.testing.assert_allclose(found.isel(layer=layer), slow, rtol=1e-4, atol=1e-6)
        choice = walked.decisions[layer].route[0].T.numpy()
        assert runs.isel(layer=layer).argmax("mechanism").values.tolist() == choice.tolist()
    prefix = run.routes(text[:7])
    np.testing.assert_allclose(prefix, found.isel(token=slice(7)), atol=1e-4)
    elbo = run.elbo(text, draws=3, seed=2)
    torch.manual_seed(2)
    with torch.no_grad(), pyro.validation_enabled(False):
        pyros = TraceMeanField_ELBO(num_particles=3, max_plate_nesting=3)
        loss = pyros.loss(run.model, run.guide, tokens[None, :-1], tokens[None, 1:])
    assert run.model.temperature == run.config.kl.weight
    assert elbo.as_trained == pytest.approx(-loss * run.model.temperature / 19, rel=1e-3)
    done = run_here("generate", routes, "--prompt", text, "--max_tokens=9", "--seed=1")
    assert run.generate(text, max_tokens=9, seed=1) + "\n" == done.stdout
    assert len(run.plot(text).rows) == 6
