"""Converting models of transformers and back, copies of them, and what is refused."""

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_models import (
    LLAMA_LIKE,
    MODELS,
    VOCABULARY,
    Written,
    converted,
    each_model,
    fixed,
    guide_of,
    hf,
    logits_of,
    refused,
    text,
    tiny,
    traces,
    wrapped,
)
from torch import nn

from pyro_meta import (
    CategoricalGuide,
    RandomGuide,
)
from pyro_meta.guides import of_own_token
from pyro_meta.pretrained import (
    convert,
    is_converted,
    restore,
    save_routes,
    wrap,
)
from pyro_meta.pretrained.conversion import deployed

# -- there and back ------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_restored_models_are_what_they_were(name: str, before: str) -> None:
    made, tokens = MODELS[name](), text()
    made.set_attn_implementation(before)
    assert not traces(made)
    plain, weights = logits_of(made, tokens), {k: x.clone() for k, x in made.state_dict().items()}
    routed = converted(made)
    assert is_converted(routed) and traces(made)
    logits_of(routed, tokens)
    assert restore(routed) is made
    assert not is_converted(made) and not traces(made)
    assert made.config._attn_implementation == before
    assert torch.equal(logits_of(made, tokens), plain)
    assert all(torch.equal(x, weights[key]) for key, x in made.state_dict().items())
    restore(made)  # nothing to undo
    again = converted(made)
    assert not torch.equal(logits_of(again, tokens), plain)


def test_a_guide_outlives_the_restoring_of_its_model() -> None:
    """It is how the budget of a converted model is changed."""
    made, tokens = MODELS["Llama"](), text()
    routed = converted(made)
    guide, wanted = deployed(routed).guide, logits_of(routed, tokens)
    for _ in range(2):
        restore(made)
        assert torch.equal(logits_of(convert(made, guide), tokens), wanted)
    restore(made)
    guide.spending = None
    refused(lambda: convert(made, guide, budget=0.3), "budget", "spending")
    assert not traces(made), "as it was, where it is refused"


def test_wrapping_again_after_a_model_was_restored() -> None:
    made, tokens = MODELS["Llama"](), text()
    first = wrapped(made)
    second = wrapped(made, groups=1)  # two networks around one model
    route, narrow = fixed(first, True), fixed(second, True)
    wanted = [first(tokens, route), second(tokens, narrow)]
    restore(made)
    refused(lambda: first(tokens, route), "unhooked", "wrap it anew")
    third = wrapped(made)
    assert torch.equal(third(tokens, route), wanted[0])
    assert torch.equal(second(tokens, narrow), wanted[1])


def test_what_raises_on_the_way_leaves_nothing_behind() -> None:
    """A model that kept a tensor of a graph could not be copied."""
    made, tokens = MODELS["Llama"](), text()
    network = wrapped(made)
    guide, route = guide_of(network), fixed(network, False)
    made.requires_grad_(True)

    def breaks(*args: Any) -> None:
        raise KeyboardInterrupt

    def require_copied(run: Callable[[], Any]) -> None:
        within = made.model.layers[1].self_attn.q_proj.register_forward_pre_hook(breaks)
        with pytest.raises(KeyboardInterrupt):
            run()
        within.remove()
        copied = copy.deepcopy(made)
        assert torch.equal(logits_of(copied, tokens), logits_of(made, tokens))

    require_copied(lambda: network(tokens, route))
    convert(made, guide)
    require_copied(lambda: made(input_ids=tokens))


# -- copies --------------------------------------------------------------------------------------


def by_deepcopy(routed: Any) -> Any:
    return copy.deepcopy(routed)


