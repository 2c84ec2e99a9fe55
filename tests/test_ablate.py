"""Studies: what is planned, what is never trained twice, and what is left."""

import csv
import fcntl
import io
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from commands import MOMENT, error_line, run_here
from processes import started
from rich.console import Console
from slow import long
from studies import (  # noqa: F401 -- fixtures
    SMALL,
    WORDS,
    faked_fixture,
    held_fixture,
    own_guides,
    starts,
)

from pyro_meta import UsageError, ablate
from pyro_meta.analysis.plots.pareto import LOOKS
from pyro_meta.study import cluster, estimate
from pyro_meta.study.description import KINDS, Study
from pyro_meta.study.job import Job, State
from pyro_meta.study.live import counts, steps_of, table
from pyro_meta.study.plan import Kind, expand
from pyro_meta.study.results import AS, Results, Table
from pyro_meta.study.runner import study_lock
from pyro_meta.study.shards import Shard
from pyro_meta.study.worker import Worker, worker_environment
from pyro_meta.training.config import Config, read_options, train_words

HOURS = ablate._hours  # before a fixture stands for it


def labels(**study: Any) -> list[str]:
    return [group.label for group in expand(Study.read({"base": SMALL} | study, "test"))]


# -- the plan --------------------------------------------------------------------------------


def test_a_grid_is_a_product_and_every_routed_setting_gets_its_baselines() -> None:
    given = {"prior": ["CostDirichlet", "SymmetricDirichlet"], "kl.weight": [0.03, 0.02]}
    assert labels(grid=given) == [
        "CostDirichlet kl.weight=0.03", "CostDirichlet kl.weight=0.02",
        "SymmetricDirichlet kl.weight=0.03", "SymmetricDirichlet kl.weight=0.02",
        "full alone", "window alone", "linear alone", "every 2nd layer full",
        "PriorGuide CostDirichlet", "PointGuide", "static split CostDirichlet kl.weight=0.03",
        "fixed loads of CostDirichlet kl.weight=0.03",
        "random loads of CostDirichlet kl.weight=0.03",
        "static split CostDirichlet kl.weight=0.02",
        "fixed loads of CostDirichlet kl.weight=0.02",
        "random loads of CostDirichlet kl.weight=0.02", "PriorGuide SymmetricDirichlet",
        "static split SymmetricDirichlet kl.weight=0.03",
        "fixed loads of SymmetricDirichlet kl.weight=0.03",
        "random loads of SymmetricDirichlet kl.weight=0.03",
        "static split SymmetricDirichlet kl.weight=0.02",
        "fixed loads of SymmetricDirichlet kl.weight=0.02",
        "random loads of SymmetricDirichlet kl.weight=0.02",
    ]  # fmt: skip


def test_variants_cross_the_grid_and_mechanism_sets_share_their_single_runs() -> None:
    found = labels(
        variants={"plain": {}, "early": {"kl": {"begin": 0.2}}},
        grid={"mechanisms": [["full", "window"], ["full", "window", "linear"]]},
        baselines={
            "fixed": ["early"],
            "random": False,
            "prior": False,
            "point": False,
            "split": False,
        },
    )
    assert found == [
        "plain full+window", "plain full+window+linear", "early full+window",
        "early full+window+linear", "full alone", "window alone", "every 2nd layer full",
        "linear alone", "fixed loads of early full+window",
        "fixed loads of early full+window+linear",
    ]  # fmt: skip


def test_what_trains_the_same_is_one_group() -> None:
    assert labels(grid={"seed": [0, 1], "steps": [4, 4]}, baselines=False) == ["routed"]
    found = expand(
        Study.read(
            {
                "base": SMALL | {"prior": "CostDirichlet"},
                "grid": {"guide": ["DirichletGuide", "PointGuide"]},
            },
            "test",
        )
    )
    assert [group.label for group in found].count("PointGuide") == 1
    routed, point = found[:2]
    assert ("point", point) in routed.baselines, "a variant is another's baseline"
    assert all(group is not point for _, group in point.baselines)


def test_a_single_mechanism_has_no_baselines() -> None:
    assert labels(variants={"far": {"mechanisms": ["full"]}}) == ["far"]


