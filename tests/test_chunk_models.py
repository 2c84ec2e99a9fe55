"""Chunk mechanisms in a model: separators reach them, their penalty trains, checkpoints last."""

import warnings
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor

from pyro_meta import (
    CostDirichlet,
    Decision,
    DirichletGuide,
    Features,
    LanguageModel,
    Shape,
    Transformer,
    UsageError,
)
from pyro_meta.attention import ChunkLearned, ChunkSentence, backend, collected_penalties
from pyro_meta.contracts.admission import require_sound_network
from pyro_meta.data.text import Text
from pyro_meta.data.vocabulary import ByteVocabulary, CharVocabulary, SymbolVocabulary
from pyro_meta.evaluation.causality import prefix_gap
from pyro_meta.evaluation.executed import _count_macs
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import mean_route
from pyro_meta.inference.elbo import Objective, RouteELBO
from pyro_meta.network.macs import attention_macs
from pyro_meta.network.route import as_weights
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.training.config import read_options
from pyro_meta.training.loop import _figures
from pyro_meta.training.run import Run

ALL = ("chunk", "chunk_sliding", "chunk_sentence", "chunk_learned")
SHAPE = Shape(vocabulary=11, context=60, width=16, layers=2, heads=2, chunk=4)


def network_of(mechanisms: tuple[str, ...] = ALL) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(SHAPE, mechanisms, separators=[0, 3])
    for block in network.blocks:
        for parameter in block.attention.mechanisms.parameters():  # type: ignore[union-attr]
            torch.nn.init.normal_(parameter)
    return network


def pair(mechanisms: tuple[str, ...] = ("full", *ALL)) -> tuple[LanguageModel, DirichletGuide]:
    network = network_of(mechanisms)
    model = LanguageModel(network, CostDirichlet(network))
    return model, DirichletGuide(model)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(11, (2, 60), generator=torch.Generator().manual_seed(3))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("way", ["auto", "gather"])
def test_choices_give_what_weights_give(tokens: Tensor, way: str) -> None:
    network = network_of()

    def choose(layer: int, features: Features) -> Decision:
        return Decision((features.tokens * 3 + features.positions + layer) % 4)

    def weigh(layer: int, features: Features) -> Decision:
        return Decision(as_weights(choose(layer, features).route, 4))

    with backend(way):
        ours = network(tokens, choose)
    theirs = network(tokens, weigh)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    wanted = list(network.parameters())
    both = (torch.autograd.grad(x.square().sum(), wanted) for x in (ours, theirs))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_separators_decide_where_sentences_end(tokens: Tensor) -> None:
    """Another letter in place of a separator, with the same embedding, moves what comes later."""
    network = network_of(("chunk_sentence",))
    with torch.no_grad():
        network.embedding.weight[5] = network.embedding.weight[3]
        before = network(tokens, lambda layer, features: Decision(torch.ones(1)))
        after = network(
            tokens.where(tokens != 3, 5), lambda layer, features: Decision(torch.ones(1))
        )
    moved = ((before - after).abs() > 1e-9).any(-1)
    assert moved.any()
    for row, changed in zip(tokens, moved, strict=True):
        first = int((row == 3).nonzero()[0])
        assert not changed[: first + 1].any()


def test_a_vocabulary_without_separators_is_refused() -> None:
    with pytest.raises(UsageError, match=r"chunk_sentence needs tokens that separate sentences"):
        Transformer(SHAPE, ["full", "chunk_sentence"])
    Transformer(SHAPE, ["full", "chunk_learned"])


def test_vocabularies_know_their_separators() -> None:
    assert ByteVocabulary().separators() == sorted(map(ord, ".!?\n"))
    assert CharVocabulary("ab. c?\n").separators() == [2, 5, 6]
    assert SymbolVocabulary(["the", "end.", "! ", "a.b"]).separators() == [1, 2]


def test_the_penalty_is_part_of_the_loss_in_pyro_as_in_training(tokens: Tensor) -> None:
    model, guide = pair()
    model.temperature = 0.3
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        terms = RouteELBO().terms(model, guide, tokens, tokens)
        found.append((terms.loss, torch.autograd.grad(terms.loss, parameters, allow_unused=True)))
    terms = Objective(model, guide)(tokens, tokens)
    assert 0.03 * 2 < float(terms.penalty.detach()) < 2.0
    torch.manual_seed(5)
    with pyro.settings.context(module_local_params=True):
        elbo: Any = TraceMeanField_ELBO(max_plate_nesting=2)(model, guide)
    loss = elbo(tokens, tokens) * model.temperature / tokens.numel()
    torch.testing.assert_close(loss, found[0][0])
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    for one, other in zip(ours, found[0][1], strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_plain_svi_takes_a_model_with_a_penalty(tokens: Tensor) -> None:
    model, guide = pair()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), RouteELBO())
    assert svi.step(tokens, tokens) > 0


