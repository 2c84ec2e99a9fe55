"""Models of transformers whose tokens take routes: what each sees, with caches, beside padding."""

from collections.abc import Sequence
from typing import Any

import pyro
import pytest
import torch
from pretrained_models import (
    MODELS,
    ROUTED,
    SINKS,
    WINDOW,
    NearGuide,
    Written,
    converted,
    each_model,
    fixed,
    guide_of,
    hf,
    logits_of,
    padded,
    require_close,
    require_same_text,
    text,
    tiny,
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
    FixedGuide,
    Guide,
    LanguageModel,
    LoadCategorical,
    LoadGuide,
    LogisticNormalGuide,
    PaperGuide,
    PeriodicGuide,
    PointGuide,
    PriorGuide,
    TokenTableGuide,
)
from pyro_meta.guides import along_means, mean_route, walk
from pyro_meta.network.route import Route, as_weights
from pyro_meta.pretrained import convert, restore
from pyro_meta.pretrained.conversion import deployed

OF_OWN_TOKEN = [
    CategoricalGuide, ConcreteGuide, DirichletGuide, FixedGuide, LoadGuide, LogisticNormalGuide,
    NearGuide, PaperGuide, PeriodicGuide, PointGuide, PriorGuide, TokenTableGuide,
]  # fmt: skip


def choices(guide: Guide, tokens: Tensor) -> list[Tensor]:
    """What every token and group has chosen, by routed layer, [B, T, G] or [B, T]."""
    with torch.no_grad():
        walked = walk(guide.model, guide, tokens, along_means(True))
    return [one.route for one in walked.decisions]


def require_mixed(found: Sequence[Tensor]) -> None:
    """Both mechanisms are chosen in most layers, each by a twentieth of the tokens."""
    shares = [float((one == 0).float().mean()) for one in found]
    assert sum(0.05 < share < 0.95 for share in shares) > len(shares) / 2, shares


# -- the guide's word ----------------------------------------------------------------------------


@each_model
def test_a_converted_model_does_what_its_guide_says(name: str) -> None:
    """It gives the logits of the network along hard posterior means."""
    made, tokens = MODELS[name](), text()
    network = wrapped(made)
    guide = guide_of(network)
    with torch.no_grad():
        wanted = network(tokens, mean_route(guide, hard=True))
    plain = logits_of(made, tokens)
    found = logits_of(convert(made, guide), tokens)
    require_close(found, wanted)
    assert float((found - plain).abs().max()) > 0.1


# -- guides, mechanisms, caches, rows ------------------------------------------------------------


def test_rows_know_nothing_of_each_other() -> None:
    routed = converted(MODELS["Llama"]())
    one = text(1)[0]
    together = logits_of(routed, torch.stack([one, one.flip(0)]))
    require_close(together[0], logits_of(routed, one[None])[0])
    require_close(together[1], logits_of(routed, one.flip(0)[None])[0])


@pytest.mark.parametrize("groups", [1, "kv"])
@pytest.mark.parametrize("kind", OF_OWN_TOKEN)
def test_every_guide_of_own_tokens_can_be_deployed(kind: type[Guide], groups: int | str) -> None:
    """One that reads tokens or positions too: behind padding, with a cache, and as the network."""
    made, tokens = MODELS["Llama"](), text()
    network = wrapped(made, groups=groups)
    guide = guide_of(network, kind)
    with torch.no_grad():
        wanted = network(tokens, mean_route(guide, hard=True))
    routed = convert(made, guide)
    require_close(logits_of(routed, tokens), wanted)
    with torch.no_grad():
        behind = routed(**padded([tokens[0], tokens[1, :7]])).logits
    require_close(behind[1, -7:], wanted[1, :7])
    prompt = padded([tokens[0, :12], tokens[1, :7]])
    holds = prompt["attention_mask"]
    slow = Written(routed, prompt["input_ids"], attention_mask=holds, use_cache=False)
    for more in ({}, {"cache_implementation": "static"}):
        require_same_text(Written(routed, prompt["input_ids"], attention_mask=holds, **more), slow)


@pytest.mark.parametrize("mechanisms", [["window", "full"], ["window"], ["full"]])
def test_mechanisms_in_any_order_and_alone(mechanisms: list[str]) -> None:
    made, tokens = MODELS["Llama"](), text(2, 12)
    network = wrapped(made, mechanisms=mechanisms)
    guide = guide_of(network)
    with torch.no_grad():
        wanted = network(tokens, mean_route(guide, hard=True))
    routed = convert(made, guide)
    require_close(logits_of(routed, tokens), wanted)
    slow = Written(routed, tokens, use_cache=False)
    for more in ({}, {"cache_implementation": "static"}):
        require_same_text(Written(routed, tokens, **more), slow)


