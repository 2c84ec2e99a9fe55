"""Whether the future leaks: of mechanisms, blocks, guides, and whole predictions."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention import (
    Cache,
    Mechanism,
    Queries,
    backend,
    carries,
    read_in_pieces,
    serves,
)
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import Guide, mean_route, walk
from pyro_meta.guides.walk import Draw, Latents, Router
from pyro_meta.models import LanguageModel
from pyro_meta.network.blocks import Block
from pyro_meta.network.route import Decision, Features
from pyro_meta.network.transformer import Transformer


def prefix_gap(model: LanguageModel, guide: Guide, tokens: Tensor, ends: Iterable[int]) -> float:
    """Largest change of a log-probability when the text after a token is cut off, in nats.

    Compares the predictions for tokens [B, T], read as a whole, with those read as prefixes that
    end at each of `ends`, along soft and along hard routes; the latter as they are deployed, and
    with every mechanism on its own tokens even where running it on all is faster. Anything but
    rounding means that the future leaks.
    """
    gap = 0.0
    with evaluating(model, guide):
        for hard, way in ((False, "auto"), (True, "auto"), (True, "gather")):
            route = mean_route(guide, hard)
            with backend(way):
                whole = model.network(tokens, route).float().log_softmax(-1)
                for end in ends:
                    cut = model.network(tokens[:, :end], route).float().log_softmax(-1)
                    gap = max(gap, float((cut - whole[:, :end]).abs().max()))
    return gap


CHECKED_LENGTH, CHECKED_ENDS, ROUNDING = 200, (1, 7, 63, 64, 130), 1e-4


def require_causal(network: Transformer) -> None:
    """Raise `UsageError` if a mechanism or a block of `network` lets a token see later ones.

    Random queries, keys and values are read whole and cut; what is left may move by rounding. A
    mechanism that serves chosen queries must give them what it gives them among all, and a text
    that is read in pieces must get what it gets as a whole. A block must work on each token by
    itself, outside attention.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 2, CHECKED_LENGTH, network.shape.head_width)
    q, k, v = torch.randn(shape, generator=generator).to(network.device)
    is_separator = torch.rand(1, 1, CHECKED_LENGTH, 1, generator=generator).to(q.device) < 0.1
    with evaluating(network):
        for mechanism in network.mechanisms:
            more = (is_separator,) if mechanism.reads_separators else ()
            whole = mechanism(q, k, v, *more)
            for end in CHECKED_ENDS:
                cut = mechanism(*(x[:, :, :end] for x in (q, k, v, *more)))
                _require_close(cut, whole[:, :, :end], end, f"mechanisms: {mechanism.name}")
                if carries(mechanism):
                    kicked = _kicked(mechanism, q, k, v, *more)
                    cut = _kicked(mechanism, *(x[:, :, :end] for x in (q, k, v, *more)))
                    who = f"mechanisms: the kick of {mechanism.name}"
                    _require_close(cut, kicked[:, :, :end], end, who)
            if serves(mechanism):
                _require_same_rows(mechanism, q, k, v, *more)
            _require_same_continued(mechanism, q, k, v, *more)
        for block in network.layers:
            _require_tokenwise(block)


def _require_tokenwise(block: Block) -> None:
    """Raise `UsageError` if tokens meet in `block` outside its attention."""
    generator = torch.Generator().manual_seed(0)
    weight = block.attention_norm.weight
    state = torch.randn(1, CHECKED_LENGTH, len(weight), generator=generator).to(weight)

    def walked(state: Tensor) -> tuple[Tensor, Tensor]:
        stream = block.advance(block.begin(state), state)
        return stream.state, block.look(stream)

    some = torch.arange(0, CHECKED_LENGTH, 3, device=state.device)
    for found, among_all in zip(walked(state[:, some]), walked(state), strict=True):
        gap = float((found - among_all[:, some]).abs().max())
        if not gap <= ROUNDING * max(1.0, float(among_all.abs().max())):
            raise UsageError(
                f"block: {type(block).__name__}: tokens meet outside attention: one is worked on "
                f"otherwise where others are left out, by {gap:.2g}"
            )


