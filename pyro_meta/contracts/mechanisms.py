"""The contract of a mechanism: causal attention of a known price.

Shapes: B sequences, H heads, T tokens, d head width; q, k and v are [B, H, T, d].
"""

from typing import cast

import torch
from safetensors.torch import load, save
from torch import Tensor

from pyro_meta.attention import (
    Mechanism,
    Queries,
    carries,
    decodes,
    read_in_pieces,
    recurs,
    remembers,
    serves,
)
from pyro_meta.attention.prices import macs_at, require_prices
from pyro_meta.contracts.checks import (
    EXACT,
    Broken,
    applies,
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
from pyro_meta.contracts.subjects import MechanismSubject
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import described, require_price

LENGTHS = (1, 2, 7, 64, 67, 150)
ENDS = (1, 7, 63, 64, 65, 130)  # where the longest is cut
CONTINUED = (  # tokens of either row, piece by piece
    [(1, 1)] * 12,
    [(70, 70), (1, 1), (1, 1), (66, 66)],
    [(3, 9), (1, 1), (0, 1), (66, 2), (1, 1), (1, 0), (5, 70), (1, 1)],
)
SINGLE, HALF = 1e-4, 3e-2  # RMS ratios of float32 to float64, and of bf16 to float32


def qkv(width: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    draw = torch.randn(3, 2, 2, length, width, generator=generator, dtype=torch.float64)
    return list(draw.to(dtype).unbind())


def inputs_of(
    mechanism: Mechanism, length: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """q, k and v, and behind them which tokens separate sentences if `mechanism` reads that."""
    return [*qkv(mechanism.head_width, length, dtype), *_separators(mechanism, length)]


def _separators(mechanism: Mechanism, length: int) -> list[Tensor]:
    if not mechanism.reads_separators:
        return []
    generator = torch.Generator().manual_seed(length)
    return [torch.rand(2, 1, length, 1, generator=generator) < 0.2]


def _with_another_future(inputs: list[Tensor], end: int) -> list[Tensor]:
    """The same up to token `end`."""

    def another(x: Tensor) -> Tensor:
        return ~x if x.dtype == torch.bool else 3 - 5 * x

    return [torch.cat([x[:, :, :end], another(x[:, :, end:])], 2) for x in inputs]


def output_has_the_shape_and_dtype_of_v(subject: MechanismSubject) -> None:
    """And its device; what is given is left as it is."""
    for dtype in (torch.float32, torch.float64):
        mechanism = subject.build().to(dtype)
        for length in LENGTHS:
            inputs = inputs_of(mechanism, length, dtype)
            before = [x.clone() for x in inputs]
            out = mechanism(*inputs)
            v = inputs[2]
            what = f"the output of forward() for q, k, v {list(v.shape)} of {v.dtype}"
            require_tensor(out, v.shape, v, what)
            require_left_alone(before, inputs, "forward()")


def what_is_learned_is_registered(subject: MechanismSubject) -> None:
    """A parameter in a plain list or a plain tensor is neither trained nor saved."""
    require_registered(subject.build())


def training_mixes_no_tokens(subject: MechanismSubject) -> None:
    """In training mode, neither sequences nor later tokens move what a token gets."""

    def read(inputs: list[Tensor]) -> Tensor:
        mechanism = subject.build().double().train()
        reseed()
        with torch.no_grad():
            return cast(Tensor, mechanism(*inputs))

    length, end = LENGTHS[-1], 65
    inputs = inputs_of(subject.build(), length)
    others = [torch.cat([x[:1], other[1:]]) for x, other in
              zip(inputs, _with_another_future(inputs, 0), strict=True)]  # fmt: skip
    whole = read(inputs)
    what = "in training mode, a sequence is read otherwise beside others"
    require_close(read(others)[:1], whole[:1], EXACT, what)
    later = read(_with_another_future(inputs, end))
    what = f"in training mode, the future is seen: what follows token {end} moves earlier outputs"
    require_close(later[:, :, :end], whole[:, :, :end], EXACT, what)


def float32_agrees_with_float64(subject: MechanismSubject) -> None:
    mechanism = subject.build().eval()
    for length in LENGTHS:
        single = mechanism.float()(*inputs_of(mechanism, length, torch.float32))
        ratio = rms_ratio(single, mechanism.double()(*inputs_of(mechanism, length)))
        require(ratio < SINGLE, f"float32 is off by {ratio:.2g} (RMS ratio) at {length} tokens")


def half_precision_agrees_with_float32(subject: MechanismSubject) -> None:
    """Weights and inputs in bf16, and either kind of inputs under autocast."""
    mechanism = subject.build().eval()
    for length in LENGTHS:
        half = inputs_of(mechanism, length, torch.bfloat16)
        single = [x.float() if x.is_floating_point() else x for x in half]
        exact = mechanism.float()(*single)
        with torch.autocast("cpu", torch.bfloat16):
            found = {"autocast": mechanism(*half), "autocast of float32": mechanism(*single)}
        found["bf16"] = mechanism.bfloat16()(*half)
        require(found["bf16"].dtype == torch.bfloat16, f"bf16 gives {found['bf16'].dtype}")
        for what, out in found.items():
            require_finite(out, f"the output in {what} at {length} tokens")
            ratio = rms_ratio(out, exact)
            require(ratio < HALF, f"{what} is off by {ratio:.2g} (RMS ratio) at {length} tokens")


def sequences_do_not_meet(subject: MechanismSubject) -> None:
    mechanism = subject.build().double().eval()
    for length in LENGTHS:
        inputs = inputs_of(mechanism, length)
        together, alone = mechanism(*inputs), mechanism(*(x[:1] for x in inputs))
        what = f"the first of two sequences of {length} tokens is read otherwise alone"
        require_close(alone, together[:1], EXACT, what)


def gradients_are_finite_and_reach_every_parameter(subject: MechanismSubject) -> None:
    for length, size in ((1, 1.0), (67, 1.0), (67, 30.0)):
        mechanism = subject.build()
        inputs = [
            (size * x).requires_grad_() for x in qkv(mechanism.head_width, length, torch.float32)
        ]
        out = mechanism(*inputs, *_separators(mechanism, length))
        if out.requires_grad:  # that of a mechanism that skips does not
            (out * torch.randn_like(out)).sum().backward()
        when = f"at {length} tokens of size {size:g}"
        for name, x in zip("qkv", inputs, strict=True):
            if x.grad is not None:
                require_finite(x.grad, f"the gradient of {name} {when}")
        for name, parameter in mechanism.named_parameters():
            if parameter.grad is not None:
                require_finite(parameter.grad, f"the gradient of {name} {when}")
        if length > 1 and size == 1:
            require_gradients(dict(mechanism.named_parameters()), when)


def later_values_move_nothing_earlier(subject: MechanismSubject) -> None:
    mechanism = subject.build().double().eval()
    inputs = inputs_of(mechanism, LENGTHS[-1])
    whole = mechanism(*inputs)
    for end in ENDS:
        changed = _with_another_future(inputs, end)
        what = f"the future is seen: changing what follows token {end} moves earlier outputs"
        require_close(mechanism(*changed)[:, :, :end], whole[:, :, :end], EXACT, what)


def cutting_the_text_moves_nothing_earlier(subject: MechanismSubject) -> None:
    mechanism = subject.build().double().eval()
    inputs = inputs_of(mechanism, LENGTHS[-1])
    whole = mechanism(*inputs)
    for end in ENDS:
        cut = mechanism(*(x[:, :, :end] for x in inputs))
        what = f"the length is seen: cutting the text after token {end} moves earlier outputs"
        require_close(cut, whole[:, :, :end], EXACT, what)


def gradients_reach_no_later_input(subject: MechanismSubject) -> None:
    mechanism = subject.build().double().eval()
    for end in ENDS:
        inputs = [x.requires_grad_() for x in qkv(mechanism.head_width, LENGTHS[-1])]
        past = mechanism(*inputs, *_separators(mechanism, LENGTHS[-1]))[:, :, :end]
        if not past.requires_grad:
            continue
        projection = (past * torch.randn_like(past)).sum()
        grads = torch.autograd.grad(projection, inputs, allow_unused=True)
        for name, grad in zip("qkv", grads, strict=True):
            if grad is not None:
                later = grad[:, :, end:]
                what = f"the gradient of outputs up to token {end} reaches later {name}"
                require_close(later, torch.zeros_like(later), EXACT, what)


def chosen_queries_get_their_rows(subject: MechanismSubject) -> None:
    """`serve`, where it is defined, gives the rows of `forward`, in value and in gradient.

    Also with fewer key-value heads than query heads, which `forward` gets repeated.
    """
    mechanism = subject.build().double().eval()
    applies(serves(mechanism), "it does not define serve()")
    for length in LENGTHS:
        for heads in (2, 1):
            q, k, v = qkv(mechanism.head_width, length)
            inputs = [x.requires_grad_() for x in (q, k[:, :heads].clone(), v[:, :heads].clone())]
            q, k, v = inputs
            chosen = torch.rand(2, length, generator=torch.Generator().manual_seed(length)) < 0.4
            chosen[0, -1] = True
            queries = Queries(*chosen.nonzero().unbind(1))
            among_all = (x.repeat_interleave(2 // heads, 1) for x in (k, v))
            more = _separators(mechanism, length)
            expected = queries.of(mechanism(q, *among_all, *more))
            found = mechanism.serve(queries.of(q), k, v, queries, *more)
            what = f"for {len(expected)} of 2 x {length} queries and {heads} of 2 key-value heads"
            require(found.shape == expected.shape, f"serve() gives {list(found.shape)} {what}")
            require_close(found, expected, EXACT, f"serve() gives other rows than forward() {what}")
            _require_same_gradients(found, expected, inputs, f"serve() has {{}} {what}")


def grouped_queries_get_their_rows(subject: MechanismSubject) -> None:
    """`grouped`, where it is defined, gives the rows of `forward`, in value and in gradient.

    That gets key-value heads repeated for every query head.
    """
    mechanism = subject.build().double().eval()
    applies(mechanism.abilities.groups, "it does not define grouped()")
    for length in LENGTHS:
        q, k, v = qkv(mechanism.head_width, length)
        inputs = [x.requires_grad_() for x in (torch.cat([q, q.roll(1, 3)], 1), k, v)]
        q, k, v = inputs
        expected = mechanism(q, *(x.repeat_interleave(2, 1) for x in (k, v)))
        found = mechanism.grouped(q, k, v)
        what = f"of {length} tokens, 4 heads and 2 key-value heads"
        require_tensor(found, expected.shape, v, f"the output of grouped() {what}")
        require_close(found, expected, EXACT, f"grouped() gives other rows than forward() {what}")
        _require_same_gradients(found, expected, inputs, f"grouped() has {{}} {what}")


def _require_same_gradients(
    found: Tensor, expected: Tensor, inputs: list[Tensor], words: str
) -> None:
    """Of a random projection, for q, k and v; `words` has a place for what is wrong."""
    if not expected.requires_grad:
        return
    weight = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((x * weight).sum(), inputs, materialize_grads=True)
        for x in (found, expected)
    )
    for name, one, other in zip("qkv", ours, theirs, strict=True):
        require_close(one, other, EXACT, words.format(f"another gradient of {name}"))


def continued_text_gets_its_rows(subject: MechanismSubject) -> None:
    """`decode`, `new_memory`, `state_of` and `resume`, where defined, give the rows of `forward`.

    Rows of a batch stand at different positions, some get nothing in a piece, and others are
    padded; also with fewer key-value heads than query heads, which `forward` gets repeated.
    """
    mechanism = subject.build().double().eval()
    continues = decodes(mechanism) or recurs(mechanism) or remembers(mechanism)
    applies(continues, "it defines none of decode(), new_memory() and state_of()")
    q, k, v, *more = inputs_of(mechanism, LENGTHS[-1])
    for heads in (2, 1):
        k, v = k[:, :heads], v[:, :heads]
        expected = mechanism(q, *(x.repeat_interleave(2 // heads, 1) for x in (k, v)), *more)
        for pieces in CONTINUED:
            with torch.no_grad():
                found = read_in_pieces(mechanism, q, k, v, pieces, *more)
            for row, counts in enumerate(zip(*pieces, strict=True)):
                end = sum(counts)
                what = (
                    f"where a text is continued, {_continued_by(mechanism)} gives other rows than "
                    f"forward(), in pieces of {list(counts)}"
                )
                require_close(found[row, :, :end], expected[row, :, :end], EXACT, what)


def _continued_by(mechanism: Mechanism) -> str:
    """The calls that continue a text."""
    if recurs(mechanism):
        return "resume() after state_of()"
    return "new_memory()" if remembers(mechanism) else "decode()"


def kicked_momenta_see_no_later_token(subject: MechanismSubject) -> None:
    """`kick`, where it is defined, through three layers: in value, by truncation, in gradient."""
    mechanism = subject.build().double().eval()
    applies(carries(mechanism), "it does not define kick()")

    def carried(inputs: list[Tensor]) -> Tensor:
        more = inputs[3:]
        momentum = None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return cast(Tensor, mechanism(q, k, v, *more))

        for layer in range(3):
            q, _, v = (x.roll(layer, 3) for x in inputs[:3])
            momentum = mechanism.kick(q, v, momentum, layer, attend)
        require(
            getattr(momentum, "shape", None) == inputs[2].shape,
            f"kick() gives {described(momentum)}; {list(inputs[2].shape)} is needed",
        )
        assert momentum is not None
        return momentum

    floats = [x.requires_grad_() for x in qkv(mechanism.head_width, LENGTHS[-1])]
    inputs = [*floats, *_separators(mechanism, LENGTHS[-1])]
    whole = carried(inputs)
    for end in ENDS:
        changed = _with_another_future(inputs, end)
        what = f"kick() sees the future: changing what follows token {end} moves earlier momenta"
        require_close(carried(changed)[:, :, :end], whole[:, :, :end], EXACT, what)
        cut = carried([x[:, :, :end] for x in inputs])
        what = f"kick() sees the length: cutting the text after token {end} moves earlier momenta"
        require_close(cut, whole[:, :, :end], EXACT, what)
        past = whole[:, :, :end].square().sum()
        grads = torch.autograd.grad(past, floats, retain_graph=True, materialize_grads=True)
        for name, grad in zip("qkv", grads, strict=True):
            later = grad[:, :, end:]
            what = f"the gradient of momenta up to token {end} reaches later {name}"
            require_close(later, torch.zeros_like(later), EXACT, what)


def evaluation_is_deterministic(subject: MechanismSubject) -> None:
    mechanism = subject.build().eval()
    inputs = inputs_of(mechanism, 67, torch.float32)
    others = inputs_of(mechanism, 20, torch.float32)
    require_same_again(lambda: mechanism(*inputs), lambda: mechanism(*others), "forward()")


def macs_are_a_price_of_the_position(subject: MechanismSubject) -> None:
    mechanism = subject.build()
    position = torch.arange(40.0)
    try:
        require_prices(mechanism, position)
    except UsageError as error:
        raise Broken(str(error).removeprefix("mechanisms: ")) from None
    macs = macs_at(mechanism, position)
    alone = torch.cat([macs_at(mechanism, position[t : t + 1]) for t in range(40)])
    require_close(alone, macs, 0.0, "macs of a position depends on the positions beside it")


def nominal_cost_is_a_number(subject: MechanismSubject) -> None:
    try:
        require_price(subject.build().nominal_cost, "nominal_cost")
    except UsageError as error:
        raise Broken(str(error)) from None


def checkpoint_round_trip_changes_nothing(subject: MechanismSubject) -> None:
    """Saved after a pass in training, loaded into one that was built from another seed."""
    saved, loaded = subject.build(seed=1), subject.build(seed=2)
    inputs = inputs_of(saved, 67, torch.float32)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        saved(*inputs)
    loaded.load_state_dict(load(save(_contiguous(saved))))
    require(
        torch.equal(saved.eval()(*inputs), loaded.eval()(*inputs)),
        "a loaded checkpoint gives other outputs: is a tensor neither parameter nor buffer?",
    )


def _contiguous(mechanism: Mechanism) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in mechanism.state_dict().items()}


CLAUSES = (
    output_has_the_shape_and_dtype_of_v,
    what_is_learned_is_registered,
    training_mixes_no_tokens,
    float32_agrees_with_float64,
    half_precision_agrees_with_float32,
    sequences_do_not_meet,
    gradients_are_finite_and_reach_every_parameter,
    later_values_move_nothing_earlier,
    cutting_the_text_moves_nothing_earlier,
    gradients_reach_no_later_input,
    chosen_queries_get_their_rows,
    grouped_queries_get_their_rows,
    continued_text_gets_its_rows,
    kicked_momenta_see_no_later_token,
    evaluation_is_deterministic,
    macs_are_a_price_of_the_position,
    nominal_cost_is_a_number,
    checkpoint_round_trip_changes_nothing,
)