def by_pickle(routed: Any) -> Any:
    file = io.BytesIO()
    torch.save(routed, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@each_model
@pytest.mark.parametrize("copied", [by_deepcopy, by_pickle])
def test_copies_are_routed_and_independent(name: str, copied: Any) -> None:
    routed, tokens = converted(MODELS[name]()), text()
    wanted = logits_of(routed, tokens)
    other = copied(routed)
    assert is_converted(other) and torch.equal(logits_of(other, tokens), wanted)
    assert deployed(other).network.hf_model is other
    ours, theirs = ({id(x) for x in deployed(one).guide.parameters()} for one in (routed, other))
    assert not ours & theirs
    with torch.no_grad():
        for parameter in deployed(routed).guide.parameters():
            parameter.zero_()
    assert torch.equal(logits_of(other, tokens), wanted)
    assert not torch.equal(logits_of(routed, tokens), wanted)
    restore(routed)
    assert torch.equal(logits_of(other, tokens), wanted)
    restore(other)
    assert torch.equal(logits_of(other, tokens), logits_of(routed, tokens))
    assert not traces(other)


def test_a_network_can_be_copied_with_its_guide() -> None:
    network, tokens = wrapped(MODELS["Llama"]()), text()
    guide = guide_of(network)
    other = copy.deepcopy(guide)
    theirs = other.model.network
    assert theirs is not network and theirs.hf_model is not network.hf_model
    route = fixed(network, True)
    assert torch.equal(theirs(tokens, route), network(tokens, route))
    restore(network.hf_model)
    assert torch.isfinite(theirs(tokens, route)).all()


# -- nothing is lost in silence ------------------------------------------------------------------


def test_saving_the_weights_alone_is_told(tmp_path: Path) -> None:
    routed, tokens = converted(MODELS["Llama"]()), text()
    plain = logits_of(MODELS["Llama"](), tokens)
    for save in (lambda: routed.save_pretrained(tmp_path), routed.state_dict):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save()
        told = [str(one.message) for one in caught]
        assert len(told) == 1 and "pyro_meta.pretrained.save_routes(model, folder)" in told[0]
    assert "pyro_meta" not in (tmp_path / "config.json").read_text()
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
    assert torch.equal(logits_of(again, tokens), plain)
    restore(routed).state_dict()  # and says nothing


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "GPT-2"])
def test_routed_in_another_precision(name: str) -> None:
    """Moved after it was converted, and converted as it is."""
    routed, tokens = converted(MODELS[name]()), text()
    wanted = logits_of(routed, tokens)
    routed.to(torch.bfloat16)
    found = logits_of(routed, tokens)
    assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())
    close = (found - wanted).abs().mean() / wanted.abs().mean()
    assert float(close) < 0.5  # some tokens choose otherwise
    Written(routed, tokens)
    Written(routed, tokens, cache_implementation="static")
    made = MODELS[name]().to(torch.bfloat16)
    again = converted(made)
    assert torch.equal(logits_of(again, tokens), found)
    routed.to(torch.float32)
    assert logits_of(routed, tokens).dtype == torch.float32
    for dtype in (torch.float16, torch.float64):
        routed.to(dtype)
        assert bool(logits_of(routed, tokens).isfinite().all())