def _kicked(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
    """The momenta k, kicked in the second layer."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, mechanism(q, k, v, *more))

    return mechanism.kick(q, v, k, 1, attend)


def _require_same_rows(
    mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, *more: Tensor
) -> None:
    """Raise `UsageError` if `mechanism` serves every third query otherwise than among all."""
    position = torch.arange(0, q.shape[2], 3, device=q.device)
    queries = Queries(torch.zeros_like(position), position)
    expected = queries.of(mechanism(q, k, v, *more))
    gap = float((mechanism.serve(queries.of(q), k, v, queries, *more) - expected).abs().max())
    if not gap <= ROUNDING * max(1.0, float(expected.abs().max())):
        raise UsageError(
            f"mechanisms: {mechanism.name}: serve() is off from the rows of forward() by {gap:.2g}"
        )


def _require_same_continued(
    mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, *more: Tensor
) -> None:
    """Raise `UsageError` if a text that is read in pieces gets other rows than as a whole."""
    pieces = [[100], [1], [1], [60]]
    length = sum(count for (count,) in pieces)
    expected = mechanism(q, k, v, *more)[:, :, :length]
    found = read_in_pieces(mechanism, q, k, v, pieces, *more)[:, :, :length]
    gap = float((found - expected).abs().max())
    if not gap <= ROUNDING * max(1.0, float(expected.abs().max())):
        raise UsageError(
            f"mechanisms: {mechanism.name}: where a text is continued, the rows that decode(), "
            "new_memory(), or state_of() and resume() give are off from those of forward() by "
            f"{gap:.2g}"
        )


def require_causal_guide(model: LanguageModel, guide: Guide) -> None:
    """Raise `UsageError` if a posterior of a token depends on later ones, or is no posterior.

    Of routes, and of depth gates if there are any. Random tokens, no more than the context, are
    read whole and cut. A posterior that is declared to look at each token alone must be the same
    where tokens are read in pieces.
    """
    shape = model.network.shape
    length = min(CHECKED_LENGTH, shape.context)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocabulary, (1, length), generator=generator)
    tokens = tokens.to(model.network.device)
    name = _named(guide)
    with evaluating(model, guide):
        whole = _posterior_means(model, guide, tokens)
        if not torch.equal(whole, _posterior_means(model, guide, tokens)):
            raise UsageError(
                f"guide: {name} is random in evaluation mode; posterior() gives a distribution, "
                "and not a draw"
            )
        for end in CHECKED_ENDS:
            if end < length:
                cut = _posterior_means(model, guide, tokens[:, :end])
                _require_close(cut, whole[:, :, :end], end, f"guide: {name}")
        if guide.is_of_own_token and length > 1:
            cache = model.network.new_cache(1, keeps_features=False)
            pieces = tokens.split([length // 2, length - length // 2], dim=1)
            parts = [_posterior_means(model, guide, piece, cache) for piece in pieces]
            gap = float((torch.cat(parts, 2) - whole).abs().max())
            if not gap <= ROUNDING:
                raise UsageError(
                    f"guide: the posterior of {name} is declared of_own_token, and depends on "
                    f"other tokens: it moves by {gap:.2g} where a text is read in pieces"
                )


def _require_close(cut: Tensor, whole: Tensor, end: int, who: str) -> None:
    gap = float((cut - whole).abs().max() / whole.abs().max().clamp(min=1.0))
    if not gap <= ROUNDING:
        raise UsageError(
            f"{who} sees the future: cutting the text after token {end} moves earlier values by "
            f"{gap:.2g}"
        )


def _posterior_means(
    model: LanguageModel, guide: Guide, tokens: Tensor, cache: Cache | None = None
) -> Tensor:
    """Posterior means along the soft mean route, [L, B, T, K + 1]: routes, then gates."""
    needed = (*tokens.shape, len(model.network.mechanisms))

    def how(
        guide: Router, layer: int, features: Features, posterior: Latents
    ) -> tuple[Draw, Decision]:
        route = _mean_of(posterior.route, type(guide).__name__, needed)
        depth = getattr(guide, "depth", None)
        gate = _mean_of(posterior.gate, type(depth).__name__, tuple(tokens.shape))
        return Draw(route, gate), Decision(route, gate)

    walked = walk(model, guide, tokens, how, cache)
    return torch.stack([torch.cat([d.route, d.gate[..., None]], -1) for d in walked.draws])


def _mean_of(dist: Distribution, name: str, needed: tuple[int, ...]) -> Tensor:
    """The mean of a posterior of the class `name`, which must have the shape that is `needed`."""
    if not isinstance(dist, Distribution):
        raise UsageError(
            f"guide: posterior() of {name} gives a {type(dist).__name__}; a distribution is needed"
        )
    try:
        mean: Tensor = dist.mean
    except NotImplementedError as error:
        raise UsageError(
            f"guide: the distribution of {name}, {type(dist).__name__}, has no mean, which routes "
            "follow"
        ) from error
    if mean.shape != needed:
        raise UsageError(
            f"guide: the distribution of {name} is {list(mean.shape)}; {list(needed)} is needed"
        )
    return mean


def _named(guide: Guide) -> str:
    name = type(guide).__name__
    return name if guide.depth is None else f"{name} with {type(guide.depth).__name__}"
