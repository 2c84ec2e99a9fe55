"""A trained run as an object: every number beside a slow, obvious second one."""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray
from commands import MOMENT, TEXT, run_here
from conftest import build
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

import pyro_meta
from pyro_meta import (
    BetaDepthGuide,
    CategoricalGuide,
    CostDirichlet,
    DepthPrior,
    DirichletGuide,
    FixedGuide,
    Guide,
    LanguageModel,
    LoadCategorical,
    LoadDirichlet,
    LoadGuide,
    Shape,
    Transformer,
    UsageError,
)
from pyro_meta.analysis import arviz_versions
from pyro_meta.data.vocabulary import CharVocabulary
from pyro_meta.guides import along_means, walk
from pyro_meta.interactive import Passage, TrainedRun
from pyro_meta.interactive.passage import TINT, _paints
from pyro_meta.interactive.words import words_of
from pyro_meta.training.run import Run

LETTERS = CharVocabulary("abcdefghijklm")
SAID = "abcabcmlkjihgfed"


def object_of(guide: Guide, folder: Path = Path("runs/none")) -> TrainedRun:
    """An untrained model as a run would give it."""
    torch.manual_seed(3)
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    config: Any = SimpleNamespace(batch=7)
    return TrainedRun(Run(folder), guide.model.eval(), guide.eval(), LETTERS, config)


def by_groups() -> TrainedRun:
    model, guide = build(LoadCategorical, CategoricalGuide, groups=2)
    model.temperature, model.text_tokens = 0.1, 1000
    return object_of(guide)


def gated() -> TrainedRun:
    network = Transformer(Shape(13, 24, 16, 3, 2, window=5), ("full", "window", "linear"))
    guide = DirichletGuide(
        LanguageModel(network, CostDirichlet(network), DepthPrior(network, 0.5, 1.0))
    )
    guide.depth = BetaDepthGuide(guide.model)
    guide.model.temperature = 0.05
    return object_of(guide)


def of_loads() -> TrainedRun:
    return object_of(build(LoadDirichlet, LoadGuide)[1])


MADE: dict[str, Callable[[], TrainedRun]] = {
    "groups": by_groups,
    "gates": gated,
    "loads": of_loads,
    "weights": lambda: object_of(build()[1]),
}
each = pytest.mark.parametrize("name", MADE)


def ids(text: str) -> torch.Tensor:
    return torch.tensor([["abcdefghijklm".index(letter) for letter in text]])


def most_z(found: np.ndarray, wanted: np.ndarray, draws: int) -> float:
    """Largest z-score of means of draws on a simplex, of which none varies more than a choice."""
    deviation = np.sqrt((wanted * (1 - wanted) + 1 / draws) / draws)
    return float(np.abs((found - wanted) / deviation).max())


# -- routes ----------------------------------------------------------------------------------


@each
def test_routes_are_the_posterior_means_of_every_token(name: str) -> None:
    run = MADE[name]()
    found = run.routes(SAID)
    L, G = run.model.network.shape.layers, run.model.network.shape.groups
    assert found.dims == ("layer", "group", "token", "mechanism")
    assert found.shape == (L, G, len(SAID), 3)
    assert "".join(found.text.values) == SAID
    assert list(found.mechanism.values) == ["full", "window", "linear"]
    np.testing.assert_allclose(found.sum("mechanism"), 1, rtol=1e-5)
    with torch.no_grad():
        walked = walk(run.model, run.guide, ids(SAID), along_means())
    for layer, mean in enumerate(walked.means):
        for group in range(G):
            slow = mean[0] if G == 1 else mean[0, :, group]
            ours = found.sel(layer=layer, group=group).values
            np.testing.assert_allclose(ours, slow.numpy(), rtol=1e-5, atol=1e-7)


@each
@pytest.mark.parametrize("hard", [False, True])
def test_what_follows_moves_no_route(name: str, hard: bool) -> None:
    run = MADE[name]()
    run.guide.harden_below(1.0)
    whole = run.routes(SAID, hard=hard)
    for end in (1, 5, 11):
        part = run.routes(SAID[:end] + "m" * (end == 5), hard=hard)
        np.testing.assert_allclose(
            part.isel(token=slice(end)), whole.isel(token=slice(end)), atol=1e-5
        )


