"""The contract of a block: a layer in which tokens meet in attention and nowhere else.

Shapes: B sequences, T tokens, K mechanisms, D width.
"""

from typing import cast

import torch
from safetensors.torch import load, save
from torch import Tensor

from pyro_meta.attention import backend
from pyro_meta.contracts.checks import (
    EXACT,
    ROUNDING,
    default_dtype,
    require,
    require_close,
    require_finite,
    require_gradients,
    require_left_alone,
    require_registered,
    require_same_again,
    require_tensor,
    reseed,
    rms_ratio,
)
from pyro_meta.contracts.subjects import B, BlockSubject, K, T
from pyro_meta.network.blocks import Stream
from pyro_meta.network.route import Decision, Features, as_weights
from pyro_meta.network.transformer import Transformer
from pyro_meta.own_classes import described

MEETING = "tokens meet outside attention: one is worked on otherwise among others"
ENDS = (1, 7, 19)  # where T tokens are cut
CONTINUED = (  # tokens of each of B rows, piece by piece
    [(1, 1, 1)] * T,
    [(7, 7, 7), (1, 1, 1), (12, 12, 12)],
    [(3, 9, 1), (1, 0, 1), (9, 2, 0), (1, 1, 5)],
)
HALF = 5e-2  # RMS ratio of logits under autocast to bf16


def soft(layer: int, features: Features) -> Decision:
    """Weights that follow what the layer shows of each token."""
    return Decision(features.normed[..., :K].softmax(-1))


def hard(layer: int, features: Features) -> Decision:
    """Choices that look random, of token, position and layer."""
    return Decision((features.tokens * 5 + features.positions * 7 + layer) % K)


def gated(layer: int, features: Features) -> Decision:
    """Soft weights and gates, both of what the layer shows of each token."""
    return soft(layer, features)._replace(gate=features.normed[..., K].sigmoid())


def skipping(layer: int, features: Features) -> Decision:
    """Choices as `hard`, and a third of the tokens skip the layer."""
    runs = (features.tokens * 3 + features.positions * 5 + layer) % 3 > 0
    return hard(layer, features)._replace(gate=runs)


ROUTES = (soft, hard, gated, skipping)


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


def a_layer_keeps_its_shape(subject: BlockSubject) -> None:
    """`look` gives what is read of each token, and `advance` a stream of the same tokens."""
    network = subject.build().eval()
    first = network.layers[0]
    state, attended = _random(subject, torch.float32)
    shape = (B, T, subject.shape.width)
    given = state.clone(), attended.clone()
    stream = first.begin(state)
    _require_stream(stream, shape, "begin()")
    require_tensor(first.look(stream), shape, state, "what look() gives")
    left = first.advance(stream, attended)
    _require_stream(left, shape, "advance()")
    require_left_alone(given, (state, attended), "a layer")


def _require_stream(stream: object, shape: tuple[int, ...], call: str) -> None:
    __tracebackhide__ = True
    require(isinstance(stream, Stream), f"{call} gives {described(stream)}; a Stream is needed")
    assert isinstance(stream, Stream)
    like = torch.zeros(())
    require_tensor(stream.state, shape, like, f"the state that {call} gives")
    if stream.velocity is not None:
        velocity = stream.velocity
        shape = (*shape[:2], *velocity.shape[2:]) if isinstance(velocity, Tensor) else shape
        require_tensor(velocity, shape, like, f"the velocity that {call} gives")


