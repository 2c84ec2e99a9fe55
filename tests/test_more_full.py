"""A little more full attention, and what the heads of a model do."""

import pytest
import torch
from pretrained_models import MODELS, guide_of, refused, require_close, text, wrapped

from pyro_meta import CategoricalGuide
from pyro_meta.evaluation.beside import routes_beside
from pyro_meta.evaluation.more_full import (
    choices_along,
    losses_along,
    visits_of,
    with_more_full,
)
from pyro_meta.guides import mean_route
from pyro_meta.pretrained.head_kinds import head_kinds


@pytest.mark.parametrize("groups", ["kv", 1])
def test_choices_of_a_route_and_their_losses(groups: int | str) -> None:
    guide = guide_of(wrapped(MODELS["Llama"](), groups=groups), CategoricalGuide)
    network, both = guide.model.network, text(3, 40)
    windows = both[:, :-1], both[:, 1:]
    rows = routes_beside(guide.model, guide, windows, 2)
    with torch.no_grad():
        choices = choices_along(network, mean_route(guide, hard=True), windows, 2)
        losses, entropies = losses_along(network, choices, windows, 2)
    assert choices.shape == (3, 3, 39, 2 if groups == "kv" else 1)
    assert float(losses.mean()) == pytest.approx(rows["routes, hard"]["loss"], rel=1e-5)
    assert visits_of(network, choices) == pytest.approx(rows["routes, hard"]["visits"], rel=1e-6)
    assert entropies.shape == losses.shape and bool((entropies > 0).all())


def test_the_highest_scores_turn_full_until_the_visits_are_spent() -> None:
    network = wrapped(MODELS["Llama"]())
    full, window = (network.mechanism_names.index(name) for name in ("full", "window"))
    draw = torch.Generator().manual_seed(0)
    base = torch.randint(2, (3, 4, 50, 2), generator=draw)
    scores = torch.rand(base.shape, generator=draw)
    before = visits_of(network, base)
    found = with_more_full(network, base, scores, before + 0.05)
    assert before + 0.04 < visits_of(network, found) <= before + 0.05
    assert bool((found[base == full] == full).all()), "nothing is taken away"
    late = torch.zeros_like(base, dtype=torch.bool)
    late[:, :, 6:] = True  # before, a window sees all there is
    turned, left = (late & (base == window) & (found == way) for way in (full, window))
    assert scores[turned].min() > scores[left].max()
    of_tokens = with_more_full(network, base, scores[:1, :, :, :1], before + 0.05)
    turned = (of_tokens != base).any(0).any(-1)
    assert 0 < turned.float().mean() < 0.3, "whole tokens turn"


@pytest.mark.parametrize("name", ["Llama", "Qwen3 with sliding layers", "GPT-NeoX"])
def test_what_heads_do_is_what_their_weights_say(name: str) -> None:
    """By transformers' own eager attention."""
    made, tokens = MODELS[name](), text(2, 40)
    network = wrapped(made)
    found = head_kinds(network, tokens, repeated=16, texts=3)
    again = MODELS[name]()
    again.set_attn_implementation("eager")
    draw = torch.Generator().manual_seed(0)
    once = torch.randint(network.shape.vocabulary, (3, 16), generator=draw)
    routed = [site.index for site in network.routing.sites if site.layer is not None]

    def weights(read: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = again(input_ids=read, output_attentions=True, use_cache=False)
        return torch.stack([out.attentions[index] for index in routed])  # [L, B, H, T, T]

    twice, plain = weights(torch.cat([once, once], 1)), weights(tokens)
    induction = torch.stack([twice[..., t, t - 15] for t in range(16, 31)], -1)
    copy = torch.stack([twice[..., t, t - 16] for t in range(16, 31)], -1)
    previous = torch.stack([plain[..., t, t - 1] for t in range(1, 40)], -1)
    require_close(found.induction, induction.mean((1, 3)), 1e-4)
    require_close(found.copy, copy.mean((1, 3)), 1e-4)
    require_close(found.previous, previous.mean((1, 3)), 1e-4)
    window, sinks = network.shape.window, network.shape.sinks
    rows = range(2 * window, 40)
    on_sinks = torch.stack([plain[..., t, :sinks].sum(-1) for t in rows], -1)
    far = torch.stack([plain[..., t, sinks : t - window + 1].sum(-1) for t in rows], -1)
    require_close(found.sinks, on_sinks.mean((1, 3)), 1e-4)
    require_close(found.far, far.mean((1, 3)), 1e-4)
    of_groups = found.of_groups(network.shape.kv_heads or 1)
    assert torch.equal(of_groups.far.amax(1), found.far.amax(1))


def test_repeats_that_a_window_sees_are_refused() -> None:
    refused(lambda: head_kinds(wrapped(MODELS["Llama"]()), text(), repeated=4), "repeated: 4")