def test_baselines_keep_the_options_of_the_variant() -> None:
    groups = expand(
        Study.read(
            {"base": SMALL | {"kl": {"weight": 0.5}, "prior": {"rate": 2.0}},
             "variants": {"wide": {"width": 32, "guide": {"hidden": 7}}}},
            "test",
        )
    )  # fmt: skip
    found = {group.kind: yaml.safe_load(group.config_yaml) for group in groups}
    assert all(options["width"] == 32 for options in found.values())
    assert found["prior"]["prior"]["init_args"]["rate"] == 2.0
    assert found["fixed"]["kl"]["weight"] != 0.5, "no prior plays a part there"
    assert found["mechanism"]["kl"]["weight"] != 0.5, "nothing routes there"
    assert "hidden" not in found["fixed"]["guide"]["init_args"]
    assert found["point"]["guide"]["init_args"]["hidden"] is None


def test_options_of_the_router_train_no_single_mechanism_twice() -> None:
    grid = {"optim.router": [1.0, 5.0], "optim.lr": [0.01, 0.02]}
    found = labels(grid=grid)
    singles = [label for label in found if " alone" in label]
    assert len(singles) == 2 * 3, "lr matters to them, the router's does not"
    assert len([label for label in found if label.startswith("PriorGuide")]) == 2
    assert len([label for label in found if label.startswith("PointGuide")]) == 4
    variants = {"one": {"optim": {"router": 1.0, "lr": 0.01}}, "two": {"optim": {"lr": 0.01}}}
    assert len([label for label in labels(variants=variants) if " alone" in label]) == 3


def test_loads_are_those_of_the_same_seed() -> None:
    groups = expand(Study.read({"base": SMALL, "seeds": [5]}, "test"))
    fixed = next(group for group in groups if group.kind == "fixed")
    assert fixed.loads_of is groups[0]
    loads = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
    options = yaml.safe_load(fixed.run_yaml(5, loads))
    assert options["guide"]["init_args"]["loads"] == loads and options["seed"] == 5


def test_more_baselines_by_name_and_fewer_seeds() -> None:
    groups = expand(
        Study.read(
            {"base": SMALL, "seeds": 3,
             "baselines": {"seeds": [0], "also": {"narrow": {"width": 8}}}}, "test",
        )
    )  # fmt: skip
    assert {group.label: group.seeds for group in groups if group.kind in ("variant", "also")} == {
        "routed": [0, 1, 2], "narrow": [0],
    }  # fmt: skip
    assert [group.seeds for group in groups if group.kind == "fixed"] == [[0]]


def test_kinds_of_baselines_have_seeds_of_their_own() -> None:
    seeds = {"mechanisms": [0, 2], "random": 1}
    groups = expand(Study.read({"base": SMALL, "baselines": {"seeds": seeds}}, "test"))
    by_kind = {group.kind: group.seeds for group in groups}
    assert by_kind["mechanism"] == [0, 2] and by_kind["random"] == [0]
    assert by_kind["variant"] == by_kind["fixed"] == by_kind["point"] == [0, 1, 2]


def test_a_study_survives_its_file() -> None:
    given = {"base": SMALL, "grid": {"kl.weight": [0.1, 0.2]}, "seeds": [3],
             "baselines": {"fixed": False, "seeds": [3]}}  # fmt: skip
    study = Study.read(given, "test")
    assert Study.read(yaml.safe_load(study.as_yaml()), "again") == study