def _random(subject: BlockSubject, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A state and what was attended to, [B, T, D] each."""
    generator = torch.Generator().manual_seed(2)
    size = (2, B, T, subject.shape.width)
    state, attended = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    return state, attended


def what_is_learned_is_registered(subject: BlockSubject) -> None:
    """A parameter in a plain list or a plain tensor is neither trained nor saved."""
    network = subject.build()
    for block in network.layers:
        require_registered(block, [network])


def training_mixes_no_tokens(subject: BlockSubject) -> None:
    """In training mode, neither sequences nor later tokens move what a token gets."""
    tokens = subject.size.text()[0]
    end = T // 2

    def read(tokens: Tensor) -> Tensor:
        network = subject.build().train()
        reseed()
        with torch.no_grad():
            return cast(Tensor, network(tokens, soft))

    others = tokens.clone()
    others[1:] = subject.size.others(tokens[1:])
    later = tokens.clone()
    later[:, end:] = subject.size.others(tokens[:, end:])
    whole = read(tokens)
    what = "in training mode, a sequence is read otherwise beside others"
    require_close(read(others)[:1], whole[:1], ROUNDING, what)
    what = f"in training mode, the future is seen: what follows token {end} moves earlier logits"
    require_close(read(later)[:, :end], whole[:, :end], ROUNDING, what)


def logits_are_finite_in_every_precision(subject: BlockSubject) -> None:
    network = subject.build().eval()
    tokens = subject.size.text()[0]
    with torch.no_grad():
        whole = network(tokens, soft)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(tokens, soft)
    require(whole.shape == (B, T, subject.shape.vocabulary), f"logits are {list(whole.shape)}")
    require_finite(whole, "the logits")
    ratio = rms_ratio(half, whole)
    require(ratio < HALF, f"autocast to bf16 is off by {ratio:.2g} (RMS ratio)")


def each_token_is_worked_on_by_itself(subject: BlockSubject) -> None:
    """`begin`, `look` and `advance` give some tokens, in another layout, what they give among all.

    A layer may then leave tokens out, and what is carried need not be cached.
    """
    network = exact(subject)
    first, second = network.layers[:2]
    state, attended = _random(subject)
    some = torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.4

    def walked(state: Tensor, attended: Tensor) -> list[Tensor]:
        stream = first.advance(first.begin(state), attended)
        seen = second.look(stream)
        last: Stream = second.advance(stream, attended + seen)
        return [seen, *(part for part in last if part is not None)]

    parts = zip(walked(state[some], attended[some]), walked(state, attended), strict=True)
    for found, among_all in parts:
        require_close(found, among_all[some], EXACT, MEETING)


def sequences_do_not_meet(subject: BlockSubject) -> None:
    network, tokens = exact(subject), subject.size.text()[0]
    what = "a sequence is read otherwise alone"
    require_close(network(tokens[:1], soft), network(tokens, soft)[:1], EXACT, what)


def later_tokens_move_nothing_earlier(subject: BlockSubject) -> None:
    network, tokens = exact(subject), subject.size.text()[0]
    for route in ROUTES:
        whole = network(tokens, route)
        for end in ENDS:
            changed = torch.cat(
                [tokens[:, :end], (tokens[:, end:] + 5) % subject.shape.vocabulary], 1
            )
            what = f"the future is seen: changing what follows token {end} moves earlier logits"
            require_close(network(changed, route)[:, :end], whole[:, :end], EXACT, what)


def cutting_the_text_moves_nothing_earlier(subject: BlockSubject) -> None:
    network, tokens = exact(subject), subject.size.text()[0]
    for route in ROUTES:
        whole = network(tokens, route)
        for end in ENDS:
            what = f"the length is seen: cutting the text after token {end} moves earlier logits"
            require_close(network(tokens[:, :end], route), whole[:, :end], EXACT, what)


def gradients_reach_no_later_token(subject: BlockSubject) -> None:
    network = exact(subject)
    tokens = torch.arange(subject.shape.vocabulary)[None]  # each once: its embedding is its own
    for end in (1, 5, 12):
        past = network(tokens, soft)[:, :end]
        (grad,) = torch.autograd.grad(past.square().sum(), network.embedding.weight)
        what = f"the gradient of logits up to token {end} reaches later tokens"
        require_close(grad[end:], torch.zeros_like(grad[end:]), EXACT, what)


def gradients_are_finite_and_reach_every_parameter(subject: BlockSubject) -> None:
    """In one layer at least: in the first, nothing has been carried yet."""
    network = subject.build()
    tokens, targets = subject.size.text()
    logits = network(tokens, soft).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, targets.flatten()).backward()
    for block in network.layers:
        for name, parameter in block.named_parameters():
            require(parameter.grad is not None, f"parameter {name} gets no gradient")
            assert parameter.grad is not None
            require_finite(parameter.grad, f"the gradient of {name}")
    require_gradients(dict(network.layers[-1].named_parameters()), "in the last layer")


def hard_routes_equal_one_hot_weights(subject: BlockSubject) -> None:
    network, tokens = exact(subject), subject.size.text()[0]
    dense = network(tokens, lambda *asked: Decision(as_weights(hard(*asked).route, K).double()))
    for way in ("auto", "gather"):
        with backend(way):
            found = network(tokens, hard)
        require_close(found, dense, EXACT, "choices give other logits than one-hot weights")


def a_shut_gate_lets_a_token_skip(subject: BlockSubject) -> None:
    """What it carries is left as it is: the network is its first and last step."""
    network, tokens = exact(subject), subject.size.text()[0]
    state = network.layers[0].begin(network.embedding(tokens)).state
    whole = network.readout(network.final_norm(state))

    def shut(gate: Tensor) -> Tensor:
        return network(tokens, lambda *asked: hard(*asked)._replace(gate=gate))

    nobody = torch.zeros(B, T, dtype=torch.bool)
    require_close(shut(nobody), whole, EXACT, "where no token runs a layer, logits are others")
    what = "a gate of 0 does not let the token skip the layer"
    require_close(shut(nobody.to(whole)), whole, EXACT, what)


def an_open_gate_changes_nothing(subject: BlockSubject) -> None:
    network, tokens = exact(subject), subject.size.text()[0]
    whole = network(tokens, hard)
    everybody = torch.ones(B, T, dtype=torch.bool)
    for gate in (everybody, everybody.to(whole)):
        found = network(tokens, lambda *asked, gate=gate: hard(*asked)._replace(gate=gate))
        require_close(found, whole, EXACT, "where every gate is open, logits are others")


def hard_gates_equal_gates_of_0_and_1(subject: BlockSubject) -> None:
    """Tokens that skip a layer are left out of the work: in value and in gradient."""
    network, tokens = exact(subject), subject.size.text()[0]
    parameters = dict(network.named_parameters())

    def found(as_numbers: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        def route(layer: int, features: Features) -> Decision:
            choice, runs = skipping(layer, features)
            assert runs is not None
            return Decision(choice, runs.to(features.normed) if as_numbers else runs)

        logits = network(tokens, route)
        return logits, torch.autograd.grad(
            logits.square().sum(), list(parameters.values()), materialize_grads=True
        )

    (logits, grads), (expected, expected_grads) = found(False), found(True)
    require_close(logits, expected, EXACT, "hard gates give other logits than gates of 0 and 1")
    for name, grad, other in zip(parameters, grads, expected_grads, strict=True):
        require_close(grad, other, EXACT, f"hard gates give another gradient of {name}")


def continued_text_gets_its_logits(subject: BlockSubject) -> None:
    """Through a cache, token by token or in pieces, rows of several lengths beside each other."""
    network, tokens = exact(subject), subject.size.text()[0]
    for route in ROUTES:
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
    network, tokens = subject.build().eval(), subject.size.text()[0]
    others = subject.size.others(tokens)[:, : T // 2]
    require_same_again(
        lambda: network(tokens, soft), lambda: network(others, soft), "the logits of its layers"
    )


def checkpoint_round_trip_changes_nothing(subject: BlockSubject) -> None:
    """Saved after a pass in training, loaded into one that was built from another seed."""
    saved, loaded = subject.build(seed=1), subject.build(seed=2)
    tokens = subject.size.text()[0]
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
    a_layer_keeps_its_shape,
    what_is_learned_is_registered,
    training_mixes_no_tokens,
    logits_are_finite_in_every_precision,
    each_token_is_worked_on_by_itself,
    sequences_do_not_meet,
    later_tokens_move_nothing_earlier,
    cutting_the_text_moves_nothing_earlier,
    gradients_reach_no_later_token,
    gradients_are_finite_and_reach_every_parameter,
    hard_routes_equal_one_hot_weights,
    a_shut_gate_lets_a_token_skip,
    an_open_gate_changes_nothing,
    hard_gates_equal_gates_of_0_and_1,
    continued_text_gets_its_logits,
    evaluation_is_deterministic,
    checkpoint_round_trip_changes_nothing,
)
