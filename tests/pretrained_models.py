"""Tiny random models of transformers, guides for them, and ways of running them.

Where transformers is not installed, whatever imports this is skipped.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from slow import all_but
from torch import Tensor, nn

from pyro_meta import (
    CategoricalGuide,
    CostCategorical,
    CostDirichlet,
    Decision,
    Features,
    Guide,
    LanguageModel,
    Prior,
    UsageError,
)
from pyro_meta.network.route import Route

os.environ["HF_HUB_OFFLINE"] = "1"
hf: Any = pytest.importorskip("transformers")

from pyro_meta.pretrained import PretrainedNetwork, convert, wrap  # noqa: E402

VOCABULARY, LAYERS = 61, 3
WINDOW, SINKS = 4, 2
MIXED = ["full_attention", "sliding_attention", "full_attention"]
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def tiny(kind: str, config: str = "", **more: Any) -> Any:
    """A random model whose layers matter: its weights are larger than those it begins with."""
    torch.manual_seed(5)
    options = {**LLAMA_LIKE, **more}
    made = getattr(hf, f"{kind}ForCausalLM")(getattr(hf, config or f"{kind}Config")(**options))
    return stirred(made)


def stirred(made: nn.Module) -> Any:
    """The same model with weights far from zero, norms and biases among them.

    They are frozen, as by `wrap`: matrix products of frozen weights may round otherwise.
    """
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
    return made.eval().requires_grad_(False)


def gpt2() -> Any:
    torch.manual_seed(5)
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=128,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return stirred(hf.GPT2LMHeadModel(config))


def sliding(kind: str, config: str = "", **more: Any) -> Any:
    return tiny(kind, config, sliding_window=5, layer_types=MIXED, **more)


MODELS: dict[str, Callable[[], Any]] = {
    "Llama": lambda: tiny("Llama"),
    "Qwen3": lambda: tiny("Qwen3", head_dim=16),  # 4 heads of 16 in a width of 32
    "Qwen3 with sliding layers": lambda: sliding("Qwen3", head_dim=16, use_sliding_window=True),
    "Mistral": lambda: tiny("Mistral", head_dim=8, sliding_window=None),
    # one key-value head, scores scaled by another number than the width, logits bounded
    "Gemma3": lambda: sliding(
        "Gemma3",
        "Gemma3TextConfig",
        head_dim=16,
        num_key_value_heads=1,
        query_pre_attn_scalar=11,
        final_logit_softcapping=20.0,
    ),
    "GPT-NeoX": lambda: tiny("GPTNeoX", num_key_value_heads=4),  # attention beside the MLP
    "GPT-2": gpt2,  # learned positions
    "Cohere": lambda: tiny("Cohere", logit_scale=0.3),  # logits scaled behind the head
    "Phi3": lambda: tiny("Phi3", partial_rotary_factor=0.5),  # one projection for q, k and v
}
ROUTED = dict.fromkeys(MODELS, LAYERS) | {"Qwen3 with sliding layers": 2, "Gemma3": 2}
"""How many of their layers can be routed."""
EVERY_DAY = ("Llama", "Qwen3 with sliding layers", "Gemma3", "GPT-NeoX", "GPT-2")
each_model = pytest.mark.parametrize("name", all_but(EVERY_DAY, MODELS))


def text(rows: int = 2, length: int = 19, seed: int = 0) -> Tensor:
    """Random tokens, none of which is padding."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=draw)


class NearGuide(CategoricalGuide):
    """Reads what window attention gives, too."""

    def __init__(self, model: LanguageModel, hidden: int | None = None) -> None:
        super().__init__(model, hidden, reads_near=True)


def wrapped(made: Any, **more: Any) -> PretrainedNetwork:
    return wrap(made, **{"window": WINDOW, "sinks": SINKS, **more})


def guide_of(
    network: PretrainedNetwork,
    kind: type[Guide] = CategoricalGuide,
    prior: type[Prior] | None = None,
    **more: Any,
) -> Guide:
    """A guide of random weights."""
    if prior is None:
        prior = CostCategorical if kind.of_choices else CostDirichlet
    guide = kind(LanguageModel(network, prior(network)), **more)
    torch.manual_seed(3)
    for parameter in guide.parameters():
        nn.init.normal_(parameter)
    return guide


def converted(made: Any, **more: Any) -> Any:
    """Routed by a guide of random weights."""
    return convert(made, guide_of(wrapped(made, **more)))


def to_full(network: PretrainedNetwork) -> Guide:
    """A guide of which every choice is `full`."""
    guide = guide_of(network)
    full = network.mechanism_names.index("full")
    with torch.no_grad():
        for head in guide.heads:  # type: ignore[union-attr]
            head[-1].weight.zero_()
            head[-1].bias.view(network.shape.groups, -1)[:, full] = 50.0
    return guide


def fixed(network: PretrainedNetwork, is_hard: bool, seed: int = 0) -> Route:
    """Random routes of layer, group, token and position: such as no look at the text explains."""
    K, G = len(network.mechanisms), network.shape.groups
    table = torch.randn(97, K, generator=torch.Generator().manual_seed(seed))

    def route(layer: int, features: Features) -> Decision:
        index = features.tokens * 5 + features.positions * 7 + 31 * layer
        if G > 1:
            index = index[..., None] + 17 * torch.arange(G)
        scores = table[index % len(table)]
        return Decision(scores.argmax(-1) if is_hard else (3 * scores).softmax(-1))

    return route


def require_close(found: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    """Equal but for rounding, as a share of the largest."""
    most = share * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=most)


def logits_of(model: Any, tokens: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, **{"use_cache": False, **more}).logits


def padded(texts: list[Tensor]) -> dict[str, Tensor]:
    """Rows [T] of several lengths behind padding, with mask and positions as `generate` has."""
    longest = max(map(len, texts))
    rows = [torch.cat([one.new_zeros(longest - len(one)), one]) for one in texts]
    holds = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in texts])
    places = (holds.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": torch.stack(rows), "attention_mask": holds, "position_ids": places}


class Written:
    """What `generate` wrote: the new tokens [B, T], and their logits if it gives them."""

    def __init__(self, model: Any, tokens: Tensor, count: int = 7, **more: Any) -> None:
        options = {"attention_mask": torch.ones_like(tokens), "do_sample": False, **more}
        with torch.no_grad():
            out = model.generate(
                tokens, max_new_tokens=count, output_logits=True, return_dict_in_generate=True,
                **options,
            )  # fmt: skip
        self.tokens: Tensor = out.sequences[:, tokens.shape[1] :]
        self.logits: Tensor = torch.stack(out.logits, 1)


def require_same_text(found: Written, wanted: Written) -> None:
    assert found.tokens.tolist() == wanted.tokens.tolist()
    require_close(found.logits, wanted.logits)


def traces(made: nn.Module) -> list[str]:
    """What of ours is left in a model."""
    found = [f"attention {made.config._attn_implementation}"] * (
        made.config._attn_implementation == "pyro_meta"
    )
    for name, module in made.named_modules():
        found += [f"{name}.{key}" for key in vars(module) if "pyro_meta" in key]
        for hooks in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._forward_pre_hooks_with_kwargs,
            module._state_dict_pre_hooks,
            module._state_dict_hooks,
            module._backward_hooks,
        ):
            found += [f"{name}: {one!r}" for one in hooks]
    return found


def refused(call: Callable[[], Any], *words: str) -> str:
    """The one line in which a call is refused; it holds these words."""
    with pytest.raises(UsageError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    for word in words:
        assert word in line, line
    return line
