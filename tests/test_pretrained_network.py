"""Models of transformers behind the network protocol: its cache, generation, inference."""

from typing import Any

import pyro
import pytest
import torch
from pretrained_models import (
    MODELS,
    VOCABULARY,
    Written,
    each_model,
    fixed,
    guide_of,
    logits_of,
    require_close,
    text,
    tiny,
    wrapped,
)
from torch import Tensor

from pyro_meta import (
    CategoricalGuide,
    CostDirichlet,
    DirichletGuide,
    LanguageModel,
    LoadCategorical,
    RouteELBO,
    UsageError,
    pinned,
)
from pyro_meta.generation.sampling import Sampling, continue_batch, continue_tokens
from pyro_meta.inference.elbo import Objective
from pyro_meta.pretrained import PretrainedNetwork, convert

GREEDY = Sampling(greedy=True)


# -- the network's own cache ---------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("is_hard", [True, False])
@pytest.mark.parametrize("keeps_features", [True, False])
def test_texts_read_in_pieces_get_the_same_logits(
    name: str, is_hard: bool, keeps_features: bool
) -> None:
    """Rows of several lengths, beside random padding, which leaves no trace."""
    network = wrapped(MODELS[name]())
    route = fixed(network, is_hard)
    cache = network.new_cache(3, keeps_features)
    texts: list[list[int]] = [[] for _ in range(3)]
    found: list[list[Tensor]] = [[] for _ in range(3)]
    draw = torch.Generator().manual_seed(0)
    for counts in ([7, 3, 0], [1, 1, 1], [2, 0, 5], [1, 1, 1], [1, 1, 1], [0, 6, 4], [1, 1, 0]):
        tokens = torch.randint(VOCABULARY, (3, max(counts)), generator=draw)
        is_ragged = len(set(counts)) > 1
        logits = network(tokens, route, cache, counts if is_ragged else None)
        for row, count in enumerate(counts):
            texts[row] += tokens[row, :count].tolist()
            found[row].append(logits[row, :count])
    assert cache.lengths == [len(one) for one in texts]
    for one, pieces in zip(texts, found, strict=True):
        with torch.no_grad():
            whole = network(torch.tensor([one]), route)[0]
        require_close(torch.cat(pieces), whole)


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "GPT-2"])
@pytest.mark.parametrize("groups", [1, "kv"])
@pytest.mark.parametrize("is_hard", [True, False])
def test_linear_attention_beside_the_others(name: str, groups: Any, is_hard: bool) -> None:
    """It cannot be converted, but can be inferred: causal, and with a cache as without."""
    mechanisms = ["full", "linear", "window"]
    network, tokens = wrapped(MODELS[name](), mechanisms=mechanisms, groups=groups), text()
    route, cache = fixed(network, is_hard), network.new_cache(2, False)
    with torch.no_grad():
        whole = network(tokens, route)
        require_close(network(tokens[:, :8], route), whole[:, :8], 3e-5)
        require_close(network(tokens, pinned(network, "full")), logits_of(network.hf_model, tokens))
    pieces = [network(piece, route, cache) for piece in tokens.split([7, 1, 1, 4, 6], 1)]
    require_close(torch.cat(pieces, 1), whole, 3e-5)


@each_model
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_our_own_generation_is_the_same_with_and_without_a_cache(
    name: str, threshold: float
) -> None:
    """Also where the text outgrows the context."""
    network = wrapped(MODELS[name](), context=16)
    guide = guide_of(network, DirichletGuide)
    guide.harden_below(threshold)
    model, prompts = guide.model, [[3], list(range(4, 14)), [7, 8, 9]]
    batch = list(continue_batch(model, guide, prompts, 12, GREEDY, seed=0))
    slow = list(continue_batch(model, guide, prompts, 12, GREEDY, seed=0, cache=False))
    assert batch == slow
    alone = list(continue_tokens(model, guide, prompts[2], 12, GREEDY, seed=0))
    assert alone == [new[2] for new in batch]


