"""The posterior over routes and gates on validation text, written for ArviZ piece by piece.

What has a closed form is written of every token: means, concentrations, entropies, KL, choices and
losses. Draws need a forward pass each, since the features of a layer depend on the
routes drawn below it; they are of the first sequences alone (`pyro_meta.posterior.text_draws`). The
variables are those of `pyro_meta.analysis.posterior_file`.

Shapes: B sequences, T tokens, L layers, G groups of heads, K mechanisms, S draws, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from pyro_meta import checksums
from pyro_meta.analysis.posterior_file import PosteriorWriter, as_text
from pyro_meta.analysis.reading import require_finished
from pyro_meta.data.corpus import Corpus
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.distributions.simplex import divergence, entropy, expected_entropy
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import batches, evaluating, token_nll
from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.models import LanguageModel
from pyro_meta.network.costs import costs_at
from pyro_meta.posterior import importance, text_draws
from pyro_meta.posterior.text_draws import Loads
from pyro_meta.terminal.consoles import printable
from pyro_meta.terminal.machine import versions
from pyro_meta.training.checkpoint_files import weights_sha256
from pyro_meta.training.run import Run
from pyro_meta.training.settings import Readout


class Source(NamedTuple):
    """Where the text and the weights of a posterior come from."""

    data: str
    """The text in words."""
    data_sha256: str
    weights_sha256: str
    """Of the checkpoint's file of weights, or of their shards."""

    @classmethod
    def of(cls, run: Run, corpus: Corpus) -> "Source":
        """Of the newest checkpoint of a run."""
        weights = weights_sha256(run.state())
        return cls(printable(corpus.description), corpus.sha256, weights)


