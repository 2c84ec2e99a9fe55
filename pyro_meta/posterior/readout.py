"""The posterior over routes and gates on validation text, written for ArviZ piece by piece.

What has a closed form is written of every token: means, concentrations, entropies, KL, choices and
losses. Draws need one walk through the network each, since the features of a layer depend on the
routes drawn below it; they are of the first sequences alone. The variables are those of
`pyro_meta.analysis.posterior_file`.

Shapes: B sequences, T tokens, L layers, K mechanisms, S draws, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from pyro_meta.analysis.posterior_file import PosteriorWriter, as_text
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.distributions.simplex import divergence, entropy, expected_entropy
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import batches, evaluating, token_nll
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.posterior import importance
from pyro_meta.posterior.drawing import executed, executed_gate
from pyro_meta.training.run import Run

DRAWS = 100
DRAWN_TOKENS = 4096
"""At most so many tokens are drawn, whole sequences if one fits."""


def write_posterior(
    path: Path,
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    vocabulary: Vocabulary,
    batch: int,
    seed: int,
    kl_weight: float,
    draws: int = DRAWS,
    drawn_tokens: int = DRAWN_TOKENS,
) -> None:
    """Write posterior.nc at `path` for tokens and targets [B, T], `batch` sequences at a time.

    Independent draws make one chain. `kl_weight` is that of the end of training, which says what
    posterior the guide is held against.
    """
    network = model.network
    T = windows[0].shape[1]
    rows, cut = max(1, drawn_tokens // T), min(T, drawn_tokens)
    device = network.embedding.weight.device
    torch.manual_seed(seed)
    sizes = {
        "chain": 1,
        "draw": draws,
        "layer": network.shape.layers,
        "position": cut,
        "block_draw": importance.DRAWS,
    }
    facts = {
        "kl_weight": kl_weight,
        "guide": type(guide).__name__,
        "prior": type(model.prior).__name__,
        "is_mixture": int(guide.is_mixture),
        "context": network.shape.context,
        "hard_below": float(guide.hard_below),
    }
    with (
        evaluating(model, guide),
        PosteriorWriter(
            path, sizes, network.mechanism_names, facts, guide.depth is not None
        ) as out,
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
        routes, gates = _draw_prior(model, cut, draws)
        out.put("prior", "route", routes[None])
        if gates is not None:
            out.put("prior", "depth", gates[None])
        for terms in importance.block_terms(
            model, guide, (windows[0].to(device), windows[1].to(device))
        ):
            named = {f"block_{name}": value for name, value in terms._asdict().items()}
            out.append("block", {"sample_stats": named})


def reread(folder: Path) -> None:
    """Write posterior.nc of a finished run anew from its checkpoint and text.

    Raises
    ------
    UsageError
        It is no run, has no whole checkpoint, or the text is not the one that it was trained on.
    """
    run = Run.open(folder)
    state = run.state()
    model, guide, vocabulary, config = run.load()
    corpus = config.data.corpus()
    if corpus.sha256 != state["corpus"]:
        raise UsageError(
            f"data: {folder} was trained on a text of sha256 {state['corpus'][:12]}; now it is "
            f"{corpus.description}"
        )
    windows = corpus.windows(config.context, config.validation_tokens)
    write_posterior(
        run.posterior_path, model, guide, windows, vocabulary, config.batch, config.seed,
        config.kl.weight,
    )  # fmt: skip


def _by_token(
    model: LanguageModel, guide: Guide, tokens: Tensor, targets: Tensor
) -> dict[str, Any]:
    """Statistics of all tokens [B, T], flattened to N = B T, by their names in the file.

    Figures of the posterior come from the walk that is deployed: the hard one once every token is
    hard, else the soft one. What runs, `choice` and `depth_runs`, is that of the hard one.
    """
    is_hard = float(guide.threshold) >= 1
    soft = _Walk(model, guide, tokens, hard=False)
    hard = _Walk(model, guide, tokens, hard=True)
    deployed = hard if is_hard else soft
    if "depth_runs" in hard.laws:  # it belongs to the choices
        deployed.laws["depth_runs"] = hard.laws["depth_runs"]
    top, best = deployed.logits.float().softmax(-1).max(-1)
    return {
        **{name: torch.stack(layers).flatten(1, 2).cpu() for name, layers in deployed.laws.items()},
        "choice": torch.stack(hard.choices).flatten(1).to(torch.int8).cpu(),
        "nll_soft": token_nll(soft.logits, targets).flatten().cpu(),
        "nll_hard": token_nll(hard.logits, targets).flatten().cpu(),
        "top_probability": top.flatten().cpu(),
        "top_is_right": (best == targets).float().flatten().cpu(),
    }


class _Walk:
    """One pass along the mean route, and what the guide said on the way, layer by layer."""

    def __init__(self, model: LanguageModel, guide: Guide, tokens: Tensor, hard: bool) -> None:
        self.laws: dict[str, list[Tensor]] = {}
        self.choices: list[Tensor] = []

        def route(layer: int, features: Features) -> Decision:
            law, gates = guide.posterior(layer, features), guide.depth_posterior(layer, features)
            prior = model.prior(layer, features.positions).expand(law.batch_shape)
            facts = _facts_of(law, prior)
            if guide.depth is not None:
                facts |= _facts_of_gates(
                    guide, gates, model.depth_law(layer, features.positions), tokens
                )
            for name, value in facts.items():
                self.laws.setdefault(name, []).append(value)
            chosen = guide.follow_route(law, hard)
            is_mixture = chosen.is_floating_point()
            self.choices.append(tokens.new_full(tokens.shape, -1) if is_mixture else chosen)
            return Decision(chosen, None if gates is None else guide.follow_gates(gates, hard))

        self.logits = model.network(tokens, route)


def _facts_of(law: Distribution, prior: Distribution) -> dict[str, Tensor]:
    """What is known of a posterior in closed form, [B, T] or [B, T, K] each."""
    total, expected = entropy(law.mean), expected_entropy(law)
    return {
        "posterior_mean": law.mean,
        "prior_mean": prior.mean.expand_as(law.mean),
        "concentration": _concentration(law, total),
        "prior_concentration": _concentration(prior, total),
        "entropy_total": total,
        "entropy_expected": expected,
        "entropy_epistemic": total - expected,
        "kl": divergence(law, prior),
    }


def _facts_of_gates(
    guide: Guide, law: Distribution | None, prior: Distribution | None, tokens: Tensor
) -> dict[str, Tensor]:
    """What is known of the gates of a layer, [B, T] each; every token runs one without."""
    if law is None or prior is None:
        ones = torch.ones(tokens.shape, device=tokens.device)
        names = ("depth_mean", "depth_prior_mean", "depth_runs")
        return dict.fromkeys(names, ones) | {"depth_kl": torch.zeros_like(ones)}
    return {
        "depth_mean": law.mean,
        "depth_prior_mean": prior.mean.expand_as(law.mean),
        "depth_runs": guide.follow_gates(law, hard=True).float(),
        "depth_kl": divergence(law, prior.expand(law.batch_shape)),
    }


def _concentration(law: Distribution, like: Tensor) -> Tensor:
    """a_0 [B, T] of a Dirichlet; NaN for another law."""
    if not isinstance(law, Dirichlet):
        return torch.full_like(like, torch.nan)
    return law.concentration.sum(-1).expand_as(like)


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
    T, L, K = len(tokens), model.network.shape.layers, len(model.network.mechanisms)
    routes, gates = torch.empty(draws, L, T, K), torch.ones(draws, L, T)
    log_likelihood = torch.empty(draws, T, dtype=torch.float64)
    averaged: Tensor | None = None  # mean over draws of p(y | x, alpha), [T, V]
    for span in torch.arange(draws).split(batch):
        x, y = tokens.expand(len(span), -1), targets.expand(len(span), -1)
        logits = model.network(x, _remembering(guide, routes, gates, span))
        log_likelihood[span] = -token_nll(logits, y).double().cpu()
        share = logits.float().softmax(-1).sum(0) / draws
        averaged = share if averaged is None else averaged + share
    assert averaged is not None
    top, best = averaged.max(-1)
    of_target = averaged.gather(-1, targets[:, None])[:, 0]
    of_gates = {} if guide.depth is None else {"depth": gates[None]}
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


def _remembering(guide: Guide, routes: Tensor, gates: Tensor, span: Tensor) -> Route:
    """A route that draws, and keeps the draws in rows `span` of routes and gates [S, L, T, ..]."""

    def route(layer: int, features: Features) -> Tensor | Decision:
        law, gate_law = guide.posterior(layer, features), guide.depth_posterior(layer, features)
        draw = law.rsample()
        routes[span, layer] = draw.float().cpu()
        run = executed(guide, law, draw)
        if gate_law is None:
            return run
        gate = gate_law.rsample()
        gates[span, layer] = gate.float().cpu()
        return Decision(run, executed_gate(guide, gate_law, gate))

    return route


def _draw_prior(model: LanguageModel, length: int, draws: int) -> tuple[Tensor, Tensor | None]:
    """Routes [S, L, T, K] and, if there are any, gates [S, L, T] drawn from the prior."""
    positions = torch.arange(length, device=model.network.embedding.weight.device)
    layers = range(model.network.shape.layers)

    def drawn(law: Distribution | None) -> Tensor:
        if law is None:
            return torch.ones(draws, length)
        return law.expand(torch.Size([length])).sample(torch.Size([draws])).float().cpu()

    routes = torch.stack([drawn(model.prior(layer, positions)) for layer in layers], 1)
    if model.depth is None:
        return routes, None
    return routes, torch.stack([drawn(model.depth_law(layer, positions)) for layer in layers], 1)
