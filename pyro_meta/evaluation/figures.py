"""How good a router is: losses soft and hard, costs, and what its routes look like.

Losses and KL in nats per token. Shapes: B sequences, T tokens, L layers, K mechanisms.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_meta.distributions.simplex import divergence, entropy, is_hard, uncertainty
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.network.costs import costs_at
from pyro_meta.network.route import Decision, Features


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
