"""Generation and the report, on a run of a moment."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import MOMENT, error_line, run, run_here, train
from PIL import Image

from pyro_meta import CategoricalGuide, checksums, report
from pyro_meta.analysis.posterior_file import LAYOUT
from pyro_meta.analysis.reading import Reading
from pyro_meta.errors import UsageError
from pyro_meta.generation.sampling import Sampling, continue_tokens
from pyro_meta.guides import mean_route
from pyro_meta.training.run import Run

TEXT = "she sells <b>sea</b> shells & $x_1$ by the sea shore; grüße. " * 50


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    os.environ["PYRO_META_CACHE"] = str(folder / "cache")
    done = run(
        "train", *MOMENT, f"--data.path={folder / 'text.txt'}", f"--out={folder / 'run'}",
        "--dropout=0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.long
def test_standard_output_is_the_text_alone(trained: Path) -> None:
    done = run("generate", trained, "--prompt", "she sells", "--max_tokens=30", "--seed=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("she sells") and done.stderr == ""
    again = run_here("generate", trained, "--prompt", "she sells", "--max_tokens=30", "--seed=3")
    assert again.stdout == done.stdout
    other = run_here("generate", trained, "--prompt", "she sells", "--max_tokens=30", "--seed=4")
    assert other.stdout != done.stdout


def test_the_cache_changes_no_text(trained: Path) -> None:
    """The context of the run is 16: it is filled several times."""
    words = ("generate", trained, "--prompt", "she sells", "--max_tokens=40", "--greedy=true")
    kept, again = run_here(*words), run_here(*words, "--cache=false")
    assert kept.returncode == 0 and len(kept.stdout) > 40
    assert kept.stdout == again.stdout


def test_a_file_is_continued(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "begun.txt"
    file.write_text("she sells grüße; " * 9, encoding="utf-8")
    done = run_here("generate", trained, "--prompt_file", file, "--max_tokens=3")
    assert done.returncode == 0 and done.stdout.startswith("she sells grüße; " * 9)
    words = ("generate", trained, "--prompt_file")
    assert "not both" in error_line(run_here(*words, file, "--prompt=x"))
    assert "gone.txt: No such file" in error_line(run_here(*words, tmp_path / "gone.txt"))
    file.write_bytes(b"caf\xe9")
    assert "is not UTF-8 text" in error_line(run_here(*words, file))
    file.write_bytes(b"")
    assert "option --prompt_file: it is empty" in error_line(run_here(*words, file))


def test_generation_is_in_evaluation_mode_whatever_the_mode_was(trained: Path) -> None:
    """The run has dropout: in training mode greedy text would differ from call to call."""
    model, guide, vocabulary, _ = Run.open(trained).load()
    assert isinstance(guide, CategoricalGuide)
    prompt = vocabulary.encode("she ").tolist()
    model.train()
    guide.train()
    greedy = Sampling(greedy=True)
    first = list(continue_tokens(model, guide, prompt, 24, greedy, seed=0))
    assert first == list(continue_tokens(model, guide, prompt, 24, greedy, seed=9))
    assert model.training and guide.training


def test_greedy_text_follows_the_hard_route(trained: Path) -> None:
    model, guide, vocabulary, config = Run.open(trained).load()
    assert float(guide.execution.threshold) == 1.0
    prompt = vocabulary.encode("she sells sea").tolist()
    (token,) = continue_tokens(model, guide, prompt, 1, Sampling(greedy=True), seed=0)
    with torch.no_grad():
        logits = model.network(torch.tensor([prompt]), mean_route(guide, hard=True))
    assert token == int(logits[0, -1].argmax())
    assert config.context == 16


def test_sampling_keeps_what_it_says() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    p = logits.softmax(-1)
    torch.testing.assert_close(Sampling(temperature=1.0).probabilities(logits), p)
    colder = Sampling(temperature=0.5).probabilities(logits)
    torch.testing.assert_close(colder, (logits * 2).softmax(-1))
    two = Sampling(temperature=1.0, top_k=2).probabilities(logits)
    torch.testing.assert_close(two, torch.cat([p[:2] / p[:2].sum(), torch.zeros(2)]))
    assert p[0] < 0.7 < p[0] + p[1]
    nucleus = Sampling(temperature=1.0, top_p=0.7).probabilities(logits)
    torch.testing.assert_close(nucleus, two)
    cold = Sampling(temperature=1e-40).probabilities(logits)
    assert cold.tolist() == [1, 0, 0, 0]
    assert Sampling(temperature=1e-200).probabilities(logits).tolist() == [1, 0, 0, 0]
    tiny = Sampling(top_p=1e-9).probabilities(logits)
    assert tiny.tolist() == [1, 0, 0, 0], "the likeliest token always stays"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature=0"], "--greedy true"),
        (["--temperature=.inf"], "a finite number"),
        (["--top_k=0"], "at least 1"),
        (["--top_p=1.5"], "0 < p <= 1"),
        (["--max_tokens=-1"], "at least 0"),
        (["--prompt="], "it is empty"),
        (["--promt=x"], "did you mean --prompt"),
        (["--greedy=perhaps"], "option --greedy"),
    ],
)
def test_bad_options_are_refused_by_name(trained: Path, words: list[str], message: str) -> None:
    from pyro_meta.generate import main

    with pytest.raises(UsageError, match=message):
        main([str(trained), *words])


@pytest.mark.parametrize("prompt", ["# a heading", "null", "~", "1e3", "[x]"])
def test_a_prompt_is_text_whatever_it_looks_like(
    trained: Path, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyro_meta.generate import main

    main([str(trained), f"--prompt={prompt}", "--max_tokens=0"])
    assert capsys.readouterr().out == f"{prompt}\n"


@pytest.mark.long
def test_the_report_prints_verdicts_and_writes_pictures(trained: Path) -> None:
    done = run("report", trained)
    assert done.returncode == 0, done.stderr
    for word in (
        "hard routes executed",
        "16 tokens",
        "diversity",
        "epistemic",
        "collapse",
        "Does it say more than its prior?",
        "one mechanism",
    ):
        assert word in done.stdout
    for name in ("load_by_layer.png", "entropy_over_training.png", "passage.png"):
        with Image.open(trained / "report" / name) as picture:
            assert picture.width > 800
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "not blank"


@pytest.mark.long
def test_a_run_of_before_hard_routes_were_timed_is_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    summary = json.loads((folder / "summary.json").read_text())
    del summary["executed"]
    (folder / "summary.json").write_text(json.dumps(summary))
    checksums.renew(folder, "summary.json")
    report.main([str(folder), "--belief=false"])
    printed = capsys.readouterr().out
    assert "diversity" in printed and "executed" not in printed


def test_the_posterior_file_has_the_promised_groups(trained: Path) -> None:
    import xarray as xr

    path = trained / "posterior.nc"
    route = xr.open_dataset(path, group="posterior", engine="h5netcdf")["route"]
    assert route.dims == ("chain", "draw", "layer", "group", "token", "mechanism")
    assert list(route["mechanism"].values) == ["full", "window", "linear"]
    np.testing.assert_allclose(route.sum("mechanism"), 1, atol=1e-5)
    for group in ("observed_data", "tokens"):
        assert xr.open_dataset(path, group=group, engine="h5netcdf").sizes["token"] > 0


def test_draws_agree_with_the_means_that_were_read_out(trained: Path) -> None:
    """In the first layer features do not depend on draws, so the mean of draws is the mean."""
    reading = Reading.of(trained)
    draws, mean = reading.draws[:, 0], reading.means[0]
    deviation = np.sqrt(mean * (1 - mean))  # of a choice; a corner is drawn without any
    z = (draws.mean(0) - mean) / (deviation / np.sqrt(len(draws)) + 1e-3)
    # near a corner the draws' own deviation is now and then too small: no single z decides
    assert np.quantile(np.abs(z), 0.99) < 4 and np.sqrt((z**2).mean()) < 1.3
    assert "".join(reading.text[:9]) in TEXT


def test_the_file_opens_in_arviz(trained: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz as az
    data = az.from_netcdf(str(trained / "posterior.nc"), engine="h5netcdf")
    assert set(data.groups()) == set(LAYOUT)
    summary = az.summary(data, var_names=["route"], coords={"layer": [0], "token": [0, 1]},
                         kind="stats", hdi_prob=0.9)  # fmt: skip
    assert len(summary) == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"{}"),
        ("summary.json", b"["),
        ("metrics.jsonl", b""),
        ("metrics.jsonl", b'{"step": 1}'),
        ("posterior.nc", b"no netcdf"),
    ],
)
def test_damaged_results_are_refused(
    trained: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match="is damaged"):
        Reading.of(folder)


@pytest.mark.long
def test_without_a_prompt_a_character_model_still_speaks(tmp_path: Path) -> None:
    (tmp_path / "ab.txt").write_text("ab ba " * 300)
    options = [*MOMENT, f"--data.path={tmp_path / 'ab.txt'}", "--data.tokens=char"]
    assert train(*options, f"--out={tmp_path / 'run'}") == 0
    done = run_here("generate", tmp_path / "run", "--max_tokens=5")
    assert done.returncode == 0 and len(done.stdout.rstrip("\n")) == 6


def test_a_run_that_has_not_finished(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "summary.json").unlink()
    assert "has not finished" in error_line(run_here("report", folder))