class ByPlace(CategoricalGuide):
    """Chooses by position alone."""

    def posterior(self, layer: int, features: Features) -> Any:
        far = (features.positions % 3 == 0).float() * 20 - 10
        logits = torch.stack([far, -far], -1)[..., None, :]
        size = (*features.tokens.shape, self.model.network.shape.groups, 2)
        return pyro.distributions.OneHotCategorical(logits=logits.expand(size))

    posterior.is_of_own_token = True  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_positions_are_those_of_the_text(options: dict[str, Any]) -> None:
    """Without being told, and behind a cache of a size of its own."""
    made = MODELS["Llama"]()
    network = wrapped(made)
    guide = ByPlace(LanguageModel(network, LoadCategorical(network)))
    routed, tokens = convert(made, guide), text(2, 12)
    with torch.no_grad():
        wanted = network(tokens, mean_route(guide, hard=True))
    require_close(logits_of(routed, tokens), wanted)
    slow = Written(routed, tokens, use_cache=False)
    require_same_text(Written(routed, tokens, **options), slow)
    kept = hf.StaticCache(config=made.config, max_cache_len=30) if options else hf.DynamicCache()
    with torch.no_grad():
        found = [routed(input_ids=piece, past_key_values=kept).logits
                 for piece in tokens.split([5, 1, 1, 3, 2], 1)]  # fmt: skip
    require_close(torch.cat(found, 1), wanted)


def test_parts_of_a_converted_model_can_be_called_by_themselves() -> None:
    """The model without its head, after the whole has read another text."""
    routed, tokens = converted(MODELS["Llama"]()), text()
    logits_of(routed, text(3, 7))
    with torch.no_grad():
        states = routed.model(input_ids=tokens).last_hidden_state
        given = routed(inputs_embeds=routed.get_input_embeddings()(tokens)).logits
    wanted = logits_of(routed, tokens)
    require_close(routed.lm_head(states), wanted)
    require_close(given, wanted)


def test_texts_packed_in_one_row_know_nothing_of_each_other() -> None:
    """Each has sinks of its own."""
    routed = converted(MODELS["Llama"]())
    texts = [text(1, length, seed=length)[0] for length in (9, 12)]
    places = torch.cat([torch.arange(len(one)) for one in texts])[None]
    found = logits_of(routed, torch.cat(texts)[None], position_ids=places)
    wanted = torch.cat([logits_of(routed, one[None])[0] for one in texts])
    require_close(found[0], wanted)


# -- a slow reference ----------------------------------------------------------------------------


