"""Hard routes: every token runs its own mechanism and no other.

K and V are those of all tokens, since any later token may need them; what is saved is the work of
the queries. The result is that of running every mechanism on all tokens and weighing them by
one-hot weights, in value and in gradient.

Which way each mechanism then runs is a matter of the clock (`pyro_meta.attention.ways`).

Where every group of heads has a route of its own, each group of each sequence is a sequence here
(`folded`), so that one dispatch serves both.

Shapes: B sequences, T tokens, H query heads, G key-value heads, d head width, D = H d.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

import torch
from torch import Tensor

from pyro_meta.attention.inputs import Inputs
from pyro_meta.attention.mechanisms import Full, Linear, Mechanism, Window
from pyro_meta.attention.ops.backend import uses_triton
from pyro_meta.attention.ways import attend, parts

ONE_FOR_ALL = "one_for_all"  # the attribute of choices that are all the same
NO_TOKEN = -1
"""The choice of a place that holds no token: padding at the end of a shorter sequence."""


AttentionCall = tuple[Sequence[Mechanism], Tensor, Tensor, Inputs]
"""The arguments of one call of `routed_attention`."""
_recorded: ContextVar[list[AttentionCall] | None] = ContextVar("recorded", default=None)


@contextmanager
def recorded_attention() -> Iterator[list[AttentionCall]]:
    """What layers hand to `routed_attention` meanwhile, in order."""
    calls: list[AttentionCall] = []
    token = _recorded.set(calls)
    try:
        yield calls
    finally:
        _recorded.reset(token)


def routed_attention(
    mechanisms: Sequence[Mechanism], gain: Tensor, choice: Tensor, inputs: Inputs
) -> Tensor:
    """g_k A_k(q, k, v) of the mechanism k that each token has chosen, [B, T, D].

    Parameters
    ----------
    mechanisms
        Those that may be chosen. One that nobody chose is not run.
    gain
        [K, D], one factor per channel; of n groups of heads, that are sequences here, [K, n D].
    choice
        [B, T], integer: the mechanism of every token. `NO_TOKEN` where there is none: such a place
        costs nothing and gets zeros. It must follow the tokens of its sequence, which would see its
        key otherwise.
    inputs
        Queries, keys and values of all tokens.

    Raises
    ------
    ValueError
        A choice that is neither a mechanism nor `NO_TOKEN`; but in the kernels of a GPU, which give
        such a token zeros.
    """
    calls = _recorded.get()
    if calls is not None:
        calls.append((mechanisms, gain, choice, inputs))
    B, H, T, d = inputs.q.shape
    only = _only(choice)
    if only is None and uses_triton(inputs.q.device.type):
        in_kernels = _in_kernels(mechanisms, gain, choice, inputs)
        if in_kernels is not None:
            return in_kernels
    if only is None:
        owned = _owned(choice.flatten(), len(mechanisms))
    elif not 0 <= only < len(mechanisms):
        raise _no_mechanism(only, only, len(mechanisms))
    else:
        return _by_all(mechanisms[only], gain[only], inputs)
    served = sum(map(len, owned))
    for index, own in enumerate(owned):
        if len(own) == B * T:
            return _by_all(mechanisms[index], gain[index], inputs)
    out: Tensor | None = None
    for own, rows, kind in parts(mechanisms, choice, owned, inputs):
        rows = gained_by_kind(gain, rows.reshape(len(own), H * d), own, kind, T)
        if len(own) == B * T:  # they are sorted
            return rows.view(B, T, H * d)
        if out is None:
            out = (torch.empty if served == B * T else torch.zeros)(
                B * T, H * d, dtype=rows.dtype, device=rows.device
            )
        dtype = torch.promote_types(out.dtype, rows.dtype)
        out = out.to(dtype).index_copy_(0, own, rows.to(dtype))
    if out is None:  # no token at all
        return inputs.v.new_zeros(B, T, H * d)
    return out.view(B, T, H * d)


def _by_all(mechanism: Mechanism, gain: Tensor, inputs: Inputs) -> Tensor:
    """What all tokens attend to by one mechanism, [B, T, D]."""
    B, H, T, d = inputs.q.shape
    everyone = torch.arange(B * T, device=gain.device)
    rows = attend(mechanism, inputs.read_by(mechanism), everyone)
    return gained(gain, rows.reshape(B * T, H * d), everyone, T).view(B, T, H * d)


def gained_by_kind(
    gain: Tensor, rows: Tensor, own: Tensor, kind: int | Tensor, length: int
) -> Tensor:
    """Rows [N, D] times the gain, of [K, D] or [K, n D], of the mechanism of all, or of each."""
    if isinstance(kind, int):
        return gained(gain[kind], rows, own, length)
    by_group = gain.view(len(gain), -1, rows.shape[1])
    groups = by_group.shape[1]
    if groups > 1:
        group = torch.div(own, length, rounding_mode="floor") % groups
        kind = kind * groups + group
    return by_group.flatten(0, 1).index_select(0, kind) * rows


def gained(gain: Tensor, rows: Tensor, own: Tensor, length: int) -> Tensor:
    """Rows [N, D] of tokens `own` [N] times their gain: [D], or [n D] of n groups of heads.

    Tokens are numbered through all sequences of `length`; those of n groups follow each other.
    """
    by_group = gain.view(-1, rows.shape[1])
    if len(by_group) == 1:
        return gain * rows
    group = torch.div(own, length, rounding_mode="floor") % len(by_group)
    return by_group.index_select(0, group) * rows


def folded(route: Tensor, inputs: Inputs, groups: int) -> tuple[Tensor, Inputs]:
    """Weights [B, T, n, K] or choices [B, T, n] and inputs, with each group as a sequence.

    Sequence b n + g is that of group g of sequence b.
    """
    if groups == 1:
        return route, inputs
    B, _, T, _ = inputs.v.shape
    if not is_choice(route):
        route = route.expand(B, T, groups, route.shape[-1]).transpose(1, 2).flatten(0, 1)
    elif (only := _only(route)) is not None:
        route = one_for_all(route.new_empty(B * groups, T), only)
    else:
        route = route.transpose(1, 2).flatten(0, 1)
    return route, inputs.folded(groups)


def unfolded(mixed: Tensor, groups: int) -> Tensor:
    """What the sequences of groups attend to, [B n, T, D / n], as [B, T, D]."""
    if groups == 1:
        return mixed
    return mixed.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2)


def one_for_all(like: Tensor, index: int) -> Tensor:
    """Choices of one mechanism by every token, in the shape of `like`.

    `routed_attention` knows them as such without looking at them, so that it sorts nothing and,
    on a GPU, waits for nothing.
    """
    choice = torch.full_like(like, index)
    setattr(choice, ONE_FOR_ALL, (index, _version(choice)))
    return choice


def _only(choice: Tensor) -> int | None:
    """The mechanism of all tokens, if `one_for_all` made these choices and nobody changed them."""
    index, version = getattr(choice, ONE_FOR_ALL, (None, None))
    return index if version == _version(choice) else None


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def _in_kernels(
    mechanisms: Sequence[Mechanism], gain: Tensor, choice: Tensor, inputs: Inputs
) -> Tensor | None:
    """`routed_attention` in the kernels of `ops.triton`; None where they are not written for what
    is asked.

    Choices that are no mechanism are not looked for: a device would have to be waited for. Their
    rows are zero.
    """
    from pyro_meta.attention.ops import triton as kernels

    q, k, v, q_rotated, k_rotated, *_ = inputs
    kinds = {type(mechanism) for mechanism in mechanisms}
    is_known = kernels.knows(q, k, v) and kernels.knows(q_rotated, k_rotated, v)
    is_traced = torch.is_grad_enabled() and gain.requires_grad
    if is_traced or not is_known or not kinds <= {Full, Window, Linear}:
        return None
    B, H, T, d = q.shape
    by_group = gain.view(len(gain), -1, H * d)
    if by_group.shape[1] > 1:  # the kernels know one gain for all sequences
        out = _in_kernels(mechanisms, gain.new_ones(len(gain), H * d), choice, inputs)
        assert out is not None
        group = torch.arange(B, device=q.device) % by_group.shape[1]
        return out * by_group[choice.clamp(min=0), group[:, None]]
    choice, gain = choice.contiguous(), gain.contiguous()
    dtype = torch.promote_types(gain.dtype, v.dtype)
    out = torch.zeros(B, T, H * d, dtype=dtype, device=q.device)
    # Linear attention keeps the device busy while the host has the others sorted.
    for index, mechanism in enumerate(mechanisms):
        if isinstance(mechanism, Linear):
            kernels.linear_attention(q, k, v, (gain, choice, index, out))
    reaches = [_reach(mechanism, T) for mechanism in mechanisms]
    if any(reaches):
        sinks = [one.sinks if isinstance(one, Window) else 0 for one in mechanisms]
        kernels.softmax_attention(q_rotated, k_rotated, v, reaches, sinks, gain, choice, out)
    return out


def _reach(mechanism: Mechanism, length: int) -> int:
    """How many of the last keys a query of softmax attention sees; 0: it is another kind."""
    if isinstance(mechanism, Window):
        return min(mechanism.window, length)
    return length if isinstance(mechanism, Full) else 0


def _owned(choice: Tensor, mechanisms: int) -> list[Tensor]:
    """Which of [N] tokens chose each mechanism, ascending.

    They are sorted where a GPU is waited for: once, rather than once for each mechanism.
    """
    if choice.is_cuda:
        kinds, order = choice.sort(stable=True)
        bounds = torch.arange(mechanisms + 1, device=choice.device)
        ends = torch.searchsorted(kinds, bounds).tolist()
        owned = [order[begin:end] for begin, end in pairwise(ends)]
    else:
        owned = [(choice == index).nonzero()[:, 0] for index in range(mechanisms)]
    served = sum(map(len, owned))
    if served < len(choice) and served + int((choice == NO_TOKEN).sum()) < len(choice):
        raise _no_mechanism(int(choice.min()), int(choice.max()), mechanisms)
    return owned


def _no_mechanism(least: int, most: int, mechanisms: int) -> ValueError:
    return ValueError(
        f"choice: {least} to {most} given; 0 to {mechanisms - 1}, or {NO_TOKEN} for no token, is "
        "allowed"
    )


def is_choice(route: Tensor) -> bool:
    """Whether what a route gave are choices [B, T], integers, rather than weights [B, T, K]."""
    return not route.dtype.is_floating_point