@pytest.mark.parametrize(
    "words",
    [
        ["--prior=PaperDirichlet", "--prior.scale=2", "--kl.weight=1e-05", "--debug"],
        ["--guide=load_guides.Fixed", "--guide.loads=[[0.5,0.5,0],[1,0,0]]", "--layers=2"],
        ["--data.path=a b.txt", "--mechanisms=[full,my_mechanism.Ends]", "--kv_heads=2"],
    ],
)
def test_the_shortest_command_makes_the_same_configuration(words: list[str]) -> None:
    config_yaml = read_options(words)[1]
    short = train_words(config_yaml)
    assert read_options(short)[1] == config_yaml
    assert len(short) == len(words)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gird": {}}, "'gird' given; .*, baselines, reference are allowed; did you mean grid"),
        ({"grid": {"kl.weight": 0.1}}, "grid.kl.weight: 0.1 given; a list of values"),
        ({"grid": {"kl.wieght": [1]}}, "kl.wieght"),
        ({"grid": {"prior": ["CostDirichlte"]}}, "no class 'CostDirichlte'"),
        ({"grid": {"kl.weight": [0.1, 0]}}, "kl.weight=0: kl.weight: 0.0 given"),
        ({"grid": {"out": ["a"]}}, "grid.out given"),
        ({"variants": {"odd": {"heads": 3}}}, "odd: "),
        ({"variants": {"odd": {"seed": 3}}}, "seeds stand under seeds"),
        ({"variants": ["odd"]}, "a mapping is needed"),
        ({"seeds": "many"}, "many'? given; a number of seeds or a list"),
        ({"seeds": 1, "grid": {"seed": [1]}}, "both given"),
        ({"baselines": {"fixd": False}}, "'fixd' given"),
        ({"baselines": {"fixed": ["none such"]}}, "'none such' given; allowed are routed"),
        ({"baselines": {"prior": [1]}}, "true or false is allowed"),
        (
            {"baselines": {"seeds": [7]}},
            r"seeds: \[7\] given; of the study's \[0, 1, 2\]",
        ),
        ({"baselines": {"seeds": {"mechanism": 1}}}, "'mechanism' given; mechanisms, "),
        ({"baselines": {"seeds": {"prior": [3]}}}, r"of the study's \[0, 1, 2\]"),
        ({"variants": {1: {}}}, "in quotes, if need be"),
    ],
)
def test_a_wrong_study_is_refused_before_the_first_run(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"base": SMALL} | given))
    with pytest.raises(UsageError, match=message):
        ablate.main([str(path), f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers=0"], "--workers: 0 given"),
        (["--stesp", "3"], "unknown option --stesp; did you mean --steps"),
        (["--grid.kl.weight", "[1"], r"--grid.kl.weight: .?\[1"),
        (["--steps"], "--steps: a value is missing"),
        (["--baselines=[pointt]"], "'pointt' given"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--data.path=nowhere.txt"], "no such file"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ablate.main([*WORDS, *words, f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


# -- runs ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("faked")
def test_a_study_leaves_what_it_promises_and_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "study"
    baselines = "--baselines=[mechanisms,fixed,point]"
    words = [*WORDS, "--seeds=2", "--workers=2", baselines, f"--out={out}"]
    assert ablate.main([*words, "--grid.kl.weight=[0.004]"]) == 0
    table = capsys.readouterr().out.split("no setting")[0]
    for name in ("routed", "window alone", "fixed loads of routed", "PointGuide"):
        assert all(word in table.split() for word in name.split()), "names stand in 80 columns"
    assert "…" not in table and "±" in table, "and so do the figures"
    first = starts(out)
    assert len(first) == 6 * 2 and set(map(tuple, first.values())) == {("0",)}

    facts = json.loads((out / "study.json").read_text())
    assert {"command", "hardware", "versions", "runs", "groups", "differences"} <= facts.keys()
    assert all(run["state"] == "finished" and "train" in run for run in facts["runs"])
    routed = [one for one in facts["differences"] if one["of"] == "routed"]
    assert {one["kind"] for one in routed} == {"mechanism", "fixed", "point"}
    best = next(one for one in routed if one["is_best_single"])
    assert best["against"] == "window alone", "the best that costs no more than .533"
    assert best["hard"]["mean"] == pytest.approx(-0.3 * (1.6 / 3 - 0.4))
    assert best["hard"]["by_seed"].keys() == {"0", "1"}
    rows = list(csv.DictReader((out / "study.csv").read_text().splitlines()))
    assert len(rows) == 12 and rows[0]["truth.answer_accuracy_hard"] == "0.5"
    page = (out / "study.md").read_text()
    assert "| routed \\* |" in page and "answers" in page and "pareto.png" in page
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")

    assert ablate.main([f"--out={out}"]) == 0, "the folder knows its study"
    assert starts(out) == first
    more = [*words[:-1], "--grid.kl.weight=[0.004, 0.02]", f"--out={out}"]
    assert ablate.main(more) == 0
    now = starts(out)
    assert {name: now[name] for name in first} == first, "names change, runs stay"
    new = [name for name in now if name not in first]
    assert len(new) == 4, "one routed setting more, and its router without a prior: two seeds each"


@pytest.mark.parametrize("width", [40, 80])
def test_no_name_costs_a_figure_its_place(width: int) -> None:
    figures = ["1.670 ±.006", "1.677 ±.007", "0.129 ±.003", "0.994 ±.011", "-0.0611 !", "(1)", "5"]
    headings = ["", "loss, hard", "loss, soft", "MACs", "answers", "to best single", "to no prior"]
    name = f"guide={'LogisticNormalGuide' * 3} [bold]"
    console = Console(width=width, record=True, file=io.StringIO())
    headings[0] = "minus [/] a name\a"  # of a setting, and so of a person's own words
    table = Table([*headings, "seeds"], [[name, *figures], ["routed", *figures]])
    console.print(ablate.terminal_table(table), crop=False)
    shown = console.export_text()
    assert all(shown.count(word) >= 2 for cell in figures for word in cell.split())
    assert "[/]" in shown and "\a" not in shown
    assert "routed" in shown and "guide=" in shown and "[bold]" in shown and "…" not in shown


@pytest.mark.usefixtures("faked")
def test_loss_is_compared_at_the_cost_that_is_asked_for(tmp_path: Path) -> None:
    """At the MACs of the whole model, here the other way round, all full is cheapest and best."""
    words = [*WORDS, "--seeds=1", "--baselines=[mechanisms]", f"--out={tmp_path / 'study'}"]
    fronts = []
    for cost in ("macs", "model"):
        assert ablate.main([*words, f"--cost={cost}"]) == 0
        facts = json.loads((tmp_path / "study" / "study.json").read_text())
        fronts.append({one["group"] for one in facts["groups"] if one["is_on_pareto_front"]})
    assert facts["cost"] == "executed.macs_per_token_model" and len(fronts[0]) > 1
    assert fronts[1] == {"full alone"}
    assert "| MACs, model |" in (tmp_path / "study" / "study.md").read_text()


@pytest.mark.usefixtures("faked")
def test_what_was_validated_on_different_text_is_not_compared(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [*WORDS, "--seeds=1", "--baselines=[mechanisms]", "--grid.context=[16, 32]"]
    assert ablate.main([*words, f"--out={out}"]) == 0
    facts = json.loads((out / "study.json").read_text())
    front = {group["group"] for group in facts["groups"] if group["is_on_pareto_front"]}
    assert {"context=16", "context=32"} <= front, "the longer text has more loss at equal cost"
    page = (out / "study.md").read_text()
    for name in ("pareto.png", "pareto-2.png"):
        assert f"({name})" in page and (out / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("faked")
def test_a_folder_of_other_options_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [*WORDS, "--seeds=1", "--baselines=false", f"--out={out}"]
    assert ablate.main(words) == 0
    before = (out / "runs" / "routed-s0" / "config.yaml").read_text()
    assert ablate.main([*words, "--steps=5"]) == 0
    assert (out / "runs" / "routed-s0" / "config.yaml").read_text() == before
    assert starts(out) == {"routed-s0": ["0"], "routed-s0-2": ["0"]}
    assert json.loads((out / "study.json").read_text())["runs"][0]["folder"] == "runs/routed-s0-2"


@pytest.mark.usefixtures("faked")
def test_a_failure_is_said_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    monkeypatch.setenv("FAKE_FAIL", "routed-s0")
    words = [*WORDS, "--seeds=2", "--baselines=[fixed]", f"--out={out}"]
    assert ablate.main(words) == 1
    printed = capsys.readouterr().out
    assert "failed: routed-s0: error: option --steps: it does not like that" in printed
    assert "fixed-loads-of-routed-s0: routed-s0 failed, whose loads it takes" in printed
    assert set(starts(out)) == {"routed-s1", "fixed-loads-of-routed-s1"}
    monkeypatch.delenv("FAKE_FAIL")
    assert ablate.main(words) == 0, "the same command trains what failed"
    assert len(starts(out)) == 4


def test_an_interrupted_study_saves_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    held: Callable[[], int],
) -> None:
    out = tmp_path / "study"
    words = [*WORDS, "--seeds=2", "--baselines=false", "--workers=2", f"--out={out}"]

    def interrupt() -> None:
        for _ in range(2):
            held()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    assert ablate.main(words) == 130
    assert f"go on with python -m pyro_meta.ablate --out {out}" in capsys.readouterr().out
    assert starts(out) == {"routed-s0": ["0"], "routed-s1": ["0"]}
    monkeypatch.delenv("FAKE_HOLD")
    assert ablate.main([f"--out={out}"]) == 0
    assert starts(out) == {"routed-s0": ["0", "1"], "routed-s1": ["0", "1"]}


def test_a_killed_study_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Callable[[], int]
) -> None:
    """Its worker goes on; the next study waits for that one and does not start a second."""
    out = tmp_path / "study"
    words = [*WORDS, "--seeds=2", "--baselines=false", f"--out={out}"]
    is_done = Worker.is_done
    seen: list[bool] = []

    def looked_at(self: Worker) -> bool:
        """The worker goes on once the next study has seen it at work."""
        seen.append(is_done(self))
        if len(seen) == 1:
            assert not self.is_ours
            os.kill(worker, signal.SIGUSR1)
        return seen[-1]

    with started([sys.executable, "-m", "load_guides", *words]) as study:
        worker = held()
        with pytest.raises(UsageError, match="held by another study"):
            ablate.main(words)
        study.kill()
        study.wait()
        monkeypatch.delenv("FAKE_HOLD")
        monkeypatch.setattr(Worker, "is_done", looked_at)
        assert ablate.main(words) == 0
    assert seen[0] is False
    assert starts(out) == {"routed-s0": ["0"], "routed-s1": ["0"]}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_study_that_fails_leaves_no_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: Callable[[], int],
    error: type[BaseException],
) -> None:
    """What trains may save when the disk is full, and is killed when somebody insists."""
    out = tmp_path / "study"

    def write(*_: object) -> None:
        held()
        raise error

    monkeypatch.setenv("FAKE_FAIL", "routed-s0")
    monkeypatch.setattr(Results, "write", write)
    with pytest.raises(error):
        ablate.main([*WORDS, "--seeds=2", "--baselines=false", "--workers=2", f"--out={out}"])
    with open(out / "logs" / "routed-s1.log", "a+") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process that held it has ended
        log.seek(0)
        assert ("saved" in log.read()) is (error is OSError)


@pytest.mark.usefixtures("faked")
def test_a_look_in_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    words = [*WORDS, "--seeds=1", "--baselines=false", f"--out={out}"]
    assert ablate.main([*words, "--report_only"]) == 0
    assert "0 of 1 runs" in (out / "study.md").read_text() and not starts(out)
    assert ablate.main([*words, "--dry_run"]) == 0
    assert "1 runs" in capsys.readouterr().out
    assert ablate.main(words) == 0
    (out / "study.md").unlink()
    assert ablate.main([f"--out={out}", "--report_only"]) == 0
    assert "1 of 1 runs" in (out / "study.md").read_text()


def test_the_live_table_fits_the_terminal() -> None:
    groups = expand(Study.read({"base": SMALL, "seeds": 9, "baselines": False}, "test"))
    jobs = [Job(groups[0], seed) for seed in groups[0].seeds]
    jobs[3].state, jobs[3].step, jobs[3].loss = State.RUNNING, 2, 1.5
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(jobs, height=12))
    lines = console.export_text().splitlines()
    assert len(lines) < 12, "with a line below"
    text = "\n".join(lines)
    assert "routed-s3" in text and "2/4" in text and "1.500" in text and "and 3 more" in text
    assert counts(jobs) == "8 waiting, 1 running" and steps_of(jobs) == (2, 36)
    jobs[3].state = State.FAILED
    assert steps_of(jobs) == (2, 34), "it takes no more"


# -- shards ----------------------------------------------------------------------------------


def jobs_of(**study: Any) -> list[Job]:
    return ablate._jobs(expand(Study.read({"base": SMALL} | study, "test")))


@pytest.mark.parametrize("count", [*long(1, 2), 3, *long(5), 40])
def test_shards_share_every_run_out_once(count: int) -> None:
    jobs = jobs_of(grid={"kl.weight": [0.1, 0.2], "steps": [4, 40]}, seeds=2)
    shares = [Shard(index, count).of(jobs) for index in range(1, count + 1)]
    names = [job.name for share in shares for job in share]
    assert sorted(names) == sorted(job.name for job in jobs), "each once"
    for share in shares:
        kept = [job for job in jobs if job in share]
        assert share == kept, "in their order"
        ours = {(id(job.group), job.seed) for job in share}
        for job in share:
            teacher = job.group.loads_of
            assert teacher is None or (id(teacher), job.seed) in ours, "whose loads it takes"
    steps = [sum(job.steps for job in share) for share in shares]
    heaviest = 3 * 40  # a run, and the two that take its loads
    if count < 5:
        assert max(steps) - min(steps) <= heaviest
    again = jobs_of(grid={"kl.weight": [0.1, 0.2], "steps": [4, 40]}, seeds=2)
    assert [job.name for job in Shard(1, count).of(again)] == [job.name for job in shares[0]]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"option --shard: .* i/n with i from 1 to n"):
        Shard.read(text)


