"""Reading texts that grow: logits of the next token of each, with a cache or without.

One policy says what is read of a text that is longer than the context: it is read until the context
is full, then the oldest half is dropped and the rest read anew from position 0 on. So what was read
stays valid for half a context, and a cache is rebuilt only now and then. Without a cache the same
tokens are read at the same positions, all of them for every token.

Shapes: B texts, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pyro_meta.attention import Cache
from pyro_meta.evaluation import evaluating
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel


def first_read(length: int, context: int) -> int:
    """Index of the first token that is read of `length` tokens.

    0 up to a whole context; then half a context further whenever it is full.
    """
    step = (context + 1) // 2
    return step * max(0, -(-(length - context) // step))


class Reader:
    """Reads texts along the mean route, in evaluation mode.

    Parameters
    ----------
    model, guide
        Routes are hard where training left them hard.
    texts
        Token ids, at least one in each; they may differ in length.
    uses_cache
        Whether a new token is read alone, or its whole text again: the logits are the same but for
        rounding.
    context
        Most tokens read of a text (default: the context of training).
    """

    def __init__(
        self,
        model: LanguageModel,
        guide: Guide,
        texts: Sequence[Sequence[int]],
        uses_cache: bool = True,
        context: int | None = None,
    ) -> None:
        self._network, self._guide, self._modules = model.network, guide, (model, guide)
        self._parts = [part for module in self._modules for part in module.modules()]
        self._route = guide.mean_route()
        self._texts = [list(text) for text in texts]
        self._context = context or model.network.shape.context
        self._uses_cache = uses_cache
        self._cache: Cache | None = None
        self._starts: list[int] = []  # where each row of the cache begins in its text

    def append(self, tokens: Sequence[int]) -> None:
        """Add a token to every text."""
        for text, token in zip(self._texts, tokens, strict=True):
            text.append(token)

    def logits(self) -> Tensor:
        """Of the next token of every text, [B, V]."""
        with self._still():
            starts = [first_read(len(text), self._context) for text in self._texts]
            everyone = list(range(len(starts)))
            if not self._uses_cache:
                return self._network.readout(self._read(everyone, starts, None))
            cache = self._cache
            if cache is None:
                fresh = everyone
            else:
                fresh = [row for row in everyone if starts[row] != self._starts[row]]
            self._starts = starts
            if len(fresh) == len(everyone):
                self._cache = self._empty(len(everyone))
                return self._network.readout(self._read(everyone, starts, self._cache))
            assert cache is not None
            last = self._read_on(cache, fresh)
            if fresh:
                rebuilt = self._empty(len(fresh))
                last[fresh] = self._read(fresh, starts, rebuilt)
                cache.replace(fresh, rebuilt)
            return self._network.readout(last)

    def _still(self) -> AbstractContextManager[None]:
        """Evaluation mode; to set it in every module takes as long as a layer of one token."""
        if any(part.training for part in self._parts):
            return evaluating(*self._modules)
        return torch.no_grad()

    def _empty(self, rows: int) -> Cache:
        return self._network.new_cache(rows, not self._guide.is_of_own_token)

    def _read(self, rows: list[int], starts: list[int], cache: Cache | None) -> Tensor:
        """State after each of `rows`, [B, D], read from its start on."""
        seen = [self._texts[row][starts[row] :] for row in rows]
        lengths = list(map(len, seen))
        longest = max(lengths)
        tokens = self._tensor([text + [0] * (longest - len(text)) for text in seen])
        if cache is None:  # what is behind a text lies in its future
            states = self._network.states(tokens, self._route)
        else:
            states = self._network.states(tokens, self._route, cache, lengths)
        if min(lengths) == longest:
            return states[:, -1]
        return states[torch.arange(len(rows)), torch.tensor(lengths) - 1]

    def _read_on(self, cache: Cache, skipped: list[int]) -> Tensor:
        """State after the newest token of each row, [B, D]; without meaning in those `skipped`."""
        tokens = self._tensor([text[-1:] for text in self._texts])
        lengths = [int(row not in skipped) for row in range(len(tokens))] if skipped else None
        return self._network.states(tokens, self._route, cache, lengths)[:, 0]

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self._network.embedding.weight.device)
