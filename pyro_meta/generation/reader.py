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
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import Guide, mean_route
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

    Raises
    ------
    UsageError
        `context` is below 1.
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
        self._route = mean_route(guide)
        self._texts = [list(text) for text in texts]
        self._context = model.network.shape.context if context is None else context
        if self._context < 1:
            raise UsageError(f"context: {context} given; at least 1 is allowed")
        self._uses_cache = uses_cache
        self._cache: Cache | None = None
        self._starts: list[int] = []  # where each row of the cache begins in its text
        self._last: Tensor | None = None  # state after the newest token that was read, [B, D]

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
            cache, last = self._cache, self._last
            self._cache = None  # begun anew if what follows is interrupted
            fresh = [row for row in everyone if cache is None or starts[row] != self._starts[row]]
            if cache is None or last is None or len(fresh) == len(everyone):
                cache = self._empty(len(everyone))
                last = self._read(everyone, starts, cache)
            else:
                last = self._read_on(cache, fresh, last)
                if fresh:
                    rebuilt = self._empty(len(fresh))
                    last[fresh] = self._read(fresh, starts, rebuilt)
                    cache.replace(fresh, rebuilt)
            self._cache, self._starts, self._last = cache, starts, last
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
        tokens, lengths = self._padded(seen)
        if cache is None:  # what is behind a text lies in its future
            states = self._network.states(tokens, self._route)
        else:
            states = self._network.states(tokens, self._route, cache, lengths)
        if min(lengths) == tokens.shape[1]:
            return states[:, -1]
        return states[torch.arange(len(rows)), torch.tensor(lengths) - 1]

    def _read_on(self, cache: Cache, skipped: list[int], last: Tensor) -> Tensor:
        """State after the newest token of each row, [B, D], of what the cache has not read yet.

        The `last` one where there is nothing new, and in rows that are `skipped`.
        """
        news = [
            [] if row in skipped else text[self._starts[row] + cache.lengths[row] :]
            for row, text in enumerate(self._texts)
        ]
        if not any(news):
            return last
        tokens, lengths = self._padded(news)
        states = self._network.states(tokens, self._route, cache, lengths)
        if min(lengths) == tokens.shape[1]:
            return states[:, -1]
        rows = [row for row, count in enumerate(lengths) if count]
        last = last.clone()
        last[rows] = states[rows, [lengths[row] - 1 for row in rows]]
        return last

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, list[int]]:
        """Token ids [B, S] of all rows, zeros behind the shorter ones; and the length of each."""
        lengths = list(map(len, rows))
        longest = max(lengths)
        return self._tensor([row + [0] * (longest - len(row)) for row in rows]), lengths

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self._network.device)