def test_a_network_in_another_precision() -> None:
    network, tokens = wrapped(MODELS["Llama"]().to(torch.bfloat16)), text()
    for is_hard in (True, False):
        route = fixed(network, is_hard)
        whole = network(tokens, route)
        assert whole.dtype == torch.bfloat16
        cache = network.new_cache(2, False)
        pieces = [network(piece, route, cache) for piece in tokens.split([9, *[1] * 10], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0.1, atol=0.1)


# -- what cannot be converted --------------------------------------------------------------------


class OfThePrefix(CategoricalGuide):
    """Looks at all earlier tokens."""

    def posterior(self, layer: int, features: Any) -> Any:
        normed = features.normed.cumsum(-2)
        return super().posterior(layer, features._replace(normed=normed))


class Foresight(CategoricalGuide):
    """Says that it looks at its own token, and looks at the next one."""

    @of_own_token
    def posterior(self, layer: int, features: Any) -> Any:
        return super().posterior(layer, features._replace(normed=features.normed.roll(-1, -2)))


def test_what_cannot_be_converted_is_refused() -> None:
    made, other = MODELS["Llama"](), MODELS["Llama"]()
    guide = guide_of(wrapped(made))
    refused(lambda: convert(other, guide), "convert", "another model")
    convert(made, guide)
    refused(lambda: convert(made, guide), "converted already", "restore it first")
    refused(lambda: save_routes(other, "nowhere"), "not converted", "convert")
    restore(made)
    for kind in (OfThePrefix, RandomGuide):
        prefix = guide_of(wrapped(made), kind)
        refused(lambda one=prefix: convert(made, one), kind.__name__, "own features")
    mechanisms = ["full", "window", "linear"]
    linear = guide_of(wrapped(made, mechanisms=mechanisms))
    refused(lambda: convert(made, linear), "linear", "full and window")
    assert not is_converted(made)
    plain = logits_of(other, text())
    assert torch.equal(logits_of(made, text()), plain)
    assert not traces(restore(made))


def test_a_guide_that_sees_the_future_is_found_out() -> None:
    made = MODELS["Llama"]()
    guide = guide_of(wrapped(made), Foresight)
    refused(lambda: convert(made, guide), "convert: of a prefix logits differ by")
    assert not is_converted(made) and not traces(restore(made))
    far = guide_of(wrapped(made, window=30), Foresight)  # the text is longer than that
    refused(lambda: convert(made, far), "convert: of a prefix logits differ by")
    assert is_converted(convert(made, far, checks=False))


def test_a_model_that_is_told_nothing_of_padding_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if no mask function were registered beside the attention."""
    monkeypatch.setattr("pyro_meta.pretrained.interface.sdpa_mask", lambda **options: None)
    made = MODELS["Llama"]()
    refused(lambda: converted(made), "convert: behind padding logits differ by")
    assert not is_converted(made) and not traces(restore(made))
    monkeypatch.undo()
    restore(converted(made))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window": 0}, "window: 0 given"),
        ({"sinks": -1}, "sinks: -1 given"),
        ({"context": 129}, "context: 129 given; the model knows 128"),
        ({"context": 0}, "context: 0 given"),
        ({"groups": 3}, "groups: 3 given; 1 or kv (each of 2"),
        ({"mechanisms": ["full", "chunk_sentence"]}, "chunk_sentence"),
        ({"mechanisms": ["full", "linear_momentum"]}, "linear_momentum"),
        ({"mechanisms": ["ful"]}, "ful"),
        ({"mechanisms": []}, "mechanisms"),
    ],
)
def test_arguments_out_of_range_leave_the_model_as_it_was(arguments: Any, words: str) -> None:
    made = MODELS["Llama"]().requires_grad_(True).train()
    refused(lambda: wrap(made, **arguments), words)
    assert not traces(made) and made.training
    assert all(weight.requires_grad for weight in made.parameters())


def quantised() -> Any:
    made = tiny("Llama")
    made.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    return made


def paged() -> Any:
    made = tiny("Llama")
    made.config._attn_implementation = "paged|sdpa"
    return made


def small(kind: str, config: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(hf, kind)(getattr(hf, f"{config}Config")(vocab_size=VOCABULARY, **more))


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "its own attention": (
        small("BloomForCausalLM", "Bloom", hidden_size=32, n_layer=2, n_head=4),
        "do not go through the attention interface",
    ),
    "no attention": (
        small("MambaForCausalLM", "Mamba", hidden_size=32, num_hidden_layers=2),
        "do not go through the attention interface",
    ),
    "encoder and decoder": (small("BartForConditionalGeneration", "Bart", **BART), "cannot be"),
    "encoder and decoder of T5": (
        small("T5ForConditionalGeneration", "T5", d_model=32, num_layers=1, num_heads=4),
        "cannot be routed",
    ),
    "both directions": (small("BertForMaskedLM", "Bert", **BERT), "causal"),
    "both directions, a head for one": (small("BertLMHeadModel", "Bert", **BERT), "causal"),
    "no head": (lambda: hf.LlamaModel(hf.LlamaConfig(**LLAMA_LIKE)), "no causal language model"),
    "another head": (
        lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**LLAMA_LIKE)),
        "no causal language model",
    ),
    "quantised": (quantised, "quantised"),
    "paged": (paged, "paged|sdpa"),
    "sinks of its own": (
        lambda: tiny("GptOss", head_dim=8, num_local_experts=2, num_experts_per_tok=1),
        "s_aux",
    ),
    "bounded scores": (lambda: tiny("Gemma2", head_dim=8), "softcap"),
    "scores with a bias": (lambda: tiny("Doge"), "more or less than causal"),
    "one module twice": (lambda: tiny("DiffLlama"), "one attention module in several layers"),
    "all local": (lambda: tiny("Mistral", head_dim=8, sliding_window=5), "nothing to route"),
    "no model of transformers": (lambda: nn.Linear(3, 3), "Linear given"),
    "no model": (lambda: "SmolLM2", "str given"),
    "nothing": (lambda: None, "NoneType given"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_routed_are_refused_in_one_line(case: str) -> None:
    make, words = REFUSED[case]
    made = make()
    before = made.config._attn_implementation if hasattr(made, "config") else None
    refused(lambda: wrap(made), "pretrained: ", words)
    if before is not None:
        assert made.config._attn_implementation == before and not traces(made)
