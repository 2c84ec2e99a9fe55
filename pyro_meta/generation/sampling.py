"""Sampling text from a trained model, token by token."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyro_meta.errors import UsageError
from pyro_meta.generation.options import SamplingOptions
from pyro_meta.generation.reader import Reader
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel


class Sampling(SamplingOptions):
    """How the next token is chosen from its distribution."""

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """A token id from logits [V]."""
        if self.greedy:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits), 1, generator=generator))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution [V] that a token is drawn from."""
        logits = (logits.double() - logits.max()) / self.temperature  # 0 at the likeliest
        if self.top_k is not None and self.top_k < len(logits):
            likeliest = logits.topk(self.top_k)
            kept = torch.full_like(logits, -torch.inf)
            logits = kept.scatter(0, likeliest.indices, likeliest.values)
        if self.top_p is not None:
            ordered, index = logits.softmax(-1).sort(descending=True)
            before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens
            logits = logits.masked_fill(
                torch.zeros_like(logits, dtype=torch.bool).scatter(0, index, before >= self.top_p),
                -torch.inf,
            )
        return logits.softmax(-1).float()


def continue_tokens(
    model: LanguageModel,
    guide: Guide,
    prompt: list[int],
    count: int,
    sampling: Sampling,
    seed: int,
    cache: bool = True,
) -> Iterator[int]:
    """Yield `count` tokens that continue `prompt` (not empty); see `continue_batch`."""
    for (token,) in continue_batch(model, guide, [prompt], count, sampling, seed, cache):
        yield token


def continue_batch(
    model: LanguageModel,
    guide: Guide,
    prompts: Sequence[Sequence[int]],
    count: int,
    sampling: Sampling,
    seed: int,
    cache: bool = True,
    context: int | None = None,
) -> Iterator[list[int]]:
    """Yield `count` times the next token of every prompt, one list for all.

    Always in evaluation mode, along the mean route, hard where training left it hard.

    Parameters
    ----------
    model, guide
        As of `Run.load`.
    prompts
        Token ids, at least one in each; they may differ in length.
    count
        Tokens to add to each.
    sampling
        How a token is chosen.
    seed
        Of the first prompt's draws; the next one has the next seed, so that what becomes of a
        prompt does not depend on those beside it.
    cache
        Whether what was read is kept, or read again for every token: the text is the same.
    context
        Most tokens that are read (default: the context of training); of a longer text what
        `pyro_meta.generation.reader` says.

    Raises
    ------
    UsageError
        A prompt is empty, or `context` is below 1.
    """
    if not all(prompts):
        raise UsageError("option --prompt: it is empty; at least one token is needed")
    if not prompts:
        return
    device = model.network.device
    generators = [torch.Generator(device).manual_seed(seed + row) for row in range(len(prompts))]
    reader = Reader(model, guide, prompts, cache, context)
    for _ in range(count):
        logits = reader.logits()
        new = [sampling.choose(*pair) for pair in zip(logits, generators, strict=True)]
        reader.append(new)
        yield new
