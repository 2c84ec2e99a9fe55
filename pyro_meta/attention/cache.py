"""What is kept of a text that has been read, so that its next tokens pay for themselves alone.

Every layer keeps K and V of all tokens, since any later token may look back at them, and the
running state of the mechanisms that have one. Then a new token pays for its own route only: `full`
reads all keys, `window` the last W and its sinks, `linear` its state, which is formed when a token
asks for it. Memory is not saved: keys and values are those of an ordinary transformer.

What each mechanism can do is decided when a cache is made. A single new token of a text asks the
one that it chose, and no other; those of all rows that chose softmax attention share few calls
(`pyro_meta.attention.newest`).

A momentum that a mechanism carries flows through depth, of each token by itself. It is kept where a
later token looks back at it, in place of values; and in a cache of its own what later kicks read.

Rows of a batch may differ in length. Each stands at the front of its own row, so that what is
behind its last token lies in the future, where no causal mechanism looks. For the same reason new
keys and values may be written at once, while new states and lengths are taken over only when all
layers have read (`commit`): whatever is raised on the way, the text so far is as it was.

Shapes: B rows, T tokens read before, S new ones, H query heads, G key-value heads, d head width,
D = H d, N queries.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pyro_meta.attention.dispatch import (
    NO_TOKEN,
    folded,
    gained,
    gained_by_kind,
    is_choice,
    routed_attention,
    unfolded,
)
from pyro_meta.attention.inputs import Inputs, names_read_by
from pyro_meta.attention.mechanisms import (
    Mechanism,
    attend_all,
    carries,
    decodes,
    recurs,
    remembers,
    serves,
)
from pyro_meta.attention.newest import attend_newest, is_softmax
from pyro_meta.attention.ops.heads import with_heads
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.running_state import RunningState
from pyro_meta.attention.span import Growing, Span


class LayerCache:
    """What one layer keeps of the text so far.

    Parameters
    ----------
    mechanisms
        Those of the layer, in the order of choices.
    rows
        B.
    kicks
        Likewise of what the kicks read, in a layer with a mechanism that carries a momentum.
    groups
        n, how many groups of heads have a route of their own: each is kept as a row of its own.
    """

    def __init__(
        self,
        mechanisms: Sequence[Mechanism],
        rows: int,
        kicks: "LayerCache | None" = None,
        groups: int = 1,
    ) -> None:
        self.mechanisms, self.kicks, self.groups = list(mechanisms), kicks, groups
        rows = rows * groups
        self._states = {
            index: RunningState(one) for index, one in enumerate(mechanisms) if recurs(one)
        }
        self._names = [names_read_by(one) for one in mechanisms]
        names = {name for one in mechanisms for name in _read_again(one)}
        self.kept = {name: Growing(rows) for name in Inputs._fields if name in names}
        self._memories = {
            index: one.new_memory(rows) for index, one in enumerate(mechanisms) if remembers(one)
        }
        self._decodes = [decodes(one) for one in mechanisms]
        self._serves = [serves(one) for one in mechanisms]
        self._softmax = {index for index, one in enumerate(mechanisms) if is_softmax(one)}

    def extend(
        self,
        gain: Tensor,
        route: Tensor,
        inputs: Inputs,
        span: Span,
        begin: Callable[[Inputs], Tensor],
    ) -> Tensor:
        """Read S new tokens, and attend as they choose: sum_k alpha_k g_k A_k, [B, S, D].

        They belong to the text only after `commit`.

        Parameters
        ----------
        gain
            [K, D], one factor per channel.
        route
            Choices [B, S], or weights [B, S, K] or broadcastable; of n groups of heads [B, S, n] or
            [B, S, n, K].
        inputs
            Queries, keys and values of the new tokens.
        span
            Where they stand. Padding gets any finite number.
        begin
            Attends where nothing was read before, as in training.
        """
        whole = inputs
        route, inputs = folded(route, inputs, self.groups)
        span = span.folded(self.groups)
        for name, growing in self.kept.items():
            x = getattr(inputs, name)
            if x is not None:
                growing.write(x, span)
        for index, memory in self._memories.items():
            _, k, v, *more = self._seen_by(index, inputs, span.end)
            memory.take(k, v, span, *more)
        if span.is_first:
            mixed = begin(whole)
        elif is_choice(route):
            mixed = unfolded(self._routed(gain, route, inputs, span), self.groups)
        else:
            mixed = unfolded(self._mixed(gain, route, inputs, span), self.groups)
        if self._states:
            is_token = span.is_token(inputs.v.device)
            for state in self._states.values():
                _, k, v, *_ = inputs.read_by(state.mechanism)
                state.take(k, v, is_token)
        return mixed

    def shown(self, index: int, inputs: Inputs, span: Span) -> Tensor:
        """What a mechanism gives every new token, [B, S, D], before they have chosen.

        Nothing belongs to the text by this; `extend` reads the same tokens again. Of a mechanism
        that looks back at keys.
        """
        inputs, span = inputs.folded(self.groups), span.folded(self.groups)
        for name, growing in self.kept.items():
            if (x := getattr(inputs, name)) is not None:
                growing.write(x, span)
        return unfolded(self._of_all(index, inputs, span), self.groups)

    def attend_all(self, q: Tensor, k: Tensor, v: Tensor, *more: Tensor, span: Span) -> Tensor:
        """What every new token attends to by the only mechanism, [B, H, S, d], as `extend`.

        q [B, H, S, d], k and v [B, G, S, d], and behind them whatever else it reads.
        """
        B, H, S, d = q.shape
        choice = torch.zeros(B, S, dtype=torch.long, device=q.device)
        is_token = span.is_token(q.device)
        if is_token is not None:
            choice = choice.masked_fill(~is_token, NO_TOKEN)
        gain = q.new_ones(1, H * d)
        begin = partial(routed_attention, self.mechanisms, gain, choice)
        is_separator = more[0] if more else None
        inputs = Inputs(q, k, v, q, k, is_separator, momentum=with_heads(v, H))
        rows = self.extend(gain, choice, inputs, span, begin)
        return rows.view(B, S, H, d).transpose(1, 2)

    def commit(self) -> None:
        """What was read last belongs to the text from now on."""
        for state in self._states.values():
            state.commit()
        if self.kicks is not None:
            self.kicks.commit()
        for memory in self._memories.values():
            memory.commit()

    def replace(self, rows: list[int], other: "LayerCache", length: int, count: int) -> None:
        """Put another's rows, of at most `length` tokens, in place of `rows` among `count`."""
        if self.kicks is not None and other.kicks is not None:
            self.kicks.replace(rows, other.kicks, length, count)
        rows = [row * self.groups + group for row in rows for group in range(self.groups)]
        count *= self.groups
        for name, growing in self.kept.items():
            growing.replace(rows, other.kept[name], length)
        for index, memory in self._memories.items():
            memory.replace(rows, other._memories[index])
        for index, state in self._states.items():
            state.replace(rows, other._states[index], count)

    def _routed(self, gain: Tensor, choice: Tensor, inputs: Inputs, span: Span) -> Tensor:
        """Every token attends by the mechanism that it chose, and by no other."""
        B, H, S, d = inputs.q.shape
        chosen = choice.tolist()
        if S == 1:
            return self._of_newest(gain, [row[0] for row in chosen], inputs, span)
        owned: list[list[int]] = [[] for _ in self.mechanisms]
        tokens = [(row, place) for row in span.rows for place in range(span.counts[row])]
        for number, (row, place) in enumerate(tokens):
            index = chosen[row][place]
            self._require_choice(index)
            if index != NO_TOKEN:
                owned[index].append(number)
        dtype = torch.promote_types(gain.dtype, inputs.v.dtype)
        out = inputs.v.new_zeros(B * S, H * d, dtype=dtype)
        for index, own in enumerate(owned):
            if len(own) == B * S:
                return self._of_one(gain, index, inputs, span)
            if own:
                rows = self._rows(index, inputs, span, own).flatten(1)
                where = [tokens[number][0] * S + tokens[number][1] for number in own]
                numbers = torch.tensor(where, device=rows.device)
                out[where] = gained(gain[index], rows, numbers, S).to(dtype)
        return out.view(B, S, H * d)

    def _of_newest(self, gain: Tensor, chosen: list[int], inputs: Inputs, span: Span) -> Tensor:
        """One new token in each row, [B, 1, D]; rows that chose alike are run together."""
        B, H, _, d = inputs.q.shape
        if span.is_full and chosen.count(chosen[0]) == B and chosen[0] != NO_TOKEN:
            return self._of_one(gain, chosen[0], inputs, span)
        softmax: list[int] = []
        others: dict[int, list[int]] = {}
        for row in span.rows:
            index = chosen[row]
            self._require_choice(index)
            if index in self._softmax:
                softmax.append(row)
            elif index != NO_TOKEN:
                others.setdefault(index, []).append(row)
        parts = [self._of_softmax(softmax, chosen, inputs, span)] if softmax else []
        for index, own in others.items():
            numbers = own if span.is_full else [span.rows.index(row) for row in own]
            parts.append(self._rows(index, inputs, span, numbers))
        served = sum(others.values(), softmax)
        if not served:
            return inputs.v.new_zeros(B, 1, H * d)
        rows = (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)
        kinds = torch.tensor([chosen[row] for row in served], device=rows.device)
        where = torch.tensor(served, device=rows.device)
        rows = gained_by_kind(gain, rows, where, kinds, 1)
        if served != list(range(B)):
            rows = rows.new_zeros(B, H * d).index_copy_(0, where, rows)
        return rows[:, None]

    def _of_softmax(self, rows: list[int], chosen: list[int], inputs: Inputs, span: Span) -> Tensor:
        """What the newest tokens of `rows` see by full attention and windows, [N, H, d]."""
        q, k, v, *_ = self._seen_by(chosen[rows[0]], inputs, span.end)
        mechanisms = [self.mechanisms[chosen[row]] for row in rows]
        return attend_newest(mechanisms, q, k, v, rows, [span.ends[row] for row in rows])

    def _of_one(self, gain: Tensor, index: int, inputs: Inputs, span: Span) -> Tensor:
        """What every token attends to, [B, S, D], where all are real and chose one mechanism."""
        self._require_choice(index)
        B, H, S, d = inputs.q.shape
        rows = self._rows(index, inputs, span, None).flatten(1)
        if gain.shape[1] == H * d:
            return (gain[index] * rows).view(B, S, H * d)
        everyone = torch.arange(B * S, device=rows.device)
        return gained(gain[index], rows, everyone, S).view(B, S, H * d)

    def _require_choice(self, index: int) -> None:
        if not NO_TOKEN <= index < len(self.mechanisms):
            raise ValueError(f"choice: {index} given; 0 to {len(self.mechanisms) - 1} is allowed")

    def _mixed(self, gain: Tensor, weights: Tensor, inputs: Inputs, span: Span) -> Tensor:
        """Every token attends by all mechanisms, weighed."""
        B, H, S, d = inputs.q.shape
        parts = []
        for index in range(len(self.mechanisms)):
            rows = self._of_all(index, inputs, span).view(B * S, H * d)
            rows = gained(gain[index], rows, torch.arange(B * S, device=rows.device), S)
            parts.append(weights[..., index, None] * rows.view(B, S, H * d))
        return torch.stack(parts).sum(0)

    def _of_all(self, index: int, inputs: Inputs, span: Span) -> Tensor:
        """What a mechanism gives every new token, [B, S, H d], and zeros where there is none."""
        B, H, S, d = inputs.q.shape
        rows = self._rows(index, inputs, span, None).flatten(1)
        if not span.is_full:
            row, place = span.numbered.to(rows.device).unbind(1)
            rows = rows.new_zeros(B * S, H * d).index_copy_(0, row * S + place, rows)
        return rows.view(B, S, H * d)

    def _rows(self, index: int, inputs: Inputs, span: Span, own: list[int] | None) -> Tensor:
        """Rows [N, H, d] of a mechanism for its `own` tokens: numbers among all, or all."""
        if index in self._states:
            return self._resumed(index, inputs, span, own)
        memory = self._memories.get(index)
        if memory is not None:
            q, k, v, *_ = self._seen_by(index, inputs, span.end)
            queries = _queries(span, own, q.device)
            return memory.attend(_rows_of(q, span, own), k, v, queries)
        if span.size == 1 and self._decodes[index]:
            return self._decoded(index, inputs, span, own)
        return self._looked_up(index, inputs, span, own)

    def _resumed(self, index: int, inputs: Inputs, span: Span, own: list[int] | None) -> Tensor:
        """Rows of a mechanism that has a state."""
        mechanism, past = self.mechanisms[index], self._states[index].now()
        assert past is not None
        q, k, v, *_ = inputs.read_by(mechanism)
        if span.size == 1:  # own tokens are own rows
            rows = span.rows if own is None else [span.rows[number] for number in own]
            if len(rows) < len(q):
                q, k, v, past = q[rows], k[rows], v[rows], past[rows]
            return mechanism.resume(q, k, v, past)[:, :, 0]
        out = mechanism.resume(q, k, v, past).transpose(1, 2)  # [B, S, H, d]
        if own is None and span.is_full:
            return out.flatten(0, 1)
        row, place = _chosen(span, own).to(q.device).unbind(1)
        return out[row, place]

    def _decoded(self, index: int, inputs: Inputs, span: Span, own: list[int] | None) -> Tensor:
        """Rows of a mechanism that looks back, one new token in each row."""
        mechanism = self.mechanisms[index]
        q, k, v, *_ = self._seen_by(index, inputs, span.end)
        if own is None and span.is_aligned and span.is_full:
            return mechanism.decode(q, k, v)[:, :, 0]
        rows = span.rows if own is None else [span.rows[number] for number in own]
        if index in self._softmax:
            ends = [span.ends[row] for row in rows]
            return attend_newest([mechanism] * len(rows), q, k, v, rows, ends)
        parts = []
        for row in rows:  # one by one: to gather rows is to copy all their keys
            one, end = slice(row, row + 1), span.ends[row]
            parts.append(mechanism.decode(q[one], k[one, :, :end], v[one, :, :end])[:, :, 0])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _looked_up(self, index: int, inputs: Inputs, span: Span, own: list[int] | None) -> Tensor:
        """Rows of a mechanism that is asked again, for its own queries if it serves them."""
        mechanism = self.mechanisms[index]
        q, k, v, *more = self._seen_by(index, inputs, span.end)
        queries = _queries(span, own, q.device)
        if self._serves[index]:
            return mechanism.serve(_rows_of(q, span, own), k, v, queries, *more)
        q = self.kept[self._names[index].q].read(span.end)
        return queries.of(attend_all(mechanism, q, k, v, *more))

    def _seen_by(self, index: int, inputs: Inputs, end: int) -> tuple[Tensor, ...]:
        """New queries, all keys and values, and what else a mechanism reads, as it reads them."""
        names, reads_more = self._names[index], self.mechanisms[index].reads_separators
        k, v = self.kept[names.k].read(end), self.kept[names.v].read(end)
        if names.v == "momentum":
            k = with_heads(k, v.shape[1])  # momenta are of query heads
        is_told = reads_more and inputs.is_separator is not None
        others = [self.kept["is_separator"].read(end)] if is_told else []
        return getattr(inputs, names.q), k, v, *others


