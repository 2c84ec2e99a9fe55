"""The contract of every architecture: with all routes full nothing is lost, and nothing leaks."""

from typing import Any

import pyro
import pytest
import torch
from pretrained_models import (
    MODELS,
    ROUTED,
    VOCABULARY,
    converted,
    each_model,
    logits_of,
    require_close,
    text,
    tiny,
    to_full,
    wrapped,
)
from torch import Tensor

import pyro_meta.pretrained.deployed as deployed_module
import pyro_meta.pretrained.network as network_module
from pyro_meta import Features
from pyro_meta.contracts.suite import Clause, pretrained_clauses
from pyro_meta.pretrained import convert, is_converted, wrap
from pyro_meta.pretrained.conversion import deployed
from pyro_meta.pretrained.network import features_of

CLAUSES = [clause.promise for clause in pretrained_clauses(MODELS["Llama"])]


@pytest.mark.parametrize("promise", CLAUSES, ids=lambda one: one.__name__)
@each_model
def test_every_architecture_keeps_the_contract(name: str, promise: Any) -> None:
    """The one that `python -m pyro_meta.contracts --pretrained` puts to anybody's model."""
    Clause(promise, MODELS[name]).tested()


def broken(make: Any = MODELS["Llama"]) -> set[str]:
    """The clauses that do not hold."""
    found = set()
    for clause in pretrained_clauses(make):
        try:
            clause.check()
        except AssertionError:
            found.add(str(clause))
    return found


def test_a_window_that_forgets_the_sinks_of_padded_rows_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reach(mechanism: Any, seen: Tensor) -> Tensor:
        key = torch.arange(seen.shape[-1])
        own = (seen * key).amax(-1, keepdim=True)
        near = getattr(mechanism, "window", len(key))
        return seen & ((key > own - near) | (key < getattr(mechanism, "sinks", 0)))

    monkeypatch.setattr(deployed_module, "_reach", reach)
    assert "rows_and_padding_change_nothing" in broken()


def test_a_mask_that_is_dropped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers does with an attention that has registered none."""
    attend = deployed_module.Deployed.attend

    def without_mask(self: Any, site: Any, call: Any) -> Tensor:
        call.mask = None
        return attend(self, site, call)

    monkeypatch.setattr(deployed_module.Deployed, "attend", without_mask)
    assert {"all_routes_full_behind_padding", "rows_and_padding_change_nothing"} <= broken()


def test_a_route_that_reads_the_next_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def features(site: Any, tokens: Tensor, *more: Any) -> Features:
        found = features_of(site, tokens, *more)
        return found._replace(tokens=tokens.roll(-1, 1))

    monkeypatch.setattr(network_module, "features_of", features)
    assert {"hard_routes_see_no_later_token", "soft_routes_see_no_later_token"} <= broken()


def test_a_choice_of_the_newest_token_that_is_not_heeded_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        deployed_module.Deployed, "_newest", lambda self, site, call, route: call.plain()[0]
    )
    assert "every_cache_writes_what_no_cache_writes" in broken()


def all_full(made: Any) -> Any:
    return convert(made, to_full(wrapped(made)))


def require_equal(found: Tensor, wanted: Tensor) -> None:
    assert torch.equal(found, wanted), float((found - wanted).abs().max())


# -- wrapped -------------------------------------------------------------------------------------


@each_model
def test_sizes_are_those_of_the_model(name: str) -> None:
    made = MODELS[name]()
    network = wrap(made)
    shape, config = network.shape, made.config
    assert shape.layers == ROUTED[name] == len(network.leading_mechanisms)
    assert (shape.vocabulary, shape.width, shape.heads) == (VOCABULARY, config.hidden_size, 4)
    kv_heads = {"Gemma3": 1, "GPT-NeoX": 4, "GPT-2": 4}.get(name, 2)
    assert shape.kv_heads == kv_heads == shape.groups
    assert shape.head_width == getattr(config, "head_dim", None) or 8
    assert (shape.window, shape.sinks, shape.context) == (128, 4, 128)
    assert network.mechanism_names == ["full", "window"]
    assert not any(weight.requires_grad for weight in made.parameters()) and not made.training


# -- converted -----------------------------------------------------------------------------------


@each_model
def test_all_routes_full_give_the_logits_of_the_model(name: str) -> None:
    made, tokens = MODELS[name](), text()
    plain = logits_of(made, tokens)
    routed = all_full(made)
    assert routed is made and is_converted(made)
    require_equal(logits_of(routed, tokens), plain)
    require_equal(logits_of(routed, tokens, use_cache=True), plain)
    deployed(routed).forced = "full"
    require_equal(logits_of(routed, tokens), plain)
    deployed(routed).forced = "window"
    assert float((logits_of(routed, tokens) - plain).abs().max()) > 0.1


def require_compiled(made: Any, *texts: Tensor, **options: Any) -> None:
    plain = [logits_of(made, tokens) for tokens in texts]
    torch.compiler.reset()
    compiled = torch.compile(made, backend="eager", **options)
    for tokens, wanted in zip(texts, plain, strict=True):
        require_close(logits_of(compiled, tokens), wanted)


def test_texts_of_other_lengths_are_compiled_anew() -> None:
    made = all_full(tiny("Llama", num_hidden_layers=1))
    with pyro.validation_enabled(False):
        require_compiled(made, text(), text(3, 13), fullgraph=True)
    deployed(made).forced = "full"  # and no guide is asked
    require_compiled(made, text(), fullgraph=True)


def test_a_guide_that_checks_its_distributions_is_compiled_again_and_again() -> None:
    for _ in range(2):
        require_compiled(all_full(tiny("Llama", num_hidden_layers=1)), text(), fullgraph=True)


def test_a_routed_model_compiled_in_parts() -> None:
    """As people compile who ask for nothing: whatever cannot be traced runs beside the graphs."""
    require_compiled(converted(tiny("Llama", num_hidden_layers=1)), text())


UNSEEN: dict[str, dict[str, Any]] = {
    "Granite": {},
    "Helium": {"head_dim": 8},
    "Nemotron": {},
    "Olmo2": {},
    "Qwen3Moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8,
    },
    "SmolLM3": {},
    "Starcoder2": {},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", UNSEEN)
def test_architectures_that_were_not_looked_at_keep_the_contract(name: str) -> None:
    assert not broken(lambda: tiny(name, **UNSEEN[name]))