@pytest.mark.usefixtures("faked")
@pytest.mark.long
def test_shards_leave_what_the_whole_study_leaves(tmp_path: Path) -> None:
    words = [*WORDS, "--seeds=2", "--baselines=[mechanisms,fixed]"]
    assert ablate.main([*words, f"--out={tmp_path / 'whole'}"]) == 0
    out = tmp_path / "shards"
    assert ablate.main([*words, f"--out={out}", "--shard=2/3"]) == 0
    first = set(starts(out))
    assert ablate.main([f"--out={out}", "--shard", "3/3"]) == 0
    assert ablate.main([f"--out={out}", "--shard=1/3"]) == 0
    assert 0 < len(first) < len(starts(out))
    assert starts(out) == starts(tmp_path / "whole")
    whole, shards = (
        json.loads((folder / "study.json").read_text()) for folder in (tmp_path / "whole", out)
    )
    for key in ("groups", "differences"):
        assert shards[key] == whole[key], "the last of them reports all"
    assert ablate.main([f"--out={out}", "--shard=2/3"]) == 0
    assert starts(out) == starts(tmp_path / "whole"), "nothing is trained twice"


@pytest.mark.usefixtures("faked")
def test_two_shards_share_a_folder_and_two_of_the_same_do_not(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [*WORDS, "--seeds=2", "--baselines=false", f"--out={out}"]
    (out / "runs").mkdir(parents=True)
    with study_lock(out, Shard(1, 2)):
        with pytest.raises(UsageError, match=r"shard: 1/2 of .* is held by another process"):
            ablate.main([*words, "--shard=1/2"])
        with pytest.raises(UsageError, match="held by another study"):
            ablate.main(words)
        assert ablate.main([*words, "--shard=2/2"]) == 0
        assert ablate.main([f"--out={out}", "--report_only"]) == 0
    assert "1 of 2 runs" in (out / "study.md").read_text()


def test_a_dry_run_of_a_shard_lists_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--seeds=4", "--baselines=false", "--out=none", "--dry_run"]
    assert ablate.main([*words, "--shard=2/2"]) == 0
    assert "seeds 1, 3" in (out := capsys.readouterr().out) and "2 runs, not timed" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard=1/2", "--report_only"], "option --shard: it is given beside --report_only"),
        (["--launcher=local", "--report_only"], "option --launcher: it is given beside"),
        (["--launcher=local", "--shard=1/2"], "option --shard: given beside --launcher local"),
        (["--launcher_options={timeout_min: 3}"], "--launcher_options: it does nothing without"),
        (["--launcher=pbs"], "--launcher"),
    ],
)
def test_ways_that_do_not_go_together_are_refused(words: list[str], message: str) -> None:
    assert message in error_line(run_here("ablate", *WORDS, "--out=none", *words))