UNKNOWN = Source("unknown", "unknown", "unknown")


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
    source: Source = UNKNOWN,
) -> None:
    """Write posterior.nc at `path` for tokens and targets [B, T], `batch` sequences at a time.

    Independent draws make one chain, as many as `readout` says. `kl_weight` is that of the end of
    training, which says what posterior the guide is held against.
    """
    network = model.network
    T = windows[0].shape[1]
    rows, cut = max(1, readout.tokens // T), min(T, readout.tokens)
    torch.manual_seed(seed)
    sizes = {
        "chain": 1,
        "draw": readout.draws,
        "layer": network.shape.layers,
        "group": network.shape.groups,
        "block_draw": readout.block_draws or importance.DRAWS,  # a length is needed, of none too
    }
    facts = _facts(model, guide, seed, kl_weight) | source._asdict()
    names = network.mechanism_names
    with (
        evaluating(model, guide),
        PosteriorWriter(path, sizes, names, facts, model.has_loads, bool(model.gated)) as out,
    ):
        _write_all_tokens(out, model, guide, windows, vocabulary, batch)
        some = tuple(part[:rows, :cut] for part in windows)
        _write_draws(out, guide, (some[0], some[1]), readout.draws, batch, kl_weight)
        if readout.block_draws:
            _write_blocks(out, model, guide, windows, readout.block_draws)


def _facts(model: LanguageModel, guide: Guide, seed: int, kl_weight: float) -> dict[str, Any]:
    """What every group says of model and guide, and by what it was made."""
    network, known = model.network, versions()
    return {
        "inference_library": "pyro",
        "inference_library_version": known["pyro-ppl"],
        "creation_library": "pyro-meta",
        "creation_library_version": known["pyro-meta"],
        "creation_library_language": "Python",
        "torch_version": known["torch"],
        "model": f"{type(model).__name__} of {type(network).__name__}",
        "guide": type(guide).__name__,
        "prior": type(model.prior).__name__,
        "kl_weight": kl_weight,
        "is_mixture": int(guide.is_mixture),
        "context": network.shape.context,
        "groups": network.shape.groups,
        "hard_below": float(guide.execution.threshold),
        "seed": seed,
    }


def _write_all_tokens(
    out: PosteriorWriter,
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    vocabulary: Vocabulary,
    batch: int,
) -> None:
    """Write what has a closed form, of tokens and targets [B, T]."""
    T = windows[0].shape[1]
    for number, (tokens, targets) in enumerate(batches(windows, batch)):
        x, y = (part.to(model.network.device) for part in (tokens, targets))
        pieces = [piece for row in tokens.tolist() for piece in vocabulary.pieces(row)]
        stats = _by_token(model, guide, x, y)
        first = number * batch
        stats["sequence"] = torch.arange(first, first + len(x)).repeat_interleave(T)
        stats["position"] = torch.arange(T).repeat(len(x))
        stats |= {"next_token": targets.flatten(), "input_token": tokens.flatten()}
        out.append("token", {"tokens": stats | {"text": as_text(pieces)}})


def _write_draws(
    out: PosteriorWriter,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    draws: int,
    batch: int,
    kl_weight: float,
) -> None:
    """Write draws of posterior, prior and prediction, text by text of tokens, targets [B, T]."""
    model = guide.model
    device, T = model.network.device, windows[0].shape[1]
    positions = torch.arange(T, device=device)
    cost = costs_at(model.network, "macs", positions).cpu()  # [T, K]
    loads = text_draws.draw_loads(guide, draws)
    prior_loads = text_draws.draw_loads(guide, draws, from_prior=True)
    log_prior, log_likelihood, log_guide, paid = torch.zeros(4, draws, dtype=torch.float64)
    if (densities := text_draws.log_density_of_loads(guide, loads)) is not None:
        out.put("posterior", "load", _loads_by_group(loads))
        out.put("prior", "load", _loads_by_group(prior_loads))
        out.put("log_prior", "load", densities[0].cpu()[None])
        log_prior += densities[0].cpu().sum((1, 2))
        log_guide += densities[1].cpu().sum((1, 2))
    for row, (tokens, targets) in enumerate(zip(*windows, strict=True)):
        x, y = tokens.to(device), targets.to(device)
        text = text_draws.draw_text(guide, x, y, loads, draws, batch)
        routes, gates = text_draws.draw_prior(model, positions, prior_loads, draws)
        of_draws = {"route": text.routes[None]}, {"route": routes[None]}
        if model.gated:
            for group, drawn in zip(of_draws, (text.gates, gates), strict=True):
                group["depth"] = drawn[None]
        x_facts = {"sequence": torch.full((T,), row), "position": torch.arange(T), "cost": cost}
        pieces = {
            "posterior": of_draws[0],
            "prior": of_draws[1],
            "posterior_predictive": {"next_token": text.predicted[None]},
            "log_likelihood": {"next_token": text.log_likelihood[None]},
            "log_prior": {name: value[None] for name, value in text.log_prior.items()},
            "observed_data": {"next_token": targets},
            "constant_data": x_facts | {"input_token": tokens},
        }
        out.append("token", pieces)
        out.update("tokens", "token", row * T, _averaged(text.averaged, targets))
        log_prior += torch.stack([part.flatten(1).sum(1) for part in text.log_prior.values()]).sum(
            0
        )
        log_likelihood += text.log_likelihood.sum(1)
        log_guide += text.log_guide
        paid += (text.routes * cost).sum(-1).mean((1, 2, 3)) / len(windows[0])
    lp = log_prior + log_likelihood / kl_weight
    for name, value in {"lp": lp, "log_guide": log_guide, "cost": paid}.items():
        out.put("sample_stats", name, value[None])


def _averaged(p: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Figures of predictions [T, V] that are averaged over draws, for targets [T]."""
    top, best = p.max(-1)
    return {
        "nll_averaged": -p.gather(-1, targets[:, None])[:, 0].log(),
        "top_probability_averaged": top,
        "top_is_right_averaged": (best == targets).float(),
    }


def _loads_by_group(loads: Loads) -> Tensor:
    """Draws of the loads as one chain, [1, S, L, G, K]."""
    layers = [load for load in loads if load is not None]
    return torch.stack([load.reshape(len(load), -1, load.shape[-1]) for load in layers], 1).cpu()[
        None
    ]


def _write_blocks(
    out: PosteriorWriter,
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    draws: int,
) -> None:
    """Write terms of the importance weights of short blocks."""
    tokens, targets = (part.to(model.network.device) for part in windows)
    for terms in importance.block_terms(model, guide, (tokens, targets), draws):
        out.append("block", {"blocks": terms._asdict()})


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
        config.kl.weight, config.readout, Source.of(run, corpus),
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
    none = tokens.new_full((*tokens.shape, *model.network.shape.of_groups), -1)
    routes: dict[str, list[Tensor]] = {}
    gates: dict[str, list[Tensor]] = {}
    pairs = zip(deployed.posteriors, deployed.priors, hard.posteriors, hard.decisions, strict=True)
    for q, p, hard_q, decision in pairs:
        choice = none if guide.is_mixture else decision.route
        for name, value in (_facts_of(q.route, p.route) | {"choice": choice}).items():
            routes.setdefault(name, []).append(_by_group(value, G))
        if model.gated:
            runs = guide.gate_execution.of_mean(hard_q.gate, hard=True)  # it belongs to the choices
            for name, value in (_facts_of_gates(q.gate, p.gate) | {"depth_runs": runs}).items():
                gates.setdefault(name, []).append(value)
    top, best = deployed.logits.float().softmax(-1).max(-1)
    return {
        **{name: torch.stack(layers).flatten(2, 3).cpu() for name, layers in routes.items()},
        **{name: torch.stack(layers).flatten(1, 2).cpu() for name, layers in gates.items()},
        "nll_soft": token_nll(soft.logits, targets).flatten().cpu(),
        "nll_hard": token_nll(hard.logits, targets).flatten().cpu(),
        "top_probability": top.flatten().cpu(),
        "top_is_right": (best == targets).float().flatten().cpu(),
    }


def _by_group(x: Tensor, groups: int) -> Tensor:
    """x [B, T, ..], or [B, T, G, ..] of several groups, as [G, B, T, ..]."""
    return x[None] if groups == 1 else x.movedim(2, 0)


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