@each
def test_hard_routes_are_what_runs(name: str) -> None:
    run = MADE[name]()
    run.guide.harden_below(1.0)
    found = run.routes(SAID, hard=True)
    means = run.routes(SAID)  # along the same hard route
    price, costs = run.model.execution.price, run.model.execution.costs
    runs = np.ones((found.sizes["layer"], len(SAID)), dtype=bool)
    if name == "gates":
        with torch.no_grad():
            walked = walk(run.model, run.guide, ids(SAID), along_means(True))
        runs[1:] = [(q.gate.mean[0] > 0.5).numpy() for q in walked.posteriors[1:]]
        assert not runs.all(), "a token skips a layer"
    for layer in range(found.sizes["layer"]):
        for group in range(found.sizes["group"]):
            for token in range(len(SAID)):
                at = {"layer": layer, "group": group, "token": token}
                scores = np.log(means.isel(at).values) - float(price) * costs.numpy()
                wanted = np.eye(3)[scores.argmax()] * runs[layer, token]
                assert found.isel(at).values.tolist() == wanted.tolist()


def test_a_mixture_runs_as_it_is() -> None:
    loads = [[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]]
    model, _ = build()
    run = object_of(FixedGuide(model, loads=loads))
    run.guide.harden_below(1.0)
    for hard in (False, True):
        found = run.routes("abc", hard=hard).isel(group=0, token=1).values
        np.testing.assert_allclose(found, loads, rtol=1e-6)


# -- draws -----------------------------------------------------------------------------------


@each
def test_draws_are_of_the_posterior_and_score_the_text(name: str) -> None:
    """Means by a z-score; log likelihoods by running the network along each draw."""
    run = MADE[name]()
    S = 400
    data = run.posterior(SAID, draws=S, seed=5)
    route = data.posterior.route
    L, G, T = run.model.network.shape.layers, run.model.network.shape.groups, len(SAID) - 1
    assert route.shape == (1, S, L, G, T, 3)
    assert data.prior.route.shape == route.shape
    assert "".join(data.posterior.text.values) == SAID[:-1]
    assert "".join("abcdefghijklm"[i] for i in data.observed_data.next_token.values) == SAID[1:]
    first = route.isel(layer=0, chain=0)  # of deeper layers features depend on draws below
    means = run.routes(SAID).isel(layer=0, token=slice(T))
    assert most_z(first.mean("draw").values, means.values, S) < 5
    x, y = ids(SAID[:-1]), ids(SAID[1:])[0]
    for draw in (0, S - 1):
        chosen = torch.tensor(route.values[0, draw]).transpose(1, 2)  # [L, T, G, K]
        values = {f"route_{layer}": chosen[layer][None] for layer in range(L)}
        if G == 1:
            values = {site: value[:, :, 0] for site, value in values.items()}
        if name == "gates":
            depth = torch.tensor(data.posterior.depth.values[0, draw])
            values |= {f"depth_{layer}": depth[layer][None] for layer in range(1, L)}
        with torch.no_grad(), pyro.validation_enabled(False):
            conditioned = poutine.condition(run.model, data=values)
            logits = poutine.trace(conditioned).get_trace(x).nodes["next_token"]["fn"].logits
        logits = logits.reshape(1, T, -1)
        slow = logits[0].log_softmax(-1)[torch.arange(T), y]
        ours = data.log_likelihood.next_token.values[0, draw]
        np.testing.assert_allclose(ours, slow.numpy(), rtol=1e-4, atol=1e-5)


@each
def test_prior_draws_have_the_mean_of_the_prior(name: str) -> None:
    run = MADE[name]()
    S = 2000
    drawn = run.posterior("abcd", draws=S).prior.route.isel(chain=0)
    with torch.no_grad():
        walked = walk(run.model, run.guide, ids("abc"), along_means())
    of_prior = [run.model.route_dist(layer, torch.arange(3)) for layer in range(len(walked.means))]
    for layer, dist in enumerate(of_prior):
        mean = dist.mean.detach()
        if mean.dim() == 3:  # of groups
            mean = mean.transpose(0, 1)
        wanted = mean.expand(drawn.sizes["group"], 3, 3).numpy()
        assert most_z(drawn.isel(layer=layer).mean("draw").values, wanted, S) < 5