class Dense:
    """Attention with all scores at once: each head mixes by weights [B, T, G, K] of its layer."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights, self.layer = weights, 0

    def __call__(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        H, T, d = q.shape[1:]
        k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
        scale = options.get("scaling")
        scores = q @ k.transpose(-1, -2) * (d**-0.5 if scale is None else scale)

        def attended(seen: Tensor) -> Tensor:
            return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v

        if (local := options.get("sliding_window")) is not None:
            return attended(seen_by_window(T, local, 0)).transpose(1, 2), None
        weights = self.weights[self.layer]
        self.layer += 1
        weights = weights.repeat_interleave(H // weights.shape[2], 2).transpose(1, 2)
        full = attended(seen_by_window(T, T, 0))
        near = attended(seen_by_window(T, WINDOW, SINKS))
        return (weights[..., :1] * full + weights[..., 1:] * near).transpose(1, 2), None


def by_reference(made: Any, tokens: Tensor, weights: list[Tensor]) -> Tensor:
    """Logits of a model that nothing of ours is hooked into."""
    hf.AttentionInterface.register("dense_reference", Dense(weights))
    made.set_attn_implementation("dense_reference")
    try:
        return made(input_ids=tokens, use_cache=False).logits
    finally:
        made.set_attn_implementation("sdpa")


def along(weights: list[Tensor]) -> Route:
    return lambda layer, features: Decision(weights[layer])


@each_model
@pytest.mark.parametrize("is_hard", [True, False])
def test_a_network_is_the_slow_reference_in_value_and_gradient(name: str, is_hard: bool) -> None:
    made, tokens = MODELS[name](), text()
    network = wrapped(made)
    size = (ROUTED[name], *tokens.shape, network.shape.groups, 2)
    drawn = list(torch.randn(size, generator=torch.Generator().manual_seed(0)).softmax(-1))
    if is_hard:
        picked = [one.argmax(-1) for one in drawn]
        drawn = [as_weights(one, 2) for one in picked]
        hard = picked if network.shape.groups > 1 else [one[..., 0] for one in picked]
        found = network(tokens, along(hard))
        require_close(found, by_reference(restore(made), tokens, drawn))
        return
    ours, theirs = ([one.clone().requires_grad_() for one in drawn] for _ in range(2))
    routes = ours if network.shape.groups > 1 else [one[:, :, 0] for one in ours]
    found = network(tokens, along(routes))
    wanted = by_reference(restore(made), tokens, theirs)
    require_close(found.detach(), wanted.detach())
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((found * direction).sum(), ours)
    expected = torch.autograd.grad((wanted * direction).sum(), theirs)
    for one, other in zip(gradients, expected, strict=True):
        assert float(other.abs().max()) > 0.1
        require_close(one, other, 3e-5)


@each_model
def test_a_converted_model_is_the_slow_reference(name: str) -> None:
    made, tokens = MODELS[name](), text()
    routed = converted(made)
    picked = choices(deployed(routed).guide, tokens)
    require_mixed(picked)
    found = logits_of(routed, tokens)
    behind = {**padded([tokens[0], tokens[1, :7]]), "use_cache": False}
    with torch.no_grad():
        masked = routed(**behind).logits
    weights = [as_weights(one, 2).view(*tokens.shape, -1, 2) for one in picked]
    wanted = by_reference(restore(made), tokens, weights)
    require_close(found, wanted)
    require_close(masked[1, -7:], wanted[1, :7])


@each_model
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_the_weights_of_a_converted_model_can_be_trained(name: str) -> None:
    """With the gradients of the slow reference, also under gradient checkpointing."""
    tokens = text()

    def learned(made: Any, run: Any) -> tuple[Tensor, list[Tensor]]:
        made.requires_grad_(True)
        logits = run()
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        weights = [weight for weight in made.parameters() if weight.dim() > 1]
        return logits.detach(), list(torch.autograd.grad((logits * direction).sum(), weights))

    made = MODELS[name]()
    routed = converted(made)
    picked = choices(deployed(routed).guide, tokens)
    found = learned(routed, lambda: routed(input_ids=tokens, use_cache=False).logits)
    restore(made)
    weights = [as_weights(one, 2).view(*tokens.shape, -1, 2) for one in picked]
    wanted = learned(made, lambda: by_reference(made, tokens, weights))
    again = converted(MODELS[name]()).train()
    for module in again.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    again.gradient_checkpointing_enable({"use_reentrant": False})
    spared = learned(again, lambda: again(input_ids=tokens, use_cache=False).logits)
    for logits, gradients in (found, spared):
        require_close(logits, wanted[0])
        for one, other in zip(gradients, wanted[1], strict=True):
            require_close(one, other, 1e-4)


def test_dropout_of_attention_is_that_of_the_model() -> None:
    routed, tokens = converted(tiny("Llama", attention_dropout=0.5)), text()
    kept = logits_of(routed, tokens)
    routed.train()
    drawn = [logits_of(routed, tokens) for _ in range(2)]
    assert not torch.equal(*drawn) and not torch.equal(drawn[0], kept)
    require_close(logits_of(routed.eval(), tokens), kept)


@each_model
def test_a_route_sees_the_residual_stream_and_its_norm(name: str) -> None:
    made, tokens = MODELS[name](), text()
    with torch.no_grad():
        streams = made(input_ids=tokens, output_hidden_states=True).hidden_states
    network = wrapped(made)
    seen: list[Features] = []
    route = fixed(network, False)

    def noting(layer: int, features: Features) -> Decision:
        seen.append(features)
        full = torch.tensor([1.0, 0.0]).expand(*route(layer, features).route.shape)
        return Decision(full)

    with torch.no_grad():
        network(tokens, noting)
    layers = [0, 2] if ROUTED[name] == 2 else [0, 1, 2]
    assert len(seen) == len(layers)
    blocks = [one.around for one in network.routing.sites]
    for layer, features in zip(layers, seen, strict=True):
        assert torch.equal(features.tokens, tokens)
        assert features.positions.tolist() == list(range(tokens.shape[1]))
        require_close(features.state, streams[layer])
        norm = getattr(blocks[layer], "input_layernorm", None) or blocks[layer].ln_1
        with torch.no_grad():
            require_close(features.normed, norm(streams[layer]))