def test_the_penalty_is_collected_in_training_alone(tokens: Tensor) -> None:
    model, guide = pair()
    with collected_penalties() as found:
        model.network(tokens, lambda layer, features: Decision(torch.full((5,), 0.2)))
    assert len(found) == SHAPE.layers
    with evaluating(model, guide), collected_penalties() as found:
        model.network(tokens, lambda layer, features: Decision(torch.full((5,), 0.2)))
    assert found == []
    assert Objective(*pair(("full", "chunk")))(tokens, tokens).penalty == 0


def test_the_penalty_brings_chunks_to_their_length() -> None:
    """From keys that differ all the time, where every token would begin a chunk if it might."""
    torch.manual_seed(0)
    mechanism = ChunkLearned(head_width=8, window=1, chunk=12)
    k, v = torch.randn(2, 2, 2, 240, 8)
    k[..., 7] += 1.0  # something that all keys have in common, to tell them alike by
    optimiser = torch.optim.Adam(mechanism.parameters(), lr=0.02)

    def length() -> float:
        starts = mechanism.starts(k)
        return 240 * len(starts) / float((starts < 240).sum())

    assert length() < 9
    for _ in range(80):
        with collected_penalties() as found:
            mechanism(k, k, v)
        optimiser.zero_grad()
        found[0].backward()
        optimiser.step()
    assert 10 < length() < 15


@pytest.mark.filterwarnings("ignore:.*does not define serve")
def test_evaluation_reads_prefixes_alike(tokens: Tensor) -> None:
    model, guide = pair()
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter)
    assert prefix_gap(model, guide, tokens, [1, 7, 30, 59]) < 1e-4


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "text.txt").write_text("One two. Three four!\nAnd so on, and on. " * 60)
    corpus = Text(path=str(tmp_path / "text.txt")).corpus()
    words = [
        f"--data.path={tmp_path / 'text.txt'}", "--mechanisms=[full,window,chunk_sentence]",
        "--chunk=5", "--width=16", "--layers=2", "--heads=2", "--context=40",
    ]  # fmt: skip
    return Run.create(tmp_path / "run", read_options(words)[1], corpus)


STATE = {"step": 0, "seconds": 0.0, "corpus": "", "processes": 1}


def test_a_checkpoint_keeps_chunks_and_separators(run: Run) -> None:
    config = run.config()
    assert config.chunk == 5
    vocabulary = run.vocabulary()
    torch.manual_seed(4)
    model, guide = config.build(vocabulary.size, vocabulary.separators)
    run.save_checkpoint({"model": model, "guide": guide}, None, STATE | run.circumstances())
    loaded, its_guide, _, _ = run.load()
    assert [one.name for one in loaded.network.mechanisms][2] == "chunk_sentence"
    assert loaded.network.is_separator.nonzero()[:, 0].tolist() == vocabulary.separators()
    tokens = torch.randint(vocabulary.size, (2, 40))
    with evaluating(model, guide), evaluating(loaded, its_guide):
        ours = loaded.network(tokens, mean_route(its_guide, hard=False))
        assert torch.equal(ours, model.network(tokens, mean_route(guide, hard=False)))


def test_macs_of_attention_count_chunks() -> None:
    network = network_of(("full", "chunk"))
    choice = torch.tensor(
        [[1, 1, 0, 1, 1, 1]]
    )  # d = 8, C = 4: keys read 1, 2, (3), 4, 1 + 1, 2 + 1
    expected = 2 * (16 * (1 + 2 + 4 + 2 + 3) + 5 * 20 + 16 * 3)
    assert attention_macs(network.mechanisms, 2, choice) == expected


def test_executed_macs_are_those_of_the_sentences_that_were_read() -> None:
    """Declared for its positions, a text of many separators would cost less than it does."""
    model, _ = pair(("full", "chunk_sentence"))
    tokens = torch.full((2, 60), 3)  # every token a separator: chunks of 2
    network = model.network
    position = torch.arange(60, dtype=torch.float64)
    keys = position % 2 + 1 + position // 2
    macs, *_ = _count_macs(network, chosen_by_all(network, "chunk_sentence"), [tokens])
    assert macs == 2 * 2 * 2 * float((16 * keys + 20).sum())


class Foresight(ChunkSentence):
    """Chunks end before separators that are still to come."""

    def starts(self, k: Tensor, is_separator: Tensor | None = None) -> Tensor:
        if is_separator is not None:
            is_separator = is_separator.roll(-3, 2)
        return super().starts(k, is_separator)


def test_training_refuses_a_mechanism_that_looks_at_later_separators() -> None:
    require_sound_network(network_of(("full", *ALL)))
    with pytest.raises(UsageError, match="mechanisms: Foresight: the future is seen"):
        require_sound_network(network_of((f"{__name__}.Foresight",)))


def test_the_penalty_is_logged_without_a_warning(tokens: Tensor) -> None:
    model, guide = pair(("full", "chunk_learned"))
    terms = Objective(model, guide).train()(tokens, tokens)
    costs = dict.fromkeys(("nominal", "macs"), torch.ones(SHAPE.context, 2))
    torch.set_warn_always(True)  # else once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figures = _figures(model, [terms], costs)
    finally:
        torch.set_warn_always(False)
    assert figures["penalty"] == pytest.approx(float(terms.penalty.detach()))