class Cache:
    """What a transformer keeps of texts that it has read, in B rows.

    `Transformer.new_cache` makes one.

    Parameters
    ----------
    layers
        The mechanisms of every layer.
    rows
        B.
    keeps_features
        Whether the features of all tokens are kept for the route, which is then asked about whole
        texts again and again. Needed where the route of a token depends on the features of others.
    groups
        How many groups of heads have a route of their own.

    Attributes
    ----------
    lengths
        Tokens read in each row.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Mechanism]],
        rows: int,
        keeps_features: bool,
        groups: int = 1,
    ) -> None:
        self.layers = [_layer_cache(mechanisms, rows, groups) for mechanisms in layers]
        self.lengths = [0] * rows
        self.keeps_features = keeps_features
        self._is_whole = True
        self._tokens = Growing(rows)  # [B, 1, T, 1]
        self._features = [  # state, normed: [B, 1, T, D]
            (Growing(rows), Growing(rows)) for _ in layers
        ]

    def remember(
        self, layer: int, tokens: Tensor, state: Tensor, normed: Tensor, span: Span
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T + S], state and normed [B, T + S, D] of all, those of new ones given."""
        pairs = zip(
            (self._tokens, *self._features[layer]), (tokens[..., None], state, normed), strict=True
        )
        for growing, x in pairs:
            growing.write(x[:, None], span)
        states, norms = (growing.read(span.end)[:, 0] for growing in self._features[layer])
        return self._tokens.read(span.end)[:, 0, :, 0], states, norms

    def span(self, size: int, lengths: Sequence[int] | None = None) -> Span:
        """Where S new tokens in every row stand; `lengths` [B] of them are no padding.

        Raises
        ------
        ValueError
            Lengths that do not fit.
        RuntimeError
            `replace` or `commit` was interrupted.
        """
        if not self._is_whole:
            raise RuntimeError(
                "the cache was interrupted while its texts were exchanged; read them into a new one"
            )
        counts = [size] * len(self.lengths) if lengths is None else list(lengths)
        if len(counts) != len(self.lengths) or not all(0 <= count <= size for count in counts):
            raise ValueError(
                f"lengths: {counts} given; {len(self.lengths)} of 0 to {size} are needed"
            )
        return Span(self.lengths, counts, size)

    def commit(self, span: Span) -> None:
        """The new tokens of a span, which all layers have read, belong to the text from now on."""
        self._is_whole = False
        for layer in self.layers:
            layer.commit()
        self.lengths = span.ends
        self._is_whole = True

    def replace(self, rows: list[int], other: "Cache") -> None:
        """Put the texts of another cache, of as many rows, in place of `rows`."""
        length = max(other.lengths)
        self._is_whole = False
        if self.keeps_features:
            self._tokens.replace(rows, other._tokens, length)
            for ours, theirs in zip(self._features, other._features, strict=True):
                for mine, its in zip(ours, theirs, strict=True):
                    mine.replace(rows, its, length)
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.replace(rows, new, length, len(self.lengths))
        for row, count in zip(rows, other.lengths, strict=True):
            self.lengths[row] = count
        self._is_whole = True


