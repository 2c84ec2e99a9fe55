"""The contract of a block: a layer in which tokens meet in attention and nowhere else.

Shapes: B sequences, T tokens, K mechanisms, D width.
"""

import torch
from safetensors.torch import load, save
from torch import Tensor

from pyro_meta.attention import backend
from pyro_meta.blocks import Stream
from pyro_meta.contracts.checks import (
    EXACT,
    default_dtype,
    require,
    require_close,
    require_finite,
    require_gradients,
    rms_ratio,
)
from pyro_meta.contracts.subjects import SHAPE, B, BlockSubject, K, T, text
from pyro_meta.transformer import Features, Transformer, as_weights

ENDS = (1, 7, 19)  # where T tokens are cut
CONTINUED = (  # tokens of each of B rows, piece by piece
    [(1, 1, 1)] * T,
    [(7, 7, 7), (1, 1, 1), (12, 12, 12)],
    [(3, 9, 1), (1, 0, 1), (9, 2, 0), (1, 1, 5)],
)
HALF = 5e-2  # RMS ratio of logits under autocast to bf16


def soft(layer: int, features: Features) -> Tensor:
    """Weights that follow what the layer shows of each token."""
    return features.normed[..., :K].softmax(-1)


def hard(layer: int, features: Features) -> Tensor:
    """Choices that look random, of token, position and layer."""
    return (features.tokens * 5 + features.positions * 7 + layer) % K


def exact(subject: BlockSubject) -> Transformer:
    """The network in float64, in evaluation mode, with parameters as after some training."""
    with default_dtype(torch.float64):
        network = subject.build().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
    return network


def logits_are_finite_in_every_precision(subject: BlockSubject) -> None:
    network = subject.build().eval()
    tokens = text()[0]
    with torch.no_grad():
        whole = network(tokens, soft)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(tokens, soft)
    require(whole.shape == (B, T, SHAPE.vocabulary), f"logits are {list(whole.shape)}")
    require_finite(whole, "the logits")
    ratio = rms_ratio(half, whole)
    require(ratio < HALF, f"autocast to bf16 is off by {ratio:.2g} (RMS ratio)")


def each_token_is_worked_on_by_itself(subject: BlockSubject) -> None:
    """`begin`, `look` and `advance` give some tokens, in another layout, what they give among all.

    A layer may then leave tokens out, and what is carried need not be cached.
    """
    network = exact(subject)
    first, second = network.layers[:2]
    generator = torch.Generator().manual_seed(2)
    state, attended = torch.randn(2, B, T, SHAPE.width, generator=generator, dtype=torch.float64)
    some = torch.rand(B, T, generator=generator) < 0.4

    def walked(state: Tensor, attended: Tensor) -> list[Tensor]:
        stream = first.advance(first.begin(state), attended)
        seen = second.look(stream)
        last: Stream = second.advance(stream, attended + seen)
        return [seen, *(part for part in last if part is not None)]

    parts = zip(walked(state[some], attended[some]), walked(state, attended), strict=True)
    for found, among_all in parts:
        require_close(found, among_all[some], EXACT, "a token is worked on otherwise among others")


def sequences_do_not_meet(subject: BlockSubject) -> None:
    network, tokens = exact(subject), text()[0]
    what = "a sequence is read otherwise alone"
    require_close(network(tokens[:1], soft), network(tokens, soft)[:1], EXACT, what)


def later_tokens_move_nothing_earlier(subject: BlockSubject) -> None:
    network, tokens = exact(subject), text()[0]
    for route in (soft, hard):
        whole = network(tokens, route)
        for end in ENDS:
            changed = torch.cat([tokens[:, :end], (tokens[:, end:] + 5) % SHAPE.vocabulary], 1)
            what = f"the future is seen: changing what follows token {end} moves earlier logits"
            require_close(network(changed, route)[:, :end], whole[:, :end], EXACT, what)


def cutting_the_text_moves_nothing_earlier(subject: BlockSubject) -> None:
    network, tokens = exact(subject), text()[0]
    for route in (soft, hard):
        whole = network(tokens, route)
        for end in ENDS:
            what = f"the length is seen: cutting the text after token {end} moves earlier logits"
            require_close(network(tokens[:, :end], route), whole[:, :end], EXACT, what)


