"""The exhibit: which pairs there are, their figures, who is best at equal cost, and the page."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import exhibit
import exhibit_pairs
import pytest
from browser import CHROMIUM, browser
from exhibit_figures import COLUMNS, Figures, figures_of
from exhibit_page import render, square
from exhibit_pairs import Pair, Pairs, Refused, find_pairs
from exhibit_rows import DEFAULT, Row, at_equal_cost, fill_gaps

from pyro_meta import (
    CategoricalGuide,
    CostDirichlet,
    DirichletGuide,
    FixedGuide,
    LoadCategorical,
    PointGuide,
    PriorGuide,
)
from pyro_meta.training.run import Run

FACTS: dict[str, Any] = {
    "command": "python benchmarks/exhibit.py", "hardware": {"cpu": "a <cpu>", "cores": 2},
    "versions": {"python": "3"}, "study": {}, "steps": 500, "kl_weight": 0.004, "texts": 4,
    "text": "Look-ups.", "json": "exhibit.json",
}  # fmt: skip


def figures(loss: float, cost: float, objective: float, elbo: float | None = -2.0) -> Figures:
    found: Figures = dict.fromkeys(COLUMNS, 0.5)
    return found | {"loss_hard": loss, "cost": cost, "objective": objective, "elbo": elbo}


def three_rows() -> tuple[list[Row], Pairs]:
    """The default pair under two seeds, a better one that is dear, and one without a density."""
    names = (DEFAULT, "LoadCategorical PriorGuide", "CostDirichlet PointGuide")
    default, dear, point = (Row(Pair(*name.split())) for name in names)
    default.figures = {0: figures(1.7, 0.13, 1.72), 1: figures(1.72, 0.13, 1.75)}
    dear.figures = {0: figures(1.6, 0.5, 1.70)}
    point.figures = {0: figures(1.65, 0.14, 1.65, None)}
    refused = Refused("CostDirichlet", "CategoricalGuide", "it infers <choices>")
    same = {"SymmetricDirichlet PointGuide": "CostDirichlet PointGuide"}
    return [default, dear, point], Pairs([row.pair for row in (default, dear, point)],
                                         [refused], same)  # fmt: skip


def test_a_gap_is_above_the_least_objective_under_the_same_prior_and_seed() -> None:
    rows, _ = three_rows()
    fill_gaps(rows)
    default, dear, point = rows
    assert default.figures[0]["gap"] == pytest.approx(1.72 - 1.70)
    assert default.figures[1]["gap"] == 0, "no other has that seed"
    assert dear.figures[0]["gap"] == 0
    assert point.figures[0]["gap"] is None, "its objective is another"


def test_the_best_at_equal_cost_cost_no_more_than_the_default_pair() -> None:
    rows, _ = three_rows()
    assert [row.pair.guide for row in at_equal_cost(rows)] == ["PointGuide", "CategoricalGuide"]
    without = [row for row in rows if row.pair.name != DEFAULT]
    assert [row.pair.guide for row in at_equal_cost(without)] == ["PriorGuide", "PointGuide"]
    rows[2].figures[0]["cost"] = 0.144  # more than 1.1 times .13
    assert [row.pair.guide for row in at_equal_cost(rows)] == ["CategoricalGuide"]


def test_rows_are_over_seeds() -> None:
    default = three_rows()[0][0]
    found = default.to_json()["figures"]["loss_hard"]
    assert found["mean"] == pytest.approx((1.7 + 1.72) / 2)
    assert found["deviation"] == pytest.approx(math.sqrt(2 * 0.01**2))
    assert found["seeds"] == 2
    assert default.to_json()["by_seed"]["1"]["objective"] == 1.75


def test_the_page_shows_every_pair_and_loads_nothing() -> None:
    rows, pairs = three_rows()
    rows[0].is_best = True
    rows[1].failed = "seed 1: a <mistake>"
    fill_gaps(rows)
    page = render(rows, pairs, FACTS)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert "http:" not in page and "https:" not in page and "default-src 'none'" in page
    for column in COLUMNS.values():
        assert f">{column.head}</button>" in page
    assert "1.7100 ± 0.0141" in page and "1.6000</td>" in page
    assert "a &lt;mistake&gt;" in page and "a &lt;cpu&gt;" in page and "<mistake>" not in page
    assert "<li>CategoricalGuide under CostDirichlet: it infers &lt;choices&gt;.</li>" in page
    assert page.index("PointGuide<small>") < page.index("PriorGuide<small>"), "dear ones come last"
    assert '<tr class="dear"><td>PriorGuide' in page
    best = page[page.index('id="best"') : page.index('id="square"')]
    assert "CategoricalGuide" in best and "PointGuide" not in best


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (390, True)])
def test_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    rows, pairs = three_rows()
    fill_gaps(rows)
    page = tmp_path / "exhibit.html"
    page.write_text(render(rows, pairs, FACTS), encoding="utf-8")
    with browser(tmp_path / "profile") as shown:
        shown.open(page, width=width, dark=dark)
        assert shown.value("document.documentElement.scrollWidth") <= width, "no sideways scroll"
        shown.value("document.querySelectorAll('.sortable button')[1].click()")
        first = shown.value("document.querySelector('.sortable tbody td').innerText")
        assert first.startswith("PriorGuide"), "the lowest hard loss"
        assert shown.complaints() == [] and shown.requests() == []


def test_the_square_tells_pairs_apart() -> None:
    rows, pairs = three_rows()
    rows[1].figures, rows[1].failed = {}, "seed 0: it failed"
    cells = {
        (guide, prior.__name__): cell
        for guide, row in square(rows, pairs)
        for prior, cell in zip(exhibit_pairs.PRIORS, row, strict=True)
    }
    assert len(cells) == len(exhibit_pairs.PRIORS) * len(exhibit_pairs.GUIDES)
    assert cells["CategoricalGuide", "LoadCategorical"].kind == "trained"
    assert cells["PointGuide", "CostDirichlet"].share == 100, "the lowest loss"
    assert cells["PointGuide", "SymmetricDirichlet"].kind == "same"
    assert cells["CategoricalGuide", "CostDirichlet"].says == "it infers <choices>"
    assert cells["PriorGuide", "LoadCategorical"].kind == "failed"
    assert cells["LoadGuide", "PaperDirichlet"].says == "not trained yet"


def test_pairs_are_those_that_the_code_does_not_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {prior.__name__ for prior in exhibit_pairs.PRIORS}
    assert {"LoadCategorical", "LearnedDirichlet", "PaperDirichlet"} < names
    assert not {"Prior", "LoadPrior", "DepthPrior"} & names
    monkeypatch.setattr(exhibit_pairs, "PRIORS", [CostDirichlet, LoadCategorical])
    guides = [DirichletGuide, CategoricalGuide, PointGuide, PriorGuide, FixedGuide]
    monkeypatch.setattr(exhibit_pairs, "GUIDES", guides)
    found = find_pairs([{"width": 16, "heads": 2, "layers": 1}])
    assert [pair.name for pair in found.trained] == [
        "CostDirichlet DirichletGuide", "CostDirichlet PointGuide", "CostDirichlet PriorGuide",
        "CostDirichlet FixedGuide", "LoadCategorical CategoricalGuide",
        "LoadCategorical PointGuide", "LoadCategorical PriorGuide",
    ]  # fmt: skip
    assert found.same == {"LoadCategorical FixedGuide": "CostDirichlet FixedGuide"}
    refused = {(one.prior, one.guide): one.why for one in found.refused}
    assert refused.keys() == {
        ("CostDirichlet", "CategoricalGuide"),
        ("LoadCategorical", "DirichletGuide"),
    }
    assert "infers choices" in refused["CostDirichlet", "CategoricalGuide"]


def test_figures_of_a_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its summary and report, and bounds; kept as long as the run is the same."""
    report = {
        "one_token": {"efficiency_median": 0.61},
        "use": {"calibration": {"deployed route": {"error": 0.07}}},
    }
    (finished / "report").mkdir()
    (finished / "report" / "report.json").write_text(json.dumps(report))
    kept = tmp_path / "kept" / "one.json"
    found = figures_of(finished, kept, draws=2, gradients=2)
    summary = json.loads((finished / "summary.json").read_text())
    assert found.keys() == (COLUMNS.keys() - {"gap"}) | {"gradient_variance"}
    assert found["loss_hard"] == summary["val_nll_hard"] and found["answers"] is None
    assert found["information"] == pytest.approx(2 * summary["routing_information"])
    assert found["seconds"] == pytest.approx(summary["seconds"] / 12)
    assert found["efficiency"] == 0.61 and found["calibration"] == 0.07
    for name in ("objective", "elbo", "iwae", "noise"):
        assert found[name] is not None and math.isfinite(found[name])
    objective, elbo = found["objective"], found["elbo"]
    assert objective is not None and elbo is not None and objective < -elbo

    def never(self: Run) -> None:
        raise AssertionError("it is kept")

    monkeypatch.setattr(Run, "load", never)
    assert figures_of(finished, kept, draws=2, gradients=2) == found
    with pytest.raises(AssertionError, match="it is kept"):
        figures_of(finished, kept, draws=3, gradients=2)


