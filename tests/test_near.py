"""What window attention gives a token, shown to the router before it chooses."""

from typing import Any

import pytest
import torch
from conftest import build
from pretrained_models import (
    MODELS,
    SINKS,
    WINDOW,
    NearGuide,
    Written,
    converted,
    each_model,
    fixed,
    guide_of,
    logits_of,
    padded,
    refused,
    require_close,
    require_same_text,
    text,
    wrapped,
)
from reference import seen_by_window
from torch import Tensor

from pyro_meta import (
    CategoricalGuide,
    ConcreteGuide,
    Decision,
    DirichletGuide,
    Features,
    LogisticNormalGuide,
    PointGuide,
)
from pyro_meta.guides import mean_route
from pyro_meta.network.route import Route
from pyro_meta.pretrained import PretrainedNetwork, convert, load_routes, save_routes
from pyro_meta.pretrained.interface import Call, recorded


def near_along(network: PretrainedNetwork, tokens: Tensor, route: Route) -> list[Tensor]:
    """What is near, by layer, [B, T, H d]."""
    found = []

    def noting(layer: int, features: Features) -> Decision:
        assert features.near is not None
        found.append(features.near())
        return route(layer, features)

    with torch.no_grad():
        network(tokens, noting)
    return found


def by_hand(call: Call) -> Tensor:
    q, k, v = call.query, call.key, call.value
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * call.scaling
    seen = seen_by_window(q.shape[2], WINDOW, SINKS)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)


@each_model
def test_what_is_near_is_window_attention(name: str) -> None:
    network = wrapped(MODELS[name]())
    route, tokens = fixed(network, True), text()
    calls: list[Call] = []
    token = recorded.set(calls)
    found = near_along(network, tokens, route)
    recorded.reset(token)
    sites = [site for site in network.routing.sites if site.layer is not None]
    for site, near in zip(sites, found, strict=True):
        require_close(near, by_hand(calls[site.index]))
    shorter = near_along(network, tokens[:, :11], route)
    for whole, part in zip(found, shorter, strict=True):
        require_close(part, whole[:, :11])


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "GPT-2", "Qwen3 with sliding layers"])
@pytest.mark.parametrize("groups", ["kv", 1])
def test_a_text_in_pieces_gets_the_routes_of_the_whole(name: str, groups: Any) -> None:
    """Also in rows of several lengths, one token at a time, and where a row is given none."""
    network = wrapped(MODELS[name](), groups=groups)
    guide = guide_of(network, NearGuide)
    route, tokens = mean_route(guide, hard=True), text(2, 19)
    with torch.no_grad():
        wanted = network(tokens, route)
        for pieces in ([(7, 7), (1, 1), (1, 1), (10, 10)], [(3, 9), (5, 0), (0, 1), (6, 6)]):
            cache, begun = network.new_cache(2, keeps_features=False), [0, 0]
            for counts in pieces:
                size = max(counts)
                piece = torch.zeros(2, size, dtype=torch.long)
                for row, count in enumerate(counts):
                    piece[row, :count] = tokens[row, begun[row] : begun[row] + count]
                found = network(piece, route, cache, counts)
                for row, count in enumerate(counts):
                    end = begun[row] + count
                    if count:
                        require_close(found[row, :count], wanted[row, begun[row] : end])
                    begun[row] = end


@each_model
def test_a_converted_model_reads_what_is_near(name: str) -> None:
    made, tokens = MODELS[name](), text()
    guide = guide_of(wrapped(made), NearGuide)
    with torch.no_grad():
        wanted = guide.model.network(tokens, mean_route(guide, hard=True))
    routed = convert(made, guide)
    require_close(logits_of(routed, tokens), wanted)
    with torch.no_grad():
        behind = routed(**padded([tokens[0], tokens[1, :7]])).logits
    require_close(behind[1, -7:], wanted[1, :7])
    prompt = padded([tokens[0, :12], tokens[1, :7]])
    holds = prompt["attention_mask"]
    slow = Written(routed, prompt["input_ids"], attention_mask=holds, use_cache=False)
    require_same_text(Written(routed, prompt["input_ids"], attention_mask=holds), slow)


def test_it_matters() -> None:
    """Guides that read it decide by it, and are another guide than those that do not."""
    made, tokens = MODELS["Llama"](), text()
    network = wrapped(made)
    guide = guide_of(network, NearGuide)
    route = fixed(network, True)

    def means(change: float) -> Tensor:
        found = []

        def noting(layer: int, features: Features) -> Decision:
            near = features.near
            assert near is not None
            moved = features._replace(near=lambda: near() + change)
            found.append(guide.routes(layer, moved).mean)
            return route(layer, features)

        with torch.no_grad():
            network(tokens, noting)
        return torch.stack(found)

    assert not torch.allclose(means(0.0), means(0.1), atol=1e-3)


def test_no_gradient_finds_back_through_it() -> None:
    made = MODELS["Llama"]()
    network = wrapped(made)
    made.requires_grad_(True)
    route = fixed(network, False)
    kept = []

    def noting(layer: int, features: Features) -> Decision:
        assert features.near is not None
        kept.append(features.near())
        return route(layer, features)

    network(text(), noting)
    assert not any(one.requires_grad for one in kept)


def test_weights_of_a_converted_model_get_their_gradients() -> None:
    """What the guide has read is not what runs where gradients are wanted."""
    tokens = text()

    def learned(kind: Any) -> list[Tensor]:
        made = MODELS["Llama"]()
        guide = guide_of(wrapped(made), kind)
        for parameter in guide.parameters():
            torch.nn.init.zeros_(parameter)
        guide.execution.price.fill_(1.0)  # all choose the window
        routed = convert(made, guide)
        made.requires_grad_(True)
        loss = routed(input_ids=tokens, use_cache=False).logits.square().sum()
        return list(torch.autograd.grad(loss, list(made.parameters())))

    for one, other in zip(learned(NearGuide), learned(CategoricalGuide), strict=True):
        require_close(one, other, 1e-4)


def test_routes_that_read_it_come_back_from_a_folder(tmp_path: Any) -> None:
    made, tokens = MODELS["Llama"](), text()
    guide = guide_of(wrapped(made), CategoricalGuide, reads_near=True, hidden=5)
    wanted = logits_of(convert(made, guide), tokens)
    save_routes(made, tmp_path)
    assert torch.equal(logits_of(load_routes(MODELS["Llama"](), tmp_path), tokens), wanted)
    assert not torch.equal(logits_of(converted(MODELS["Llama"]()), tokens), wanted)


@pytest.mark.parametrize(
    "kind", [CategoricalGuide, ConcreteGuide, DirichletGuide, LogisticNormalGuide, PointGuide]
)
def test_where_the_network_shows_nothing_it_is_refused(kind: Any) -> None:
    model, _ = build(guide=kind)
    refused(lambda: kind(model, reads_near=True), "guide.reads_near: true given")
    network = wrapped(MODELS["Llama"](), mechanisms=["full"])
    refused(lambda: guide_of(network, kind, reads_near=True), "guide.reads_near: true given")