def gradients_reach_no_later_token(subject: BlockSubject) -> None:
    network = exact(subject)
    tokens = torch.arange(SHAPE.vocabulary)[None]  # each once: its embedding is its own
    for end in (1, 5, 12):
        past = network(tokens, soft)[:, :end]
        (grad,) = torch.autograd.grad(past.square().sum(), network.embedding.weight)
        what = f"the gradient of logits up to token {end} reaches later tokens"
        require_close(grad[end:], torch.zeros_like(grad[end:]), EXACT, what)


def gradients_are_finite_and_reach_every_parameter(subject: BlockSubject) -> None:
    """In one layer at least: in the first, nothing has been carried yet."""
    network = subject.build()
    tokens, targets = text()
    logits = network(tokens, soft).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, targets.flatten()).backward()
    for block in network.layers:
        for name, parameter in block.named_parameters():
            require(parameter.grad is not None, f"parameter {name} gets no gradient")
            assert parameter.grad is not None
            require_finite(parameter.grad, f"the gradient of {name}")
    require_gradients(dict(network.layers[-1].named_parameters()), "in the last layer")


def hard_routes_equal_one_hot_weights(subject: BlockSubject) -> None:
    network, tokens = exact(subject), text()[0]
    dense = network(tokens, lambda *asked: as_weights(hard(*asked), K).double())
    for way in ("auto", "gather"):
        with backend(way):
            found = network(tokens, hard)
        require_close(found, dense, EXACT, "choices give other logits than one-hot weights")


def continued_text_gets_its_logits(subject: BlockSubject) -> None:
    """Through a cache, token by token or in pieces, rows of several lengths beside each other."""
    network, tokens = exact(subject), text()[0]
    for route in (soft, hard):
        whole = network(tokens, route)
        for pieces in CONTINUED:
            cache = network.new_cache(B, keeps_features=False)
            starts, read = [0] * B, torch.zeros_like(whole)
            for counts in pieces:
                size = max(counts)
                new = torch.zeros(B, size, dtype=torch.long)
                for row, count in enumerate(counts):
                    new[row, :count] = tokens[row, starts[row] : starts[row] + count]
                found = network(new, route, cache, counts)
                for row, count in enumerate(counts):
                    read[row, starts[row] : starts[row] + count] = found[row, :count]
                    starts[row] += count
            for row, counts in enumerate(zip(*pieces, strict=True)):
                end = sum(counts)
                what = f"a text read in pieces of {list(counts)} gets other logits than at once"
                require_close(read[row, :end], whole[row, :end], EXACT, what)


def evaluation_is_deterministic(subject: BlockSubject) -> None:
    network, tokens = subject.build().eval(), text()[0]
    same = torch.equal(network(tokens, soft), network(tokens, soft))
    require(same, "two calls in evaluation mode give two outputs")


def checkpoint_round_trip_changes_nothing(subject: BlockSubject) -> None:
    """Saved after a pass in training, loaded into one that was built from another seed."""
    saved, loaded = subject.build(seed=1), subject.build(seed=2)
    tokens = text()[0]
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        saved(tokens, soft)
    loaded.load_state_dict(load(save({k: v.contiguous() for k, v in saved.state_dict().items()})))
    require(
        torch.equal(saved.eval()(tokens, soft), loaded.eval()(tokens, soft)),
        "a loaded checkpoint gives other logits: is a tensor neither parameter nor buffer?",
    )


CLAUSES = (
    logits_are_finite_in_every_precision,
    each_token_is_worked_on_by_itself,
    sequences_do_not_meet,
    later_tokens_move_nothing_earlier,
    cutting_the_text_moves_nothing_earlier,
    gradients_reach_no_later_token,
    gradients_are_finite_and_reach_every_parameter,
    hard_routes_equal_one_hot_weights,
    continued_text_gets_its_logits,
    evaluation_is_deterministic,
    checkpoint_round_trip_changes_nothing,
)
