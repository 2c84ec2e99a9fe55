"""What a guide learns before training: what each choice is worth by itself."""

from typing import Any

import numpy as np
import pytest
import torch
from pretrained_models import MODELS, refused, text, wrapped
from scipy.stats import spearmanr
from slow import long

from pyro_meta import (
    CategoricalGuide,
    DirichletGuide,
    Guide,
    LanguageModel,
    LoadCategorical,
    LoadDirichlet,
    LoadGuide,
    LogisticNormalGuide,
    PointGuide,
    PriorGuide,
)
from pyro_meta.guides.base import HeadsGuide
from pyro_meta.inference.schedules import WarmStart
from pyro_meta.inference.warm_start import Told, told, warm_start

OPTIONS = WarmStart(texts=30, passes=15, lr=1e-2)


def made(kind: Any = CategoricalGuide, groups: Any = "kv", prior: Any = None, **more: Any) -> Guide:
    torch.manual_seed(2)
    network = wrapped(MODELS["Llama"](), groups=groups)
    if prior is None:
        prior = LoadDirichlet if kind in (DirichletGuide, LogisticNormalGuide) else LoadCategorical
    guide: Guide = kind(LanguageModel(network, prior(network)), **more)
    return guide


def log_odds(guide: Guide, one: Any) -> torch.Tensor:
    """Of full against the window by layer, [L, B, T, G]."""
    names = guide.model.network.mechanism_names
    full, window = names.index("full"), names.index("window")
    logs = [guide.routes(layer, seen).mean.log() for layer, seen in enumerate(one.features)]
    found = torch.stack([one[..., full] - one[..., window] for one in logs])
    return found if guide.model.network.shape.groups > 1 else found.unsqueeze(-1)


def texts(count: int = OPTIONS.texts, seed: int = 0) -> list[torch.Tensor]:
    return [text(2, 33, seed + number) for number in range(count)]


def planted(network: Any, tokens: torch.Tensor, reads_near: bool = False) -> Told:
    """Harms that one feature of a token tells, up to the noise of a squared normal variable."""
    one = told(network, tokens, reads_near)
    window = network.mechanism_names.index("window")
    harms = torch.zeros_like(one.harms)
    draw = torch.Generator().manual_seed(int(tokens.sum()))
    for layer, seen in enumerate(one.features):
        for group in range(harms.shape[3]):
            mean = torch.exp(seen.normed[..., layer + group] - 3 * group)
            harms[layer, :, :, group, window] = mean * torch.randn(mean.shape, generator=draw) ** 2
    return Told(one.features, harms)


@pytest.mark.parametrize("groups", ["kv", *long(1)])
@pytest.mark.parametrize(
    "kind", [CategoricalGuide, *long(DirichletGuide, LogisticNormalGuide), PointGuide]
)
def test_log_odds_follow_what_a_token_tells_of_its_harm(
    kind: Any, groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_meta.inference.warm_start.told", planted)
    guide = made(kind, groups)
    warm_start(guide, texts(), OPTIONS)
    one = planted(guide.model.network, text(4, 33, 999))
    found = log_odds(guide, one).detach()
    for layer, seen in enumerate(one.features):
        for group in range(found.shape[-1]):
            wanted = seen.normed[..., layer + group]
            told_of = spearmanr(wanted.flatten(), found[layer, ..., group].flatten()).statistic
            assert told_of > (0.3 if kind is DirichletGuide else 0.6)  # its mean is bounded
            slope = float(np.polyfit(wanted.flatten(), found[layer, ..., group].flatten(), 1)[0])
            if kind is not DirichletGuide:  # whose mean is bounded
                assert 0.3 < slope / OPTIONS.sharpness < 1.3
    if groups == "kv":
        assert float((found[..., 0] - found[..., 1]).mean()) > OPTIONS.sharpness


def test_a_split_learns_the_means_of_its_heads() -> None:
    guide = made(LoadGuide)
    torch.manual_seed(0)
    warm_start(guide, texts(), OPTIONS)
    network = guide.model.network
    window = network.mechanism_names.index("window")
    many = [told(network, one) for one in texts(30, seed=500)]
    means = torch.stack([one.harms.mean((1, 2)) for one in many]).mean(0)[..., window]
    found = log_odds(guide, many[0])[:, 0, 0].detach()
    assert spearmanr(means.flatten(), found.flatten()).statistic > 0.9


def test_harms_of_tokens_that_a_window_serves_fully_are_zero() -> None:
    one = told(made().model.network, text(2, 12))
    assert not one.harms[:, :, :6].any() and one.harms[:, :, 8:].max() > 1e-6


def test_texts_that_a_window_serves_fully_are_refused() -> None:
    guide, short = made(), [text(2, 6)]
    refused(lambda: warm_start(guide, short, WarmStart(texts=1)), "in 6 tokens", "--context")


def test_heads_read_inputs_of_mean_0_and_scale_1() -> None:
    guide = made()
    warm_start(guide, texts(6), WarmStart(texts=6, passes=1))
    assert isinstance(guide, HeadsGuide)
    features = told(guide.model.network, text(4, 33)).features
    for layer, seen in enumerate(features):
        read = (seen.normed - guide.centre[layer]) / guide.scale[layer]
        assert float(read.mean().abs()) < 0.1 and 0.7 < float(read.std()) < 1.3


def test_nothing_but_the_guide_is_moved() -> None:
    guide = made()
    network = guide.model.network
    before = {name: x.clone() for name, x in network.hf_model.state_dict().items()}  # type: ignore[attr-defined]
    loads = [x.clone() for x in guide.moves_loads]
    warm_start(guide, texts(3), WarmStart(texts=3))
    for name, x in network.hf_model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(x, before[name])
    assert all(torch.equal(x, y) for x, y in zip(loads, guide.moves_loads, strict=True))


def test_a_guide_without_logits_is_refused() -> None:
    refused(
        lambda: warm_start(made(PriorGuide), texts(2), WarmStart(texts=2)),
        "PriorGuide has no logits",
    )
