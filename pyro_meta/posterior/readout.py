"""The posterior over routes and gates on validation text, written for ArviZ piece by piece.

What has a closed form is written of every token: means, concentrations, entropies, KL, choices and
losses. Draws need a forward pass each, since the features of a layer depend on the
routes drawn below it; they are of the first sequences alone. The variables are those of
`pyro_meta.analysis.posterior_file`.

Where every group of heads has a route of its own, each group of each layer is a layer of the file.

Shapes: B sequences, T tokens, L layers, G groups of heads, K mechanisms, S draws, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from pyro_meta import checksums
from pyro_meta.analysis.posterior_file import PosteriorWriter, as_text
from pyro_meta.analysis.reading import require_finished
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.distributions.simplex import divergence, entropy, expected_entropy
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import batches, evaluating, token_nll
from pyro_meta.guides import Guide, along_means, drawn, walk
from pyro_meta.models import LanguageModel
from pyro_meta.posterior import importance
from pyro_meta.training.run import Run
from pyro_meta.training.settings import Readout


def write_posterior(
    path: Path,
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    vocabulary: Vocabulary,
    batch: int,
    seed: int,
    kl_weight: float,
    readout: Readout = Readout(),
) -> None:
    """Write posterior.nc at `path` for tokens and targets [B, T], `batch` sequences at a time.

    Independent draws make one chain, as many as `readout` says. `kl_weight` is that of the end of
    training, which says what posterior the guide is held against.
    """
    network = model.network
    T = windows[0].shape[1]
    rows, cut = max(1, readout.tokens // T), min(T, readout.tokens)
    draws = readout.draws
    device = network.device
    torch.manual_seed(seed)
    sizes = {
        "chain": 1,
        "draw": draws,
        "layer": network.shape.layers * network.shape.groups,
        "position": cut,
        "block_draw": readout.block_draws or importance.DRAWS,  # a length is needed, of none too
    }
    facts = {
        "kl_weight": kl_weight,
        "guide": type(guide).__name__,
        "prior": type(model.prior).__name__,
        "is_mixture": int(guide.is_mixture),
        "context": network.shape.context,
        "groups": network.shape.groups,
        "hard_below": float(guide.execution.threshold),
    }
    with (
        evaluating(model, guide),
        PosteriorWriter(path, sizes, network.mechanism_names, facts, bool(model.gated)) as out,
    ):
        for number, (tokens, targets) in enumerate(batches(windows, batch)):
            x, y = tokens.to(device), targets.to(device)
            pieces = [piece for row in tokens.tolist() for piece in vocabulary.pieces(row)]
            stats = _by_token(model, guide, x, y)
            stats["sequence"] = number * batch + torch.arange(len(x)).repeat_interleave(T)
            stats["position"] = torch.arange(T).repeat(len(x))
            observed = {"next_token": targets.flatten(), "input_token": tokens.flatten()}
            out.append(
                "token",
                {
                    "observed_data": observed | {"text": as_text(pieces)},
                    "sample_stats": stats,
                },
            )
        for row in range(min(rows, len(windows[0]))):
            x, y = (part[row, :cut].to(device) for part in windows)
            _append_draws(out, row * T, model, guide, x, y, draws, batch)
        routes, gates = draw_prior(model, cut, draws)
        out.put("prior", "route", routes[None])
        if model.gated:
            out.put("prior", "depth", gates[None])
        if not readout.block_draws:
            return
        for terms in importance.block_terms(
            model, guide, (windows[0].to(device), windows[1].to(device)), readout.block_draws
        ):
            named = {f"block_{name}": value for name, value in terms._asdict().items()}
            out.append("block", {"sample_stats": named})


@contextmanager
def rereading(folder: Path, trusts: bool = False) -> Iterator[None]:
    """Write posterior.nc of a finished run anew from its checkpoint and text, and renew its hash.

    The run is held until the context is left, so that what is read of it there is of one piece;
    the process that holds it is waited for.

    Parameters
    ----------
    folder
        Of the run.
    trusts
        Import the classes that it names, also those that pyro_meta does not ship.

    Raises
    ------
    UsageError
        It is no finished run, has no whole checkpoint, or the text is not the one that it was
        trained on.
    OSError
        It cannot be written.
    """
    run = Run.open(folder, trusts)
    with run.locked(waits=True):
        require_finished(folder)
        _rewrite(run)
        checksums.renew(folder, run.posterior_path.name)
        yield


def _rewrite(run: Run) -> None:
    state = run.state()
    model, guide, vocabulary, config = run.load()
    corpus = config.data.corpus()
    if corpus.sha256 != state["corpus"]:
        raise UsageError(
            f"data: {run.folder} was trained on a text of sha256 {state['corpus'][:12]}; now it is "
            f"{corpus.description}"
        )
    windows = corpus.windows(config.context, config.validation_tokens)
    write_posterior(
        run.posterior_path, model, guide, windows, vocabulary, config.batch, config.seed,
        config.kl.weight, config.readout,
    )  # fmt: skip


def _by_token(
    model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor
) -> dict[str, Any]:
    """Statistics of all tokens [B, T], flattened to N = B T, by their names in the file.

    Figures of the posterior come from the pass that is deployed: the hard one once every token is
    hard, else the soft one. What runs, `choice` and `depth_runs`, is that of the hard one.
    """
    soft, hard = (walk(model, guide, tokens, along_means(is_hard)) for is_hard in (False, True))
    deployed = hard if guide.execution.is_hard_everywhere else soft
    G = model.network.shape.groups
    facts: dict[str, list[Tensor]] = {}
    for q, p, hard_q in zip(deployed.posteriors, deployed.priors, hard.posteriors, strict=True):
        of_layer = {k: _by_group(v, G) for k, v in _facts_of(q.route, p.route).items()}
        if model.gated:
            runs = guide.gate_execution.of_mean(hard_q.gate, hard=True)  # it belongs to the choices
            gates = _facts_of_gates(q.gate, p.gate) | {"depth_runs": runs.float()}
            of_layer |= {k: [v] * G for k, v in gates.items()}
        for name, values in of_layer.items():
            facts.setdefault(name, []).extend(values)
    none = tokens.new_full(tokens.shape, -1)
    choices = [
        choice
        for decision in hard.decisions
        for choice in ([none] * G if guide.is_mixture else _by_group(decision.route, G))
    ]
    top, best = deployed.logits.float().softmax(-1).max(-1)
    return {
        **{name: torch.stack(layers).flatten(1, 2).cpu() for name, layers in facts.items()},
        "choice": torch.stack(choices).flatten(1).to(torch.int8).cpu(),
        "nll_soft": token_nll(soft.logits, targets).flatten().cpu(),
        "nll_hard": token_nll(hard.logits, targets).flatten().cpu(),
        "top_probability": top.flatten().cpu(),
        "top_is_right": (best == targets).float().flatten().cpu(),
    }


def _by_group(x: Tensor, groups: int) -> list[Tensor]:
    """x [B, T, ..], or [B, T, G, ..] of several groups, as one tensor for each group."""
    return [x] if groups == 1 else list(x.unbind(2))


def _facts_of(dist: Distribution, prior: Distribution) -> dict[str, Tensor]:
    """What is known of a posterior in closed form, [B, T] or [B, T, K] each."""
    total, expected = entropy(dist.mean), expected_entropy(dist)
    return {
        "posterior_mean": dist.mean,
        "prior_mean": prior.mean.expand_as(dist.mean),
        "concentration": _concentration(dist, total),
        "prior_concentration": _concentration(prior, total),
        "entropy_total": total,
        "entropy_expected": expected,
        "entropy_epistemic": total - expected,
        "kl": divergence(dist, prior),
    }


def _facts_of_gates(dist: Distribution, prior: Distribution) -> dict[str, Tensor]:
    """What is known of the gates of a layer in closed form, [B, T] each."""
    return {
        "depth_mean": dist.mean,
        "depth_prior_mean": prior.mean.expand_as(dist.mean),
        "depth_kl": divergence(dist, prior),
    }


def _concentration(dist: Distribution, like: Tensor) -> Tensor:
    """a_0 [B, T] of a Dirichlet; NaN for another distribution."""
    if not isinstance(dist, Dirichlet):
        return torch.full_like(like, torch.nan)
    return dist.concentration.sum(-1).expand_as(like)


def _append_draws(
    out: PosteriorWriter,
    start: int,
    model: LanguageModel,
    guide: Guide,
    tokens: Tensor,
    targets: Tensor,
    draws: int,
    batch: int,
) -> None:
    """Draw the latents of one sequence, tokens and targets [T], whose tokens begin at `start`."""
    T, K, G = len(tokens), len(model.network.mechanisms), model.network.shape.groups
    L = model.network.shape.layers * G
    routes, gates = torch.empty(draws, L, T, K), torch.ones(draws, L, T)
    log_likelihood = torch.empty(draws, T, dtype=torch.float64)
    averaged: Tensor | None = None  # mean over draws of p(y | x, alpha), [T, V]
    for span in torch.arange(draws).split(batch):
        x, y = tokens.expand(len(span), -1), targets.expand(len(span), -1)
        walked = walk(model, guide, x, drawn)
        by_group = [part for one in walked.draws for part in _by_group(one.route.float().cpu(), G)]
        routes[span] = torch.stack(by_group, 1)
        if model.gated:
            drawn_gates = [one.gate for one in walked.draws if one.gate is not None]
            by_group = [gate.float().cpu() for gate in drawn_gates for _ in range(G)]
            gates[span] = torch.stack(by_group, 1)
        logits = walked.logits
        log_likelihood[span] = -token_nll(logits, y).double().cpu()
        share = logits.float().softmax(-1).sum(0) / draws
        averaged = share if averaged is None else averaged + share
    assert averaged is not None
    top, best = averaged.max(-1)
    of_target = averaged.gather(-1, targets[:, None])[:, 0]
    of_gates = {"depth": gates[None]} if model.gated else {}
    out.append("token", {"posterior": {"route": routes[None]} | of_gates})
    out.append("sequence", {"log_likelihood": {"next_token": log_likelihood.sum(1)[None, :, None]}})
    out.update(
        "sample_stats",
        "token",
        start,
        {
            "nll_averaged": -of_target.log().cpu(),
            "top_probability_averaged": top.cpu(),
            "top_is_right_averaged": (best == targets).float().cpu(),
        },
    )


def draw_prior(model: LanguageModel, length: int, draws: int) -> tuple[Tensor, Tensor]:
    """Routes [S, L, T, K] and gates [S, L, T] drawn from the prior, loads and all.

    Every group of heads is a layer: of G groups L is G times as many.
    """
    positions = torch.arange(length, device=model.network.device)
    G = model.network.shape.groups
    size = (length, *model.network.shape.of_groups)
    of_routes, of_gates = [], []
    for layer in range(model.network.shape.layers):
        routes = model.route_dist(layer, positions)
        gates = model.gate_dist(layer, positions, routes).expand(torch.Size([length]))
        if model.has_loads:
            loads = model.load_dist(layer).sample(torch.Size([draws, 1]))  # [S, 1, K], [S, 1, G, K]
            routes = model.route_dist(layer, positions, loads)
        drawn = routes.expand(torch.Size([draws, *size])).sample()
        of_routes += _by_group(drawn.float().cpu(), G)
        of_gates += [gates.sample(torch.Size([draws])).float().cpu()] * G
    return torch.stack(of_routes, 1), torch.stack(of_gates, 1)