@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
def test_our_own_generation_is_that_of_the_converted_model(name: str) -> None:
    made, tokens = MODELS[name](), text(1, 12)
    guide = guide_of(wrapped(made))
    guide.harden_below(1.0)
    ours = list(continue_tokens(guide.model, guide, tokens[0].tolist(), 7, GREEDY, seed=0))
    assert Written(convert(made, guide), tokens).tokens[0].tolist() == ours


def test_a_model_that_remembers_more_than_keys_is_read_without_a_cache() -> None:
    """Short convolutions between the layers of attention look back at tokens, too."""
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    network = wrapped(tiny("Lfm2", layer_types=kinds, num_hidden_layers=4))
    route, tokens = fixed(network, True), text()
    with torch.no_grad():
        require_close(network(tokens[:, :9], route), network(tokens, route)[:, :9])
    with pytest.raises(UsageError, match="read its texts without a cache"):
        network.new_cache(1)
    guide = guide_of(network)
    list(continue_tokens(guide.model, guide, [3, 4], 3, GREEDY, seed=0, cache=False))


# -- inference -----------------------------------------------------------------------------------


FAMILIES = [(LoadCategorical, CategoricalGuide), (CostDirichlet, DirichletGuide)]


@each_model
@pytest.mark.parametrize(("prior", "kind"), FAMILIES)
def test_a_step_of_inference_moves_the_guide_alone(name: str, prior: Any, kind: Any) -> None:
    made = MODELS[name]()
    before = {key: x.clone() for key, x in made.state_dict().items()}
    network = wrapped(made)
    model = LanguageModel(network, prior(network))
    guide = kind(model)
    tokens, targets = text()[:, :-1], text()[:, 1:]
    learned = [*guide.parameters()]
    optimiser = torch.optim.Adam(learned, 0.01)
    terms = Objective(model.train(), guide.train())(tokens, targets)
    terms.loss.backward()
    assert bool(terms.loss.isfinite()) and not made.training
    for parameter in learned:
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all())
    moved = [float(parameter.grad.abs().max()) > 0 for parameter in learned]
    assert all(moved)
    optimiser.step()
    for key, x in made.state_dict().items():
        assert torch.equal(x, before[key]) and not x.requires_grad
    assert all(weight.grad is None for weight in made.parameters())


@pytest.mark.parametrize("elbo", [RouteELBO, lambda: pyro.infer.TraceMeanField_ELBO(1, 3)])
@pytest.mark.parametrize(("prior", "kind"), FAMILIES)
def test_a_step_of_plain_pyro(prior: Any, kind: Any, elbo: Any) -> None:
    made = MODELS["Llama"]()
    before = {key: x.clone() for key, x in made.state_dict().items()}
    network = wrapped(made)
    model = LanguageModel(network, prior(network))
    guide = kind(model)
    start = [x.detach().clone() for x in guide.parameters()]
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo())
    loss = svi.step(text()[:, :-1], text()[:, 1:])
    assert torch.tensor(loss).isfinite()
    for one, x in zip(start, guide.parameters(), strict=True):
        assert not torch.equal(one, x)
    for key, x in made.state_dict().items():
        assert torch.equal(x, before[key]) and not x.requires_grad


def test_a_network_stays_a_network_of_the_protocol() -> None:
    """States and read-out are its logits; costs are those of its layers, weights those of prior."""
    for name in ("Llama", "Cohere"):
        network = wrapped(MODELS[name]())
        route, tokens = fixed(network, True), text()
        with torch.no_grad():
            logits = network.readout(network.states(tokens, route))
            require_close(logits, network(tokens, route))
        assert isinstance(network, PretrainedNetwork)
        assert not [key for key in network.state_dict() if "hf_model" in key]
        network.load_state_dict(network.state_dict())
        assert network.dense_macs() > 0
    with pytest.raises(ValueError, match=r"tokens must be \[B, T\]"):
        network(tokens[0], route)
    with pytest.raises(ValueError, match="no cache"):
        network(tokens, route, lengths=[1, 2])
