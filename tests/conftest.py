"""Shared fixtures: small models, validation on, and no trace outside temporary folders."""

import one_thread  # noqa: F401

# isort: split

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyro
import pytest
import torch
from commands import MOMENT, READ_OUT, TEXT, train
from hypothesis import HealthCheck, settings

from pyro_meta import (
    CategoricalGuide,
    ConcreteGuide,
    CostCategorical,
    CostDirichlet,
    DirichletGuide,
    FixedGuide,
    Guide,
    LanguageModel,
    LayersGuide,
    LearnedDirichlet,
    LoadCategorical,
    LoadDirichlet,
    LoadGuide,
    LogisticNormalGuide,
    LogisticNormalPrior,
    PaperDirichlet,
    PaperGuide,
    PeriodicGuide,
    PointGuide,
    Prior,
    PriorGuide,
    RandomGuide,
    Shape,
    SymmetricDirichlet,
    TokenTableGuide,
    Transformer,
)
from pyro_meta.distributions import GateExecution, RouteExecution

os.environ["PYRO_META_PROFILE"] = "default"  # also of commands that fixtures run

# how long an example takes decides nothing
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

DIRICHLETS = [
    CostDirichlet,
    PaperDirichlet,
    SymmetricDirichlet,
    LearnedDirichlet,
    LoadDirichlet,
]
OF_CHOICES = [CostCategorical, LoadCategorical]
PRIORS = [*DIRICHLETS, LogisticNormalPrior, *OF_CHOICES]
GUIDES = [
    DirichletGuide,
    LogisticNormalGuide,
    ConcreteGuide,
    TokenTableGuide,
    PaperGuide,
    CategoricalGuide,
    LoadGuide,
    PointGuide,
    PriorGuide,
    FixedGuide,
    RandomGuide,
    LayersGuide,
    PeriodicGuide,
]
ANY_FAMILY = {
    LoadGuide,
    PointGuide,
    PriorGuide,
    FixedGuide,
    RandomGuide,
    LayersGuide,
    PeriodicGuide,
}
"""Guides that go with priors of weights and of choices alike."""
REFUSED = {
    (LogisticNormalPrior, PaperGuide),
    *(
        (prior, guide)
        for prior in PRIORS
        for guide in GUIDES
        if guide not in ANY_FAMILY and prior.of_choices != (guide is CategoricalGuide)
    ),
    *(
        (prior, guide)
        for prior in PRIORS
        for guide in GUIDES
        if prior.learns_from_kl and not guide.pays_kl
    ),
}
PAIRS = [(prior, guide) for prior in PRIORS for guide in GUIDES if (prior, guide) not in REFUSED]
ESTIMATED = {
    *((prior, LogisticNormalGuide) for prior in DIRICHLETS),
    *((prior, ConcreteGuide) for prior in PRIORS if not prior.of_choices),
}
"""Pairs whose KL has no closed form; every other pair of `PAIRS` is promised one."""
SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"


@pytest.fixture(autouse=True)
def _clean_slate(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """One thread, Pyro's validation on, an empty parameter store, a cache of our own."""
    monkeypatch.setenv("PYRO_META_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()
    with pyro.validation_enabled(True):
        yield


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text to train on."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, with its text beside it; to be left as it is."""
    return tiny_run(tmp_path_factory)


@pytest.fixture(scope="session")
def read_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with enough draws for every figure of a report."""
    return tiny_run(tmp_path_factory, *READ_OUT)


def tiny_run(factory: pytest.TempPathFactory, *words: str) -> Path:
    folder = factory.mktemp("whole")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_META_CACHE", str(factory.getbasetemp() / "cache"))
        options = [*MOMENT, *words, f"--data.path={folder / 'text.txt'}"]
        assert train(*options, f"--out={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to do harm to."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 by default, for exact comparisons."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def route_execution(
    threshold: float, price: float = 0.0, costs: tuple[float, ...] = (1.0, 0.3, 0.15)
) -> RouteExecution:
    """Hardening below a threshold, at a price."""
    execution = RouteExecution(torch.tensor(costs))
    execution.threshold.fill_(threshold)
    execution.price.fill_(price)
    return execution


def gate_execution(threshold: float, price: float = 0.0) -> GateExecution:
    """The same of depth gates."""
    execution = GateExecution()
    execution.threshold.fill_(threshold)
    execution.price.fill_(price)
    return execution


def parts(pair: tuple[LanguageModel, Guide]) -> dict[str, torch.nn.Module]:
    """What a checkpoint keeps of a model and its guide."""
    return {"model": pair[0], "guide": pair[1]}


Build = Callable[..., tuple[LanguageModel, Guide]]


def build(
    prior: type[Prior] | None = None,
    guide: type[Guide] = DirichletGuide,
    mechanisms: tuple[str, ...] = ("full", "window", "linear"),
    dropout: float = 0.0,
    layers: int = 2,
    context: int = 24,
    groups: int = 1,
    sinks: int = 0,
) -> tuple[LanguageModel, Guide]:
    """A small language model and its guide; by default with a prior of the guide's family."""
    shape = Shape(
        vocabulary=13, context=context, width=16, layers=layers, heads=2, window=5, dropout=dropout,
        groups=groups, sinks=sinks,
    )  # fmt: skip
    network = Transformer(shape, mechanisms)
    prior = prior or (CostCategorical if guide is CategoricalGuide else CostDirichlet)
    model = LanguageModel(network, prior(network))
    return model, guide(model)


def text(batch: int = 3, length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and targets."""
    generator = torch.Generator().manual_seed(7)
    both = torch.randint(13, (batch, length + 1), generator=generator)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()