@pytest.mark.usefixtures("faked")
def test_a_launcher_is_given_a_job_for_each_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the jobs together leave the whole study."""
    handed: list[Any] = []

    def submit(launcher: str, logs: Path, commands: Any, asked: Any) -> list[str]:
        handed.append((launcher, logs, commands, asked))
        return [f"77_{place}" for place in range(len(commands))]

    monkeypatch.setattr(cluster, "submit", submit)
    out = tmp_path / "study"
    words = [*WORDS, "--seeds=3", "--baselines=false", f"--out={out}", "--workers=8"]
    more = ["--launcher=slurm", "--launcher_options={slurm_partition: gpu}", "--time_limit=9"]
    assert ablate.main([*words, *more]) == 0
    ((launcher, logs, commands, asked),) = handed
    assert (launcher, asked) == ("slurm", {"slurm_partition": "gpu"})
    assert logs == out / "cluster" and len(commands) == 3, "no more than runs"
    assert "77_0, 77_1, 77_2" in (said := capsys.readouterr().out) and "--report_only" in said
    assert not starts(out)
    for command in commands:
        assert command[:2] == ["-m", "pyro_meta.ablate"]
        assert ablate.main(command[2:]) == 0
    assert starts(out) == {f"routed-s{seed}": ["0"] for seed in range(3)}


# submitit leaves the processes that it has begun to themselves
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_of_a_launcher_run_to_their_end(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    script = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('done')"
    commands = [["-c", script, str(tmp_path / name)] for name in ("a", "b")]
    ids = cluster.submit("local", tmp_path / "logs", commands, {})
    results = [tmp_path / "logs" / f"{one}_0_result.pkl" for one in ids]
    while not all(result.exists() for result in results):  # pytest-timeout ends it
        time.sleep(0.05)
    assert [pickle.loads(result.read_bytes()) for result in results] == [("success", 0)] * 2
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["done", "done"]
    with pytest.raises(UsageError, match=r"option --launcher: local takes no jobs: .*nodez"):
        cluster.submit("local", tmp_path / "logs", commands, {"nodez": 3})
    with pytest.raises(UsageError, match="tasks_per_node: 2 given; 1 is allowed"):
        cluster.submit("local", tmp_path / "logs", commands, {"tasks_per_node": 2})
    if shutil.which("srun") is None:
        with pytest.raises(UsageError, match="option --launcher: slurm takes no jobs"):
            cluster.submit("slurm", tmp_path / "logs", commands, {})


def test_a_job_whose_command_is_refused_has_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has ended with code 2"):
        cluster.Command(["-c", "raise SystemExit(2)"], tmp_path)()
    assert cluster.Command(["-c", "raise SystemExit(1)"], tmp_path)() == 1


STOPPED = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(130)))
if pathlib.Path("saved").exists():
    pathlib.Path("went on").touch()
    sys.exit()
pathlib.Path("begun").touch()
while True:
    time.sleep(0.05)
"""