def _layer_cache(mechanisms: Sequence[Mechanism], rows: int, groups: int) -> LayerCache:
    carrying = [mechanism for mechanism in mechanisms if carries(mechanism)]
    kicks = LayerCache(carrying, rows) if carrying else None  # heads are kicked all together
    return LayerCache(mechanisms, rows, kicks, groups)


def read_in_pieces(
    mechanism: Mechanism,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pieces: Sequence[Sequence[int]],
    *more: Tensor,
) -> Tensor:
    """Rows of `forward`, as they come where a text is read piece by piece through a cache.

    Parameters
    ----------
    mechanism
        Every token chooses it.
    q
        [B, H, T, d], as the mechanism reads it.
    k, v
        [B, G, T, d].
    pieces
        How many tokens each of B rows is given, piece by piece; they may differ, and be 0 in some.
    more
        Whatever else it reads, [B, ...] of all tokens.

    Returns
    -------
    Tensor
        [B, H, T, d]; zero behind what was read.
    """
    cache = LayerCache([mechanism], len(q))
    out = torch.zeros_like(q)
    starts = [0] * len(q)
    for counts in pieces:
        span = Span(starts, counts, max(counts))
        rows = cache.attend_all(*(_next(x, span) for x in (q, k, v, *more)), span=span)
        cache.commit()
        for row in span.rows:
            out[row, :, starts[row] : span.ends[row]] = rows[row, :, : counts[row]]
        starts = span.ends
    return out