def test_the_same_seed_gives_the_same_draws_and_leaves_the_world_alone() -> None:
    run = by_groups()
    state = torch.random.get_rng_state()
    one, two, other = (run.posterior(SAID, draws=9, seed=seed).posterior for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.equals(two) and not one.equals(other)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_each_arviz_gets_the_kind_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    run = by_groups()
    if arviz_versions.IS_LEGACY:
        import arviz

        assert isinstance(run.posterior(SAID, draws=3), arviz.InferenceData)
    monkeypatch.setattr(arviz_versions, "IS_LEGACY", False)
    tree = run.posterior(SAID, draws=3)
    assert isinstance(tree, xarray.DataTree)
    assert set(tree.children) == {
        "posterior", "prior", "posterior_predictive", "log_prior", "log_likelihood",
        "observed_data",
    }  # fmt: skip
    assert tree["posterior/route"].sizes["draw"] == 3


# -- ELBO ------------------------------------------------------------------------------------


@each
def test_the_elbo_is_pyros_own(name: str) -> None:
    run = MADE[name]()
    ours = run.elbo(SAID, draws=6, seed=4)
    x, y = ids(SAID[:-1]), ids(SAID[1:])
    w, T = run.model.temperature, len(SAID) - 1
    losses = {}
    for temperature in (w, 1.0):
        run.model.temperature = temperature
        torch.manual_seed(4)
        pyro.clear_param_store()
        with torch.no_grad(), pyro.validation_enabled(False):
            pyros = TraceMeanField_ELBO(num_particles=6, max_plate_nesting=3)
            losses[temperature] = pyros.loss(run.model, run.guide, x, y) * temperature / T
    assert ours.elbo == pytest.approx(-losses[1.0], rel=1e-4)
    assert ours.as_trained == pytest.approx(-losses[w], rel=1e-4)
    assert ours.kl_weight == w and ours.tokens == T
    paid = ours.kl + ours.compute
    assert ours.elbo == pytest.approx(-(ours.nll + paid), rel=1e-5)
    assert ours.as_trained == pytest.approx(-(ours.nll + w * paid), rel=1e-5)


@pytest.mark.long
def test_the_error_of_an_elbo_is_that_of_its_draws() -> None:
    run = by_groups()
    found = [run.elbo(SAID, draws=8, seed=seed).elbo for seed in range(40)]
    stated = [run.elbo(SAID, draws=8, seed=seed).error for seed in range(40)]
    assert 0.6 < np.std(found, ddof=1) / np.sqrt(np.mean(np.square(stated))) < 1.6
    assert math.isnan(run.elbo(SAID, draws=1).error)


# -- a picture -------------------------------------------------------------------------------


def test_a_passage_says_what_every_token_runs() -> None:
    run = by_groups()
    passage = run.plot(SAID)
    hard, means = run.routes(SAID, hard=True), run.routes(SAID)
    assert list(passage.rows) == [f"layer {i}, heads {g}" for i in range(2) for g in range(2)]
    assert passage.choice.tolist() == hard.argmax("mechanism").values.reshape(4, -1).tolist()
    page = passage.html()
    said = re.findall(r'title="token (\d+): (\w+), ([\d.]+)">(.)<', page)
    assert len(said) == 4 * len(SAID)
    for row, (layer, group) in enumerate((i, g) for i in range(2) for g in range(2)):
        for at, (token, name, mean, piece) in enumerate(
            said[row * len(SAID) : (row + 1) * len(SAID)]
        ):
            here = {"layer": layer, "group": group, "token": at}
            assert (int(token), piece) == (at, SAID[at])
            assert name == str(hard.isel(here).idxmax("mechanism").values)
            assert float(mean) == pytest.approx(
                float(means.isel(here).sel(mechanism=name)), abs=0.006
            )
    assert len(passage.figure().axes) == 4
    assert passage._repr_html_() == page and passage._repr_png_()[:4] == b"\x89PNG"


def test_a_page_escapes_its_text_and_names_who_skips() -> None:
    passage = Passage(
        ["<b>", "\n", "&"], ["layer 0"], ["my<full>", "window"],
        np.array([[[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]], np.float32),
        np.array([[[1, 0], [0, 0], [0, 1]]], np.float32),
    )  # fmt: skip
    page = passage.html()
    assert "<b>" not in page and "&lt;b&gt;" in page and "my&lt;full&gt;" in page
    assert "token 1: skips the layer" in page and "\u23ce" in page
    assert "my&lt;full&gt; 33%, window 33%" in page
    assert "http" not in page and "<script" not in page
    assert passage.strength[0].tolist() == pytest.approx([0.8, 0.0, 0.6], abs=1e-6)


def test_text_on_the_strongest_colour_is_legible_in_light_and_in_dark() -> None:
    """WCAG 2.1, contrast of at least 4.5: relative luminance, formula of 1.4.3."""

    def luminance(rgb: np.ndarray) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one: np.ndarray, two: np.ndarray) -> float:
        high, low = sorted((luminance(one), luminance(two)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for paper, ink in ((1.0, 0.13), (0.07, 0.88)):
        for paint in _paints(8):
            colour = np.array([int(part) for part in paint["rgb"].split()]) / 255
            behind = TINT * colour + (1 - TINT) * paper
            assert contrast(np.full(3, ink), behind) >= 4.5


# -- a run -----------------------------------------------------------------------------------


def test_a_loaded_run_is_as_it_was_trained(whole: Path) -> None:
    run = pyro_meta.load(whole)
    last = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()][-1]
    assert run.model.temperature == last["kl_weight"] == run.config.kl.weight
    assert float(run.guide.execution.threshold) == last["threshold"] == 1.0
    assert float(run.guide.execution.price) == pytest.approx(run.config.harden.price)
    assert run.model.text_tokens == 12 * 4 * 16
    assert not run.model.training and not run.guide.training
    assert (
        run.summary["val_nll_hard"]
        == json.loads((whole / "summary.json").read_text())["val_nll_hard"]
    )
    assert "2 layers choose from full, window, linear" in repr(run)


def test_soft_routes_are_one_call_away(whole: Path) -> None:
    run = pyro_meta.load(whole)
    soft = run.soft()
    assert float(soft.guide.execution.threshold) == 0.0
    assert float(run.guide.execution.threshold) == 1.0, "the other stays as it was"
    with torch.no_grad():
        walked = walk(run.model, run.guide, torch.tensor([list(TEXT[:9].encode())]),
                      along_means(hard=False))  # fmt: skip
    slow = torch.stack(walked.means).numpy()
    np.testing.assert_allclose(soft.routes(TEXT[:9]).values, slow, rtol=1e-4, atol=1e-6)


def test_history_is_the_log(whole: Path) -> None:
    table = pyro_meta.load(whole).history
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert list(table.index) == [line["step"] for line in lines]
    assert table["loss"].tolist() == [line["loss"] for line in lines]
    validated = [line["step"] for line in lines if "val_nll_hard" in line]
    assert table["val_nll_hard"].dropna().index.tolist() == validated


def test_a_text_is_continued_as_by_the_command(whole: Path) -> None:
    run = pyro_meta.load(whole)
    long = TEXT[:40]  # longer than the context
    done = run_here("generate", whole, "--prompt", long, "--max_tokens=12", "--seed=3")
    assert run.generate(long, max_tokens=12, seed=3) + "\n" == done.stdout
    assert run.generate("the", max_tokens=0) == "the"


def test_what_cannot_be_read_is_said_in_one_line(whole: Path, tmp_path: Path) -> None:
    def refused(call: Callable[[], Any], *words: str) -> None:
        with pytest.raises(UsageError) as caught:
            call()
        line = str(caught.value)
        assert "\n" not in line and all(word in line for word in words), line

    refused(lambda: pyro_meta.load(tmp_path), "is not a run")
    shutil.copytree(whole, tmp_path / "half")
    (tmp_path / "half" / "summary.json").unlink()
    refused(lambda: pyro_meta.load(tmp_path / "half"), "has not finished")
    refused(lambda: pyro_meta.load(whole, device="nowhere"), "device: 'nowhere' given")
    run = pyro_meta.load(whole)
    refused(lambda: run.routes(""), "text: it is empty")
    refused(lambda: run.routes("x" * 17), "17 tokens given; at most 16 are allowed")
    refused(lambda: run.elbo("x" * 18), "18 tokens given; at most 17 are allowed")
    assert run.elbo("x" * 17, draws=1).tokens == 16
    for call in (run.posterior, run.elbo):
        refused(lambda call=call: call("x"), "1 token given; at least 2 are needed")
        refused(lambda call=call: call("xy", draws=0), "draws: 0 given")
    refused(lambda: run.routes(b"the"), "bytes given; a str")  # type: ignore[arg-type]
    refused(lambda: run.generate("the", max_tokens=-1), "max_tokens: -1 given")
    refused(lambda: object_of(build()[1]).routes("xyz"), "'x' is not among the 13")


# -- training --------------------------------------------------------------------------------


def test_options_are_those_of_the_command_line() -> None:
    given = {
        "steps": 3, "kl__weight": 0.1, "kl": {"peak": 2}, "harden.final": 0.5, "from_": "runs/a",
        "prior__rate": 2.0, "prior": CostDirichlet, "guide": {"class_path": "PointGuide",
        "init_args": {"hidden": np.int64(7)}}, "mechanisms": ["full", "window"], "debug": True,
        "data": {"path": Path("a b.txt")}, "budget": None, "resume": "null", "out": "~/run",
    }  # fmt: skip
    assert sorted(words_of(given)) == sorted([
        "--steps=3", "--from=runs/a", "--prior=pyro_meta.CostDirichlet", "--guide=PointGuide",
        '--mechanisms=["full", "window"]', "--debug=true", "--kl.weight=0.1", "--kl.peak=2",
        "--harden.final=0.5", "--prior.rate=2.0", "--guide.hidden=7", "--data.path=a b.txt",
        "--resume=null", f"--out={Path.home() / 'run'}",
    ])  # fmt: skip
    words = words_of(given)
    assert words.index("--prior=pyro_meta.CostDirichlet") < words.index("--prior.rate=2.0")
    with pytest.raises(UsageError, match=r"kl.weight: it is given twice"):
        words_of({"kl__weight": 1, "kl": {"weight": 2}})
    here = type("Here", (CostDirichlet,), {"__module__": "__main__"})
    with pytest.raises(UsageError, match="Here is a class of this session"):
        words_of({"prior": here})


@pytest.mark.parametrize("option", ["data", "prior", "guide", "steps", "mechanisms", "data__path"])
@pytest.mark.parametrize("value", [object(), ["full", object()], print, {1, 2}, b"x", 1j])
def test_an_object_that_no_option_can_name_is_told_by_its_type(option: str, value: Any) -> None:
    odd = value[1] if isinstance(value, list) else value
    with pytest.raises(UsageError) as refused:
        words_of({option: value})
    line = str(refused.value)
    name = option.replace("__", ".")
    assert line.startswith(f"{name}: an object of type {type(odd).__name__} given; ")
    assert line.endswith(" allowed") and " at 0x" not in line
    assert ("a class" in line) == (option in ("data", "prior", "guide"))


def test_a_run_is_trained_and_gone_on_with_from_python(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    options: dict[str, Any] = dict(word.removeprefix("--").split("=") for word in MOMENT)
    monkeypatch.chdir(tmp_path)
    short = options | {"steps": 4, "readout.block_draws": 0, "readout.draws": 2}
    run = pyro_meta.train(**short, data__path=text_file)
    assert isinstance(run, TrainedRun) and run.folder.parent == Path("runs")
    assert len(run.history) == 4
    longer = pyro_meta.train(resume=run.folder, steps=5)
    assert longer.folder == run.folder and len(longer.history) == 5
    with pytest.raises(UsageError, match="unknown option --stepz"):
        pyro_meta.train(stepz=3)
    with pytest.raises(UsageError, match="devices: 2 given"):
        pyro_meta.train(devices=2)
    assert sys.modules["pyro_meta.train"] is pyro_meta.train


def test_a_short_text_is_a_narrow_figure() -> None:
    """A line of a letter each: as wide as its text, with room for the names of mechanisms."""
    sizes = []
    for count in (1, 40, 60, 80, 200):
        means = np.full((1, count, 2), 0.5, np.float32)
        passage = Passage(["a"] * count, ["layer 0"], ["full", "window"], means, means)
        figure = passage.figure()
        sizes.append((*figure.get_size_inches(), figure.axes[0].get_images()[0].get_array().shape))
    widths = [width for width, _, _ in sizes]
    assert widths == [pytest.approx(11 * columns / 80) for columns in (37, 40, 60, 80, 80)]
    assert [shape[:2] for _, _, shape in sizes] == [(1, 37), (1, 40), (1, 60), (1, 80), (3, 80)]