def test_a_job_that_is_preempted_saves_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    command = cluster.Command(["-c", STOPPED], tmp_path)
    caught: list[Any] = []

    def preempt(*_: Any) -> None:
        caught.append(command.checkpoint())
        raise KeyboardInterrupt  # submitit ends the process there

    before = signal.signal(signal.SIGUSR2, preempt)
    try:
        thread = threading.Thread(target=_signal_once, args=(tmp_path / "begun",))
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            command()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "saved").exists() and not (tmp_path / "went on").exists()
    (delayed,) = caught
    assert delayed.function() == 0 and (tmp_path / "went on").exists()


def _signal_once(begun: Path) -> None:
    """Send the signal of a preemption to all processes of the job: ours, and the command."""
    while not begun.exists():
        time.sleep(0.02)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for pid in children.read_text().split() if children.exists() else []:
        os.kill(int(pid), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)


# -- hours -----------------------------------------------------------------------------------


def test_hours_are_those_of_steps_and_passes() -> None:
    config = read_options([*WORDS, "--batch=4", "--validate_every=2", "--validation_tokens=640",
                           "--readout.draws=10", "--readout.tokens=64"])[0]  # fmt: skip
    # 4 steps; validated after 2 and at the end, twice 640 tokens each; 10 draws of 64 tokens
    passes = (2 * 2 * 640 + 10 * 64) / (4 * 16)
    assert estimate.seconds_of_run(config, 5.0, 0.25) == pytest.approx(4 * 5.0 + passes * 0.25)