class InTurn:
    """In place of a pool of processes."""

    def __init__(self, workers: int, **options: Any) -> None: ...

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(self, *error: object) -> None: ...

    def map(self, call: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        return map(call, tasks)


def test_the_best_get_more_seeds_and_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training and looking stand in; the third pair fails."""
    rows, pairs = three_rows()
    asked: list[tuple[str, list[str], list[int]]] = []

    def trained(words: list[str]) -> int:
        out = Path(words[1].removeprefix("--out="))
        study = exhibit.read_mapping(Path(words[0]), "study")
        asked.append((out.name, list(study["variants"]), study["seeds"]))
        assert "--workers=2" in words and "--steps=9" in words
        runs = [
            {"group": name, "name": f"{name}-s{seed}", "seed": seed, "note": "it broke",
             "folder": f"runs/{name}-s{seed}",
             "state": "failed" if name.endswith("PriorGuide") else "finished"}
            for name in study["variants"] for seed in study["seeds"]
        ]  # fmt: skip
        (out / "study.json").write_text(json.dumps({"runs": runs}))
        return int(any(run["state"] == "failed" for run in runs))

    def looked_at(task: tuple[Path, Path, int]) -> tuple[Figures, str]:
        loss = 1.6 if "PointGuide" in task[0].name else 1.7
        return figures(loss, 0.13, loss), ""

    monkeypatch.setattr(exhibit.ablate, "main", trained)
    monkeypatch.setattr(exhibit, "looked_at", looked_at)
    monkeypatch.setattr(exhibit, "find_pairs", lambda base: pairs)
    monkeypatch.setattr(exhibit, "ProcessPoolExecutor", InTurn)
    study = tmp_path / "study.yaml"
    study.write_text(f"base: {{data: {{path: {tmp_path}/text.txt}}}}\nseeds: [0, 1, 2]\n")
    (tmp_path / "text.txt").write_text("the quick brown fox " * 200)
    target = tmp_path / "results" / "found.json"
    words = [f"--out={tmp_path / 'out'}", f"--json={target}", "--workers=2", "--best=1"]
    assert exhibit.main([*words, f"--study={study}", "--steps=9"]) == 1
    assert asked == [
        ("all", [row.pair.name for row in rows], [0]),
        ("best", ["CostDirichlet PointGuide"], [1, 2]),
    ]
    found = json.loads(target.read_text())
    assert found["at_equal_cost"] == ["CostDirichlet PointGuide", DEFAULT]
    by_name = {f"{row['prior']} {row['guide']}": row for row in found["rows"]}
    assert by_name["CostDirichlet PointGuide"]["is_best"]
    assert by_name["CostDirichlet PointGuide"]["figures"]["loss_hard"]["seeds"] == 3
    assert by_name["LoadCategorical PriorGuide"]["failed"] == "seed 0: it broke"
    assert found["refused"][0]["why"] == "it infers <choices>" and found["steps"] == 9
    assert "1.6000 ± 0.0000" in target.with_suffix(".html").read_text()
    assert "wrote" in capsys.readouterr().out
