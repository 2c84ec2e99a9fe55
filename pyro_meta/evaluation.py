"""How good a router is: losses soft and hard, costs, and what its routes look like.

Losses and KL in nats per token. Shapes: B sequences, T tokens, L layers, K mechanisms.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
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
from pyro_meta.blocks import Block
from pyro_meta.costs import costs_at
from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.simplex import divergence, entropy, is_hard, uncertainty
from pyro_meta.transformer import Decision, Features, Transformer


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the modes of the modules are restored afterwards."""
    were_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(y_t | x_{<=t}) of logits [B, T, V] and targets [B, T]: [B, T]."""
    return F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")


@dataclass
class SequenceLosses:
    """Mean loss of every validation sequence, nats per token, along soft and along hard routes."""

    soft: list[float] = field(default_factory=list)
    hard: list[float] = field(default_factory=list)


@dataclass
class _Totals:
    """Sums over tokens by layer, from which every figure of a pass follows."""

    tokens: int
    nll: float
    sequences: list[float]  # mean loss of each
    mean: Tensor  # [L, K] posterior mean
    hard: Tensor  # [L, K] likeliest mechanism, of tokens that run the layer
    choices: Tensor  # [L, K] the same, of all tokens
    cost_nominal: float
    cost_nominal_hard: float
    cost_macs_hard: float
    entropy: float
    uncertainty: float
    kl: float
    hard_tokens: float
    runs: Tensor  # [L] tokens that run the layer once they are hard
    depth: float  # posterior means of the gates
    depth_uncertainty: float
    depth_kl: float


def evaluate(
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    batch: int,
    losses: SequenceLosses | None = None,
) -> dict[str, Any]:
    """Validation figures on tokens and targets [N, T] under the stable names of summary.json.

    The network is walked twice, along posterior means (soft) and along the likeliest mechanism of
    every token (hard), which then is all that runs for it. Figures of the posterior come from the
    walk that is deployed: the hard one once every token is hard, else the soft one. Hard costs are
    those of what has to run, of a mixture every mechanism in it; `cost_nominal_soft` is shares
    times costs, which nobody executes. `losses`, if given, is filled sequence by sequence.

    With depth gates a token that passes a layer by pays nothing there, `load` is among tokens that
    run the layer (among all, of a layer that nobody runs), and there is a section `depth`: the
    share of all pairs of layer and token (the first layer, which everybody runs, among them) in
    which the token passes the layer by, hard and soft (1 - mean gate), and by layer, hard; the
    uncertainty of the gates, averaged over the layers that have one; and their KL.
    """
    with evaluating(model, guide):
        soft = _pass(model, guide, windows, batch, hard=False)
        hard = _pass(model, guide, windows, batch, hard=True)
    if losses is not None:
        losses.soft, losses.hard = soft.sequences, hard.sequences
    deployed = hard if float(guide.threshold) >= 1 else soft
    names = model.network.mechanism_names
    layers = model.network.shape.layers
    K = len(names)
    mean = deployed.mean / deployed.tokens  # [L, K]
    runs = hard.runs.float()[:, None]
    load = torch.where(runs > 0, hard.hard / runs, hard.choices / hard.tokens)
    overall = load.mean(0) if guide.depth is None else hard.hard.sum(0) / runs.sum()
    mean_entropy = deployed.entropy / (layers * deployed.tokens)
    return {
        "val_nll_soft": soft.nll / soft.tokens,
        "val_nll_hard": hard.nll / hard.tokens,
        "cost_nominal_soft": soft.cost_nominal / (layers * soft.tokens),
        "cost_nominal_hard": hard.cost_nominal_hard / (layers * hard.tokens),
        "cost_macs_hard": hard.cost_macs_hard / (layers * hard.tokens),
        "routing_entropy": mean_entropy / math.log(K) if K > 1 else 0.0,
        "routing_uncertainty": deployed.uncertainty / (layers * deployed.tokens),
        "routing_information": float(entropy(mean).mean()) - mean_entropy,
        "kl_per_token": deployed.kl / deployed.tokens,
        "load": dict(zip(names, overall.tolist(), strict=True)),
        "load_by_layer": [dict(zip(names, row.tolist(), strict=True)) for row in load],
        "hard_fraction": deployed.hard_tokens / (layers * deployed.tokens),
        **_depth_figures(guide, soft, hard, deployed),
    }


def _depth_figures(
    guide: Guide, soft: _Totals, hard: _Totals, deployed: _Totals
) -> dict[str, dict[str, Any]]:
    """The section `depth`, if there are gates."""
    if guide.depth is None:
        return {}
    layers, tokens = len(hard.runs), hard.tokens
    skipped = 1 - hard.runs.double() / tokens  # [L]
    return {
        "depth": {
            "skipped_hard": float(skipped.mean()),
            "skipped_soft": 1 - soft.depth / (layers * tokens),
            "skipped_by_layer": skipped.tolist(),
            "uncertainty": deployed.depth_uncertainty / ((layers - 1) * tokens),
            "kl_per_token": deployed.depth_kl / tokens,
        }
    }


def _pass(
    model: LanguageModel, guide: Guide, windows: tuple[Tensor, Tensor], batch: int, hard: bool
) -> _Totals:
    network = model.network
    L, K = network.shape.layers, len(network.mechanisms)
    device = network.embedding.weight.device
    totals = _Totals(
        0, 0.0, [], torch.zeros(L, K), torch.zeros(L, K), torch.zeros(L, K),
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, torch.zeros(L, dtype=torch.float64), 0.0, 0.0, 0.0,
    )  # fmt: skip

    def route(layer: int, features: Features) -> Tensor | Decision:
        law, gates = guide.posterior(layer, features), guide.depth_posterior(layer, features)
        mean, choice, undecided = law.mean, guide.choice(law.mean), uncertainty(law)
        run, way = choice, mean  # shares of the mechanisms, hard and soft
        if gates is None:
            totals.runs[layer] += features.tokens.numel()
            totals.depth += features.tokens.numel()
        else:
            runs = guide.follow_gates(gates, hard=True)
            run, way = choice * runs[..., None], mean * gates.mean[..., None]
            totals.runs[layer] += int(runs.sum())
            totals.depth += float(gates.mean.sum())
            totals.depth_uncertainty += float(uncertainty(gates).sum())
            gate_prior = model.depth_law(layer, features.positions)
            assert gate_prior is not None
            totals.depth_kl += float(divergence(gates, gate_prior.expand(gates.batch_shape)).sum())
        nominal = costs_at(network, "nominal", features.positions)
        macs = costs_at(network, "macs", features.positions)
        totals.mean[layer] += mean.sum((0, 1)).cpu()
        totals.hard[layer] += run.sum((0, 1)).cpu()
        totals.choices[layer] += choice.sum((0, 1)).cpu()
        totals.cost_nominal += float((way * nominal).sum())
        is_run = run > 0  # a mixture needs every mechanism in it
        totals.cost_nominal_hard += float((is_run * nominal).sum())
        totals.cost_macs_hard += float((is_run * macs).sum())
        totals.entropy += float(entropy(mean).sum())
        totals.uncertainty += float(undecided.sum())
        prior = model.prior(layer, features.positions).expand(law.batch_shape)
        totals.kl += float(divergence(law, prior).sum())
        totals.hard_tokens += float(is_hard(undecided, guide.hard_below).sum())
        return guide.follow(law, hard, gates)

    for tokens, targets in batches(windows, batch):
        logits = network(tokens.to(device), route)
        nll = token_nll(logits, targets.to(device))
        totals.nll += float(nll.sum())
        totals.sequences += nll.mean(1).tolist()
        totals.tokens += targets.numel()
    return totals


def batches(windows: tuple[Tensor, Tensor], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of tokens and targets [N, T], `batch` at a time."""
    yield from zip(windows[0].split(batch), windows[1].split(batch), strict=True)


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
            route = guide.mean_route(hard)
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
    q, k, v = torch.randn(shape, generator=generator).to(network.embedding.weight.device)
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
    tokens = tokens.to(model.network.embedding.weight.device)
    name = _named(guide)
    with evaluating(model, guide):
        whole = _posterior_means(model, guide, tokens)
        if not torch.equal(whole, _posterior_means(model, guide, tokens)):
            raise UsageError(
                f"guide: {name} is random in evaluation mode; posterior() gives the law, not a draw"
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
    """Posterior means along the soft mean route, [L, B, T, K]; with gates theirs as the last."""
    means: list[Tensor] = []

    def route(layer: int, features: Features) -> Tensor | Decision:
        law, gates = guide.posterior(layer, features), guide.depth_posterior(layer, features)
        needed = (*tokens.shape, len(model.network.mechanisms))
        mean = _mean_of(law, type(guide).__name__, needed)
        if gates is None:
            opened = mean.new_ones(tokens.shape)
        else:
            opened = _mean_of(gates, type(guide.depth).__name__, tuple(tokens.shape))
        means.append(mean if guide.depth is None else torch.cat([mean, opened[..., None]], -1))
        return mean if gates is None else Decision(mean, opened)

    model.network(tokens, route, cache)
    return torch.stack(means)


def _mean_of(law: Distribution, name: str, needed: tuple[int, ...]) -> Tensor:
    """The mean of a posterior of the class `name`, which must have the shape that is `needed`."""
    try:
        mean: Tensor = law.mean
    except NotImplementedError as error:
        raise UsageError(
            f"guide: the law of {name}, {type(law).__name__}, has no mean, which routes follow"
        ) from error
    if mean.shape != needed:
        raise UsageError(
            f"guide: the law of {name} is {list(mean.shape)}; {list(needed)} is needed"
        )
    return mean


def _named(guide: Guide) -> str:
    name = type(guide).__name__
    return name if guide.depth is None else f"{name} with {type(guide.depth).__name__}"


def ngram_nll(
    train: NDArray[np.integer],
    windows: tuple[Tensor, Tensor],
    vocabulary: int,
) -> tuple[float, float]:
    """Losses of a unigram and a bigram model on the same targets, in nats per token.

    Counts from the training part, at most its first 2^26 tokens; the unigram adds one to every
    count, the bigram backs off to the unigram with the weight of one observation.
    """
    train = train[: 1 << 26]
    counts = np.ones(vocabulary)
    pairs = sparse.csr_array((vocabulary, vocabulary))
    piece = 1 << 22
    for start in range(0, len(train), piece):
        part = np.asarray(train[start : start + piece + 1], dtype=np.int64)
        fresh = part[:-1] if start + piece < len(train) else part
        counts += np.bincount(fresh, minlength=vocabulary)
        ones = np.ones(len(part) - 1)
        pairs = pairs + sparse.csr_array(
            (ones, (part[:-1], part[1:])), shape=(vocabulary, vocabulary)
        )
    unigram = counts / counts.sum()
    seen = pairs.sum(1)
    x, y = windows[0].numpy().ravel(), windows[1].numpy().ravel()
    together = np.concatenate(
        [
            np.asarray(pairs[x[i : i + piece], y[i : i + piece]]).ravel()
            for i in range(0, len(x), piece)
        ]
    )
    bigram = (together + unigram[y]) / (seen[x] + 1)
    return float(-np.log(unigram[y]).mean()), float(-np.log(bigram).mean())