def test_every_way_of_a_step_is_timed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("pack my box with five dozen liquor jugs. " * 60)
    base = SMALL | {"data": {"path": str(tmp_path / "text.txt")}, "batch": 2}
    grid = {"width": [16, 32], "kl.weight": [0.1, 0.2], "steps": [4, 8]}
    given = {"base": base, "grid": grid, "baselines": False}
    groups = expand(Study.read(given, "test"))
    timed: list[int] = []
    real = estimate._timed

    def counted(config: Config, corpus: Any) -> tuple[float, float]:
        timed.append(config.width)
        step, forward = real(config, corpus)
        assert forward > 0 and 0 < step < 60
        return float(config.width), 0.0

    monkeypatch.setattr(estimate, "_timed", counted)
    found = estimate.seconds_of(groups)
    assert timed == [16, 32]
    assert found == {group.label: group.config.width * group.config.steps for group in groups}


def test_hours_leave_out_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(seeds=4, baselines=False)
    runs = tmp_path / "runs"

    def placed(jobs: list[Job], shelf: Any) -> None:
        jobs[0].state, jobs[1].step = State.FINISHED, 1

    monkeypatch.setattr("pyro_meta.study.shelf.place_known", placed)
    monkeypatch.setattr(estimate, "seconds_of", lambda groups: {"routed": 7200.0})
    runs.mkdir()
    told = "1 finished; about 5.5 hours on this machine, one after the other"
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.9, 5.0, 5.0))
    assert HOURS(jobs, tmp_path) == told
    monkeypatch.setattr(os, "getloadavg", lambda: (1.1, 0.0, 0.0))
    assert HOURS(jobs, tmp_path) == f"{told}; timed beside other work, without which they take less"