def _next(x: Tensor, span: Span) -> Tensor:
    """The new ones of x [B, G, T, d], padded with something that would show."""
    out = x.new_ones(*x.shape[:2], span.size, x.shape[3])
    for row in span.rows:
        out[row, :, : span.counts[row]] = x[row, :, span.starts[row] : span.ends[row]]
    return out


def _read_again(mechanism: Mechanism) -> set[str]:
    """Which of a layer's `Inputs` have to be kept for `mechanism`."""
    if recurs(mechanism):
        return set()
    names = names_read_by(mechanism)
    is_spared = serves(mechanism) or remembers(mechanism)
    kept = {names.k, names.v} if is_spared else set(names)
    return kept | {"is_separator"} if mechanism.reads_separators else kept


def _chosen(span: Span, own: list[int] | None) -> Tensor:
    """Row and place of `own` tokens, or of all."""
    return span.numbered if own is None else span.numbered[own]


def _queries(span: Span, own: list[int] | None, device: torch.device) -> Queries:
    """Where `own` tokens stand in their texts, or all new ones."""
    row, place = _chosen(span, own).to(device).unbind(1)
    return Queries(row, place + torch.tensor(span.starts, device=device)[row])


def _rows_of(x: Tensor, span: Span, own: list[int] | None) -> Tensor:
    """Those of `own` tokens, or of all new ones, [N, H, d] of x [B, H, S, d]."""
    row, place = _chosen(span, own).to(x.device).unbind(1)
    return x.transpose(1, 2)[row, place]
