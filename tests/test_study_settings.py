"""Settings of a grid beside each other: which are paired, what is said of it, and where."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from studies import SMALL, WORDS, faked_fixture, own_guides  # noqa: F401 -- fixtures

from pyro_meta import UsageError, ablate
from pyro_meta.study.comparisons import with_reference
from pyro_meta.study.description import Study
from pyro_meta.study.plan import MOST_NAMED, Group, _allowed, expand
from pyro_meta.study.result import Result
from pyro_meta.study.results import NOT_PAIRED, Results
from pyro_meta.study.tables import Table, markdown


def groups(**study: Any) -> list[Group]:
    return expand(Study.read({"base": SMALL, "baselines": False} | study, "test"))


def pairs(**study: Any) -> dict[str, str]:
    """Label -> that of its reference."""
    found = groups(**study)
    return {one.label: one.reference.label for one in found if one.reference is not None}


# -- which are paired ------------------------------------------------------------------------


def test_every_setting_but_the_first_is_held_against_the_first() -> None:
    grid = {"kl.weight": [0.1, 0.2], "prior": ["CostCategorical", "LoadCategorical"]}
    settings = [
        f"{prior} kl.weight={weight}"
        for prior, weight in itertools.product(["CostCategorical", "LoadCategorical"], [0.1, 0.2])
    ]
    assert pairs(grid=grid) == dict.fromkeys(settings[1:], settings[0])
    assert pairs(variants={"b": {}, "a": {"steps": 5}}) == {"a": "b"}
    assert pairs() == {}, "one setting has nothing to be compared to"


def test_baselines_have_no_reference() -> None:
    found = groups(grid={"kl.weight": [0.1, 0.2]}, baselines=["mechanisms", "prior"])
    assert [one.label for one in found if one.reference is not None] == ["kl.weight=0.2"]
    assert len(found) > 3


@pytest.mark.parametrize("name", ["kl.weight=0.2", "kl.weight=0.3"])
def test_the_reference_is_chosen_by_its_name(name: str) -> None:
    grid = {"kl.weight": [0.1, 0.2, 0.3]}
    others = {f"kl.weight={weight}" for weight in grid["kl.weight"]} - {name}
    assert pairs(grid=grid, reference=name) == dict.fromkeys(others, name)


def test_a_setting_may_be_named_by_the_variant_that_trains_the_same() -> None:
    variants = {"one": {}, "same": {"steps": SMALL["steps"]}, "other": {"steps": 5}}
    assert pairs(variants=variants, reference="same") == {"other": "one"}


def test_the_reference_survives_the_file() -> None:
    study = Study.read({"grid": {"kl.weight": [0.1, 0.2]}, "reference": "kl.weight=0.2"}, "test")
    assert Study.read(yaml.safe_load(study.as_yaml()), "again") == study


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("kl.wieght=0.2", r"reference: 'kl.wieght=0.2' given; allowed are kl.weight=0.1, kl.weight="
         r"0.2; did you mean kl.weight=0.2"),
        ("full alone", "reference: 'full alone' given; allowed are"),
        (0.2, r"test: reference: 0.2 given; the name of a setting is needed"),
    ],
)  # fmt: skip
def test_a_reference_that_is_no_setting_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pairs(grid={"kl.weight": [0.1, 0.2]}, reference=given)


def test_of_many_names_the_first_are_told() -> None:
    names = [f"setting {n}" for n in range(MOST_NAMED + 3)]
    said = _allowed(names)
    assert names[MOST_NAMED - 1] in said and names[MOST_NAMED] not in said
    assert said.endswith("and 3 more, which --dry_run true lists")
    assert _allowed(names[:2]) == "allowed are setting 0, setting 1"


# -- what is found ---------------------------------------------------------------------------


def a_group(label: str, reference: Group | None = None) -> Group:
    unused: Any = None
    return Group(label, "variant", [], unused, "", [], True, True, False, False, False, 1,
                 reference=reference)  # fmt: skip


def result(group: Group, hard: dict[int, Any], soft: dict[int, Any], text: str = "t") -> Result:
    sequences = {
        seed: {"windows": text, "hard": hard[seed].tolist(), "soft": soft[seed].tolist()}
        for seed in hard
    }
    return Result(group, {}, sequences, {})


def test_hard_and_soft_losses_are_subtracted_by_seed_and_sequence() -> None:
    """The interval again, plainly: two crossed clusters, and a t with S - 1 degrees of freedom."""
    rng, S, N = np.random.default_rng(1), 3, 40
    base, other = a_group("base"), a_group("other")
    other.reference = base
    shared = rng.normal(2, 1, (S, N))  # what makes a seed or a text hard is of both
    d = 0.05 + 0.02 * rng.normal(size=(S, 1)) + 0.03 * rng.normal(size=N)
    d = d + 0.01 * rng.normal(size=(S, N))
    theirs = result(base, dict(enumerate(shared)), dict(enumerate(shared)))
    ours = result(other, dict(enumerate(shared + d)), dict(enumerate(shared - 2 * d)))
    (found,) = with_reference([theirs, ours])
    assert (found.of, found.against, found.kind) == ("other", "base", "variant")
    assert found.hard is not None and found.soft is not None
    rows, columns = d.mean(1), d.mean(0)
    rest = d - rows[:, None] - columns + d.mean()
    variance = rows.var(ddof=1) / S + columns.var(ddof=1) / N
    variance -= (rest**2).sum() / ((S - 1) * (N - 1)) / (S * N)
    half = stats.t.ppf(0.975, S - 1) * np.sqrt(variance)
    assert found.hard.interval == pytest.approx((d.mean() - half, d.mean() + half), abs=1e-12)
    assert found.soft.mean == pytest.approx(-2 * d.mean(), abs=1e-12)
    assert found.soft.by_seed == pytest.approx(dict(enumerate(-2 * rows)), abs=1e-12)


def test_what_has_no_pair_is_said_to_have_none() -> None:
    base = a_group("base")
    ones = {0: np.ones(4)}
    elsewhere = result(a_group("elsewhere", base), ones, ones, text="another")
    alone = result(a_group("alone", base), {7: np.ones(4)}, {7: np.ones(4)})
    for finished in ([result(base, ones, ones)], []):  # or the reference has no run yet
        found = with_reference([*finished, elsewhere, alone])
        assert [(one.of, one.against, one.hard) for one in found] == [
            ("elsewhere", "base", None),
            ("alone", "base", None),
        ]
        shown = Results([base, alone.group], [], "macs")
        shown.of_settings = found
        table = shown.settings()
        assert table.headings == ["minus base", "hard", "pairs"]
        assert [row[1:] for row in table.rows] == [[NOT_PAIRED, "0"]] * 2


# -- where it stands -------------------------------------------------------------------------


def columns(page: str) -> list[list[str]]:
    """Every column of every table in Markdown, without its heading."""
    found: list[list[str]] = []
    for block in page.split("\n\n"):
        if block.startswith("| "):
            _, _, *rows = (line.strip("|").split(" | ") for line in block.splitlines())
            found += map(list, zip(*rows, strict=True))
    return found


@pytest.mark.usefixtures("faked")
def test_a_study_shows_its_settings_in_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "study"
    words = [*WORDS, "--grid.kl.weight=[0.004,0.02]", "--baselines=false", f"--out={out}"]

    def look(*more: str) -> tuple[dict[str, Any], str, str]:
        assert ablate.main([*words, *more]) == 0
        facts = json.loads((out / "study.json").read_text())
        return facts, (out / "study.md").read_text(), capsys.readouterr().out

    facts, page, shown = look("--seeds=2")
    assert facts["reference"] == "kl.weight=0.004"
    (one,) = facts["differences"]
    assert (one["of"], one["against"], one["kind"]) == ("kl.weight=0.02", facts["reference"],
                                                         "variant")  # fmt: skip
    assert one["hard"]["mean"] == pytest.approx(0.016) and one["hard"]["seeds"] == 2
    assert one["soft"]["mean"] == pytest.approx(0.008) and one["soft"]["sequences"] == 8
    for text in (page, shown):
        assert "minus kl.weight=0.004" in text and "seeds and text" in text
        assert "+0.0160 to +0.0160" in text and "+0.0080 to +0.0080" in text
        assert "to best single" not in text.lower(), "no baseline, no column and no legend of it"
    assert "## Paired differences" not in page

    facts, page, shown = look("--seeds=1", "--reference=kl.weight=0.02")
    assert facts["reference"] == "kl.weight=0.02"
    assert facts["differences"][0]["hard"]["mean"] == pytest.approx(-0.016)
    assert facts["differences"][0]["hard"]["over_seeds"] is None
    for text in (page, shown):
        assert "minus kl.weight=0.02" in text and "text alone (one seed)" in text
        assert "seeds and text" not in text

    words = [f"--out={out}"]  # the folder knows its study, and who the reference is
    assert look()[0]["reference"] == "kl.weight=0.02"
    facts, page, _ = look("--report_only", "--reference=kl.weight=0.004")
    assert facts["reference"] == "kl.weight=0.004" and len(facts["groups"]) == 2


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("baselines", ["false", "[mechanisms]", "[point]"])
def test_no_table_has_a_column_that_no_row_fills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], baselines: str
) -> None:
    out = tmp_path / "study"
    assert ablate.main([*WORDS, "--seeds=1", f"--baselines={baselines}", f"--out={out}"]) == 0
    page = (out / "study.md").read_text()
    found = columns(page)
    assert found and all(any(cell.strip() for cell in cells) for cells in found)
    shown = capsys.readouterr().out
    for heading, kind in (("to best single", "mechanisms"), ("to no prior", "point")):
        is_there = kind in baselines
        assert (f"| {heading} |" in page) == (f"*{heading}*" in page) == is_there
        assert (heading in " ".join(shown.split())) == is_there
    assert "to split" not in page


def test_a_table_leaves_out_what_is_empty_and_keeps_names() -> None:
    table = Table(["", "a", "b", "c"], [["", "1", "", ""], ["", "", "", "x"]])
    assert (table.headings, table.rows) == (["", "a", "c"], [["", "1", ""], ["", "", "x"]])
    assert markdown(table).splitlines()[0] == "|  | a | c |"
    assert Table(["of", "a"], []).rows == []


def test_a_dry_run_names_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--grid.kl.weight=[0.1,0.2]", "--baselines=false", "--seeds=1"]
    words += ["--out=none", "--dry_run", "--reference=kl.weight=0.2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate, "_prepare", lambda groups, told: None)
        assert ablate.main(words) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "kl.weight=0.1  seeds 0",
        "kl.weight=0.2  seeds 0; the reference",
    ]
