"""Texts that go wrong in the middle of training, for benchmarks/load.py."""

import dataclasses
import time

from pyro_meta.data.corpus import TokenCorpus, Windows
from pyro_meta.data.text import Text

AT_STEP = 5


class _Fails(TokenCorpus):
    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        if step == AT_STEP:
            raise OSError("the text is on a disk that has gone")
        return super().batch(seed, step, size, context)


class _Hangs(TokenCorpus):
    def batch(self, seed: int, step: int, size: int, context: int) -> Windows:
        while step == AT_STEP:
            time.sleep(1)
        return super().batch(seed, step, size, context)


def _as(kind: type[TokenCorpus], corpus: TokenCorpus) -> TokenCorpus:
    return kind(**{one.name: getattr(corpus, one.name) for one in dataclasses.fields(corpus)})


class FailingText(Text):
    """Text that cannot be read at one step."""

    def corpus(self) -> TokenCorpus:
        return _as(_Fails, super().corpus())


class HangingText(Text):
    """Text that never comes at one step."""

    def corpus(self) -> TokenCorpus:
        return _as(_Hangs, super().corpus())