def test_workers_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    found = [worker_environment(slot, 3) for slot in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["2", "5", "2"]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    assert worker_environment(0, 3, devices=2)["CUDA_VISIBLE_DEVICES"] == "2,5"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert worker_environment(0, 3)["OMP_NUM_THREADS"] == "7"


@pytest.mark.long
def test_a_study_of_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A routed run, and its loads as a fixed mixture, trained by the command itself."""
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "text.txt").write_text("pack my box with five dozen liquor jugs. " * 60)
    out = tmp_path / "study"
    words = [*MOMENT, f"--data.path={tmp_path / 'text.txt'}", "--seeds=[4]", "--baselines=[fixed]"]
    assert ablate.main([*words, "--steps=4", f"--out={out}"]) == 0, (out / "study.md").read_text()
    facts = json.loads((out / "study.json").read_text())
    routed, fixed = (run["summary"] for run in facts["runs"])
    assert fixed["load"].keys() == routed["load"].keys()
    comparison = facts["differences"][0]["hard"]
    assert comparison["sequences"] == 15 and comparison["seeds"] == 1
    difference = fixed["val_nll_hard"] - routed["val_nll_hard"]
    assert comparison["mean"] == pytest.approx(-difference, abs=1e-5)
    judged = facts["runs"][0]["collapse"]  # a router after four steps is as it was born
    assert judged["token-blind"]["is_collapsed"] and judged["token-blind"]["value"] < 1e-3
    assert judged.keys() == {"prior", "token-blind", "one mechanism"}
    assert facts["runs"][1]["collapse"] == {}
    assert "## Collapse" in (out / "study.md").read_text()


def test_the_command_says_what_is_wrong_in_one_line() -> None:
    assert "--out" in error_line(run_here("ablate"))


def test_the_router_without_a_prior_pays_where_compute_has_a_price() -> None:
    variants = {
        "loads": {"prior": "LoadDirichlet"}, "plain": {}, "other": {"prior": {"rate": 2.0}},
        "budget": {"budget": 0.5},
    }  # fmt: skip
    found = labels(variants=variants, baselines=["point", "split", "periodic"])
    assert [label for label in found if label.startswith("PointGuide")] == [
        "PointGuide LoadDirichlet budget=null",
        "PointGuide LoadCategorical prior.rate=6.0 budget=null",
        "PointGuide LoadCategorical prior.rate=2.0 budget=null",
        "PointGuide LoadCategorical prior.rate=6.0 budget=0.5",
    ]  # fmt: skip
    assert len([label for label in found if label.startswith("static split")]) == len(variants)
    assert found.count("every 2nd layer full") == 1


def test_every_kind_of_baseline_has_a_name() -> None:
    assert {*AS} == {*get_args(Kind)} - {"variant"}
    assert {*KINDS} >= {*AS} - {"mechanism"}
    assert {*LOOKS} == {*get_args(Kind)}, "the picture knows them all"


@pytest.mark.parametrize(
    ("base", "own", "prior", "guide"),
    [
        ({}, {"guide": "DirichletGuide"}, "CostDirichlet", "DirichletGuide"),
        ({"guide": "DirichletGuide"}, {}, "CostDirichlet", "DirichletGuide"),
        ({}, {"prior": "CostDirichlet"}, "CostDirichlet", "DirichletGuide"),
        ({}, {"prior": "LoadDirichlet"}, "LoadDirichlet", "DirichletGuide"),
        ({}, {"prior": "CostCategorical"}, "CostCategorical", "CategoricalGuide"),
        ({}, {}, "LoadCategorical", "CategoricalGuide"),
        ({}, {"prior": "LearnedDirichlet"}, "LearnedDirichlet", "DirichletGuide"),
    ],
)
def test_baselines_have_the_prior_of_whom_they_judge(
    base: dict[str, str], own: dict[str, str], prior: str, guide: str
) -> None:
    """And a router without a prior pays for compute if, and only if, that one does."""
    study = {"base": SMALL | base, "variants": {"one": own}, "baselines": True, "seeds": [0]}
    one, *_ = groups = expand(Study.read(study, "test"))
    model, built = one.config.build(5)
    assert (type(model.prior).__name__, type(built).__name__) == (prior, guide)
    of = {group.kind: group.config.build(5)[0] for group in groups}
    learns = prior == "LearnedDirichlet"
    assert type(of["split"].prior).__name__ == prior
    assert type(of["prior"].prior).__name__ == ("CostDirichlet" if learns else prior)
    assert (of["point"].compute is None) == (model.compute is None)
    if model.compute is not None:
        assert of["point"].compute is not None
        assert float(of["point"].compute.rate) == float(model.compute.rate)
