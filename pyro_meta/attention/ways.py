"""Which way hard routes are run, by what each is thought to cost.

A mechanism runs on all tokens, and rows of its own are taken; or on its own queries alone, which
are gathered; or the softmax mechanisms of a layer share one call with an additive mask. A sequence
whose tokens all chose one mechanism is run by it as ever, without mask or gathering, and so is a
group of heads, which is a sequence here. Sequences in which nobody chose a mechanism are not shown
to it.

Shapes: B sequences, T tokens, H query heads, G key-value heads, d head width, N own tokens, K
mechanisms.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention.inputs import Inputs
from pyro_meta.attention.mechanisms import Full, Mechanism, Window, attend_all, serves
from pyro_meta.attention.ops.backend import is_forced, masks
from pyro_meta.attention.ops.masked import masked_attention
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.prices import macs_at
from pyro_meta.attention.profile import MaskedWork, Work, current


class Part(NamedTuple):
    """What some tokens attend to."""

    own: Tensor
    """The tokens, numbered through all sequences, [N]."""
    rows: Tensor
    """[N, H, d]."""
    kind: int | Tensor
    """The mechanism that they chose, or that of each, [N]."""


def parts(
    mechanisms: Sequence[Mechanism], choice: Tensor, owned: Sequence[Tensor], inputs: Inputs
) -> Iterator[Part]:
    """Every token's rows by the mechanism that it chose, each once, in some order.

    Parameters
    ----------
    mechanisms
        K of them.
    choice
        [B, T].
    owned
        By mechanism, the tokens that chose it, ascending.
    inputs
        Of all tokens.
    """
    T = choice.shape[1]
    shares = [_Share(index, own, T) for index, own in enumerate(owned) if len(own)]
    if len(choice) > 1 and not choice.is_cuda:  # a GPU would be waited for
        for index, alone in _alone(choice, len(mechanisms)):
            read = [x.index_select(0, alone) for x in inputs.read_by(mechanisms[index])]
            tokens = (alone[:, None] * T + torch.arange(T, device=alone.device)).flatten()
            yield Part(tokens, _on_all(mechanisms[index], read), index)
            at = next(at for at, share in enumerate(shares) if share.index == index)
            shares[at] = shares[at].without(alone)
        shares = [share.where_it_is_asked(len(choice)) for share in shares if len(share.own)]
    together = _together(mechanisms, shares, inputs)
    if together:
        yield _masked(mechanisms, choice, together, inputs)
    for share in shares:
        if share not in together:
            mechanism = mechanisms[share.index]
            read = share.of(inputs.read_by(mechanism))
            yield Part(share.own, attend(mechanism, read, share.local), share.index)


class _Share:
    """The tokens of a mechanism, and the sequences that it is shown.

    Attributes
    ----------
    index
        The mechanism's.
    own
        Tokens, ascending, [N].
    sequences
        Those in which it is asked; None: all.
    local
        The tokens, numbered through those sequences alone.
    """

    def __init__(
        self, index: int, own: Tensor, length: int, sequences: Tensor | None = None
    ) -> None:
        self.index, self.own, self.length, self.sequences = index, own, length, sequences
        self.local = own if sequences is None else _numbered(own, sequences, length)

    def without(self, sequences: Tensor) -> "_Share":
        """But for the tokens of some sequences."""
        of = torch.div(self.own, self.length, rounding_mode="floor")
        return _Share(self.index, self.own[~torch.isin(of, sequences)], self.length)

    def where_it_is_asked(self, count: int) -> "_Share":
        """The same, which is shown no more of `count` sequences than it has tokens in."""
        asked = torch.div(self.own, self.length, rounding_mode="floor").unique_consecutive()
        if len(asked) == count:
            return self
        return _Share(self.index, self.own, self.length, asked)

    def of(self, read: Sequence[Tensor]) -> list[Tensor]:
        """What it is shown of tensors [B, ...]."""
        if self.sequences is None:
            return list(read)
        return [x.index_select(0, self.sequences) for x in read]

    def queries(self) -> Queries:
        return _queries(self.local, self.length)


def _numbered(own: Tensor, sequences: Tensor, length: int) -> Tensor:
    """Tokens numbered through `sequences` alone, which hold all of them."""
    row = torch.searchsorted(sequences, torch.div(own, length, rounding_mode="floor"))
    return row * length + own % length


def _queries(own: Tensor, length: int) -> Queries:
    return Queries(torch.div(own, length, rounding_mode="floor"), own % length)


def _alone(choice: Tensor, mechanisms: int) -> Iterator[tuple[int, Tensor]]:
    """Each mechanism that is all that some sequences chose, and those sequences."""
    B, T = choice.shape
    row = torch.arange(B, device=choice.device)[:, None] * (mechanisms + 1)
    counts = torch.bincount((row + choice + 1).flatten(), minlength=B * (mechanisms + 1))
    is_alone = counts.view(B, -1)[:, 1:] == T
    for index in is_alone.any(0).nonzero()[:, 0].tolist():
        yield index, is_alone[:, index].nonzero()[:, 0]


def _together(
    mechanisms: Sequence[Mechanism], shares: Sequence[_Share], inputs: Inputs
) -> list[_Share]:
    """The shares that one masked call serves sooner than each is served by itself."""
    softmax = [one for one in shares if type(mechanisms[one.index]) in (Full, Window)]
    if masks():
        return softmax
    if is_forced() or len(softmax) < 2 or inputs.q.is_cuda:
        return []
    profile, with_gradients = current(), torch.is_grad_enabled()
    B, H, T, d = inputs.q.shape
    apart = profile.placed_macs * sum(len(share.own) for share in softmax) * H * d
    for share in softmax:
        mechanism = mechanisms[share.index]
        q = inputs.q if share.sequences is None else inputs.q[: len(share.sequences)]
        work = Work.of(mechanism, share.queries(), q, profile.gathered_block)
        least = min(work.everyone, profile.serving(work, with_gradients))
        apart += profile.unit(mechanism) * least
    shown = _shown(softmax)
    masked = MaskedWork.of(B if shown is None else len(shown), H, T, d)
    return softmax if profile.masking(masked, with_gradients) < apart else []


def _shown(shares: Sequence[_Share]) -> Tensor | None:
    """The sequences that some shares have tokens in, ascending; None: all."""
    each = [share.sequences for share in shares]
    known = [one for one in each if one is not None]
    return torch.cat(known).unique() if len(known) == len(each) else None


def _masked(
    mechanisms: Sequence[Mechanism], choice: Tensor, shares: Sequence[_Share], inputs: Inputs
) -> Part:
    """What the tokens of some softmax mechanisms attend to, in one call."""
    T = choice.shape[1]
    ours = [mechanisms[share.index] for share in shares]
    reaches = [min(one.window, T) if isinstance(one, Window) else T for one in ours]
    sinks = [one.sinks if isinstance(one, Window) else 0 for one in ours]
    # A token that chose something else looks at itself alone, and its row is not read.
    kinds = choice.new_full((len(mechanisms) + 1,), len(shares))
    kinds[[share.index for share in shares]] = torch.arange(len(shares), device=choice.device)
    q, k, v = inputs.read_by(ours[0])
    shown = _shown(shares)
    if shown is not None:
        q, k, v, choice = (x.index_select(0, shown) for x in (q, k, v, choice))
    rows = masked_attention(q, k, v, kinds[choice], (*reaches, 1), (*sinks, 0))
    rows = rows.transpose(1, 2).flatten(0, 1)
    if sum(len(share.own) for share in shares) == len(rows) and shown is None:
        return Part(torch.arange(len(rows), device=rows.device), rows, choice.flatten())
    if len(shares) == 1:
        own, kind = shares[0].own, shares[0].index
    else:
        own = torch.cat([share.own for share in shares]).sort().values
        kind = None
    local = own if shown is None else _numbered(own, shown, T)
    if len(local) < len(rows):
        rows = rows.index_select(0, local)
    return Part(own, rows, choice.flatten()[local] if kind is None else kind)


def attend(mechanism: Mechanism, read: Sequence[Tensor], own: Tensor) -> Tensor:
    """Rows [N, H, d] of `mechanism` for its `own` tokens [N]: ascending indices into B T.

    `read` is what it reads of all tokens, see `Inputs.read_by`.

    They alone are served where the mechanism knows how to and it pays; else it runs on all tokens.
    """
    q, k, v, *more = read
    B, _, T, _ = q.shape
    if len(own) < B * T:
        if serves(mechanism):
            queries = _queries(own, T)
            if is_forced() or pays(mechanism, queries, q):
                return mechanism.serve(queries.of(q), k, v, queries, *more)
        else:
            _say_that_nothing_is_saved(type(mechanism).__module__, type(mechanism).__name__)
    rows = _on_all(mechanism, read)
    return rows if len(own) == B * T else rows.index_select(0, own)


def _on_all(mechanism: Mechanism, read: Sequence[Tensor]) -> Tensor:
    """Rows [B T, H, d] of a mechanism that runs on all tokens."""
    return attend_all(mechanism, *read).transpose(1, 2).flatten(0, 1)


def pays(mechanism: Mechanism, queries: Queries, q: Tensor) -> bool:
    """Whether serving `queries` alone is thought to be faster than running on all of q.

    On a CPU the work of both ways (`Work`) is weighed by the current `Profile`: gathered queries
    cost more by MAC, each sequence costs something, and what is done on keys and values is done
    either way. So it pays where few queries, or only late ones, are served, and where a mechanism
    run on all tokens meets many keys in vain. On CUDA what is saved is held against the time in
    which kernels are launched.
    """
    profile = current()
    if q.is_cuda:
        B, H, T, _ = q.shape
        sample = torch.linspace(0, T - 1, 64, device=q.device).round()
        everyone = B * H * T * float(macs_at(mechanism, sample).mean())
        saved = 1 - len(queries.position) / (B * T)
        return (1 - mechanism.of_keys) * saved * everyone > profile.launch_macs
    work = Work.of(mechanism, queries, q, profile.gathered_block)
    return profile.serving(work, with_gradients=torch.is_grad_enabled()) < work.everyone


@cache
def _say_that_nothing_is_saved(module: str, name: str) -> None:
    warnings.warn(
        f"{module}.{name} does not define serve(q, k, v, queries) beside its forward: where routes "
        "are hard it runs on all tokens, and saves no time",
        UserWarning,
        stacklevel=2,
    )
