"""The report: what it writes, what it says of broken runs, and how it behaves in a browser."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Page, browser
from commands import MOMENT, READ_OUT, error_line, run, run_here, train

from pyro_meta import checksums, report
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.plots import PICTURES
from pyro_meta.analysis.reading import Reading
from pyro_meta.posterior import belief
from pyro_meta.posterior.belief import believe
from pyro_meta.training.run import Run

# A corpus that would run, if anything of it got into the page as it is.
TEXT = (
    "<script>document.title='taken'</script> <img src=x onerror=alert(1)> &amp; \"'{{ 7 * 7 }} "
    * 60
)
NAME = "mine <b>&"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    (folder / "text.txt").write_text(TEXT)
    os.environ["PYRO_META_CACHE"] = str(folder / "cache")
    options = [*MOMENT, *READ_OUT, f"--data.path={folder / 'text.txt'}"]
    done = run("train", *options, f"--out={folder / NAME}")
    assert done.returncode == 0, done.stderr
    return folder / NAME


@pytest.fixture(scope="module")
def page(trained: Path) -> Path:
    """The page of a run, reported beside another one, for which a copy stands."""
    believe(Run.open(trained))
    other = trained.with_name("other")
    shutil.copytree(trained, other)
    losses = json.loads((other / "sequences.json").read_text())
    losses["hard"] = [loss + 0.5 for loss in losses["hard"]]
    (other / "sequences.json").write_text(json.dumps(losses))
    checksums.renew(other, "sequences.json")
    report.main([str(trained), str(other)])
    return trained / "report" / "report.html"


def test_every_picture_and_every_number_is_there(page: Path) -> None:
    names = {path.name for path in page.parent.iterdir()}
    extra = {"report.html", "report.json", "passage.png"}
    beside = {"comparison.html", "comparison.json", "pareto.png", "differences.png"}
    others = {"skipped", "heads"}  # of depth gates, and of several groups of heads
    drawn = {f"{picture.name}.png" for picture in PICTURES if picture.name not in others}
    assert names == drawn | extra | beside
    assert 'id="section-depth"' not in page.read_text(), "there are no gates"
    numbers = json.loads((page.parent / "report.json").read_text())
    questions = [line["question"] for line in numbers["verdicts"]]
    assert len(questions) == 8 and questions[0] == "Does it say more than its prior?"
    w, single = numbers["facts"]["kl_weight"], numbers["one_token"]
    assert w < 1 and single["kl_weight"] == w and 0 < single["efficiency_median"] <= 1
    assert set(single["gap"]) == {"value", "interval", "share_of_loss"}
    assert numbers["belief"]["objective"]["uniform"] < 0 and "one_token" not in numbers["belief"]
    rows = numbers["diversity_by_layer"]
    assert all(row["marginal_kl"] + row["information"] == pytest.approx(row["kl"]) for row in rows)
    assert numbers["belief"]["beside_truth"][0]["method"] == "enumeration"
    sensitivity = numbers["sensitivity"]
    assert sensitivity["rows"] == [0, 1] and len(sensitivity["prior"]["load_by_layer"]) == 2
    together = json.loads((page.parent / "comparison.json").read_text())
    assert together["pairs"][0]["mean"] == pytest.approx(-0.5)
    assert together["pairs"][0]["interval"] == pytest.approx([-0.5, -0.5])
    assert [one["run"] for one in together["reports"]] == together["runs"] == [NAME, "other"]
    assert all(row["k_hat_quantiles"] for row in numbers["belief"]["blocks"])


def test_the_page_stands_alone_and_escapes_its_text(page: Path) -> None:
    html = page.read_text()
    assert html.count("<script") == 1 and "<b>&" not in html and "mine &lt;b&gt;&amp;" in html
    assert ">&lt;</span>" in html, "every byte of the text is a token"
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert html.count("<img ") == html.count("alt=") >= len(PICTURES) - 2


def test_what_the_network_said_is_kept(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(belief, "measure", never)
    found = believe(Run.open(page.parents[1]))
    assert found is not None and found["one_token"]


def test_without_a_checkpoint_the_rest_is_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoint", "belief.json"))
    report.main([str(folder)])
    assert "not looked at" in capsys.readouterr().out
    assert not (folder / "report" / "single_tokens.png").exists()


@pytest.mark.long
def test_one_mechanism_two_mechanisms_and_guides_without_density(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("she sells sea shells by the sea shore. " * 60)
    for name, words in {
        "one": ["--mechanisms=[window]"],
        "two": ["--mechanisms=[full,linear]", "--harden.final=0"],
        "point": ["--guide=PointGuide"],
        "mixture": ["--guide=FixedGuide"],
    }.items():
        options = [*MOMENT, f"--data.path={tmp_path / 'text.txt'}", f"--out={tmp_path / name}"]
        assert train(*options, *words) == 0
        report.main([str(tmp_path / name), "--belief=false"])
        findings = Findings(Reading.of(tmp_path / name))
        assert (findings.judged is None) is (name in ("point", "mixture"))
        assert findings.reading.shares.sum(-1) == pytest.approx(1)


@pytest.mark.parametrize(
    "harm", ["cut short", "empty", "foreign", "of another version", "no numbers"]
)
def test_a_broken_file_is_one_line_and_code_two(trained: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / "posterior.nc"
    if harm == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "foreign":
        path.write_bytes(b"PK\x03\x04" + b"a photograph" * 99)
    elif harm == "of another version":
        import h5py

        with h5py.File(path, "a") as file:
            file["sample_stats"].attrs["layout"] = 1
    else:
        (folder / "summary.json").write_text("[1, 2]")
    checksums.renew(folder, "posterior.nc", "summary.json")
    said = error_line(run_here("report", folder, "--belief=false"))
    assert ("--reread" in said) if harm == "of another version" else ("is damaged" in said)


@pytest.mark.long
def test_a_posterior_of_another_version_is_written_anew(trained: Path, tmp_path: Path) -> None:
    import numpy as np

    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "posterior.nc").write_bytes(b"")
    report.main([str(folder), "--reread=true", "--belief=false"])
    ours, theirs = Reading.of(folder), Reading.of(trained)
    np.testing.assert_allclose(ours.means, theirs.means, atol=1e-5)
    np.testing.assert_allclose(ours.tokens["nll_hard"], theirs.tokens["nll_hard"], atol=1e-4)


def assert_all_fits(shown: Page, width: int) -> None:
    """Neither the page nor any table of it has to be moved sideways."""
    assert shown.value("document.documentElement.scrollWidth") <= width
    hidden = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert shown.value(f"{hidden}.map(e => e.firstElementChild.id)") == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (360, False)])
def test_several_runs_in_a_browser(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    with browser(tmp_path) as shown:
        shown.open(page.with_name("comparison.html"), width=width, dark=dark)
        assert_all_fits(shown, width)
        left = "[...document.querySelectorAll('#load_by_layer + p + .beside figure')]"
        places = shown.value(f"{left}.map(one => Math.round(one.getBoundingClientRect().left))")
        assert len(places) == 2 and (places[0] < places[1]) is (width > 600), "beside one another"
        assert all(shown.value("[...document.images].map(i => i.naturalWidth > 0)"))
        assert shown.complaints() == [] and shown.requests() == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (768, True), (360, True)])
def test_in_a_browser(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    with browser(tmp_path) as shown:
        shown.open(page, width=width, dark=dark)
        assert shown.value("document.title") == f"{NAME}: the posterior of its router"
        images = "[...document.images].map(i => i.complete && i.naturalWidth > 0)"
        loaded = shown.value(images)
        assert len(loaded) >= len(PICTURES) - 2 and all(loaded)
        assert_all_fits(shown, width)
        of_phones = shown.value("[...document.images].map(i => i.currentSrc != i.src)")
        assert set(of_phones) == {width < 600}, "phones have pictures of their own"
        background = shown.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) is dark

        token = "document.querySelectorAll('.passage span')[20]"
        shown.value(f"{token}.scrollIntoView({{block: 'center'}})")
        shown.wait_until("true")  # a frame later, scrolling has been told
        box = (
            f"(() => {{ const b = {token}.getBoundingClientRect(); return [b.x + 2, b.y + 5] }})()"
        )
        assert shown.value("document.getElementById('tip').hidden")
        shown.move_to(*shown.value(box))
        shown.wait_until("!document.getElementById('tip').hidden")
        said = shown.value("document.getElementById('tip').innerText")
        assert re.fullmatch(r"full \d+%\nwindow \d+%\nlinear \d+%", said), (
            "a choice has no concentration"
        )
        assert shown.complaints() == [] and shown.requests() == []


def test_choices_are_unsure_though_each_draw_is_decided(read_out: Path) -> None:
    reading = Reading.of(read_out)
    assert reading.is_of_choices and reading.expected.max() < 1e-6
    assert np.allclose(reading.uncertainty, reading.total / reading.log_k)
    rows = Findings(reading).by_group()
    assert all(0 < row["uncertainty"] <= 1 for row in rows if row["share"])
