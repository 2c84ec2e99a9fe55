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

from pyro_meta.distributions.hardening import Place
from pyro_meta.distributions.simplex import divergence, entropy, uncertainty
from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.guides.walk import Latents
from pyro_meta.models import LanguageModel
from pyro_meta.network.costs import costs_at


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

    mean: Tensor  # [L, G, K] posterior mean
    hard: Tensor  # [L, G, K] likeliest mechanism, of tokens that run the layer
    choices: Tensor  # [L, G, K] the same, of all tokens
    runs: Tensor  # [L] tokens that run the layer once they are hard
    tokens: int = 0
    nll: float = 0.0
    sequences: list[float] = field(default_factory=list)  # mean loss of each
    cost_nominal: float = 0.0
    cost_nominal_hard: float = 0.0
    cost_macs_hard: float = 0.0
    entropy: float = 0.0
    uncertainty: float = 0.0
    kl: float = 0.0
    hard_tokens: float = 0.0
    depth: float = 0.0  # posterior means of the gates
    depth_uncertainty: float = 0.0
    depth_kl: float = 0.0

    def add(
        self, place: Place, guide: Guide, q: Latents, p: Latents, nominal: Tensor, macs: Tensor
    ) -> None:
        """Take in what posterior and prior say of some tokens [B, T] at their place.

        Loads, costs and shares are averaged over groups of heads; a KL is the sum of theirs.
        """
        layer = place.layer
        mean = by_group(q.route.mean, 4)  # [B, T, G, K]
        undecided, G = uncertainty(q.route), mean.shape[2]
        choice = guide.shares(mean)  # [B, T, G, K]
        runs = guide.gate_execution.of_mean(q.gate, hard=True)
        run, way = (choice * runs[..., None, None], mean * q.gate.mean[..., None, None])
        is_run = run > 0  # a mixture needs every mechanism in it
        self.runs[layer] += int(runs.sum())
        self.depth += float(q.gate.mean.sum())
        self.depth_uncertainty += float(uncertainty(q.gate).sum())
        self.depth_kl += float(divergence(q.gate, p.gate).sum())
        self.mean[layer] += mean.sum((0, 1)).cpu()
        self.hard[layer] += run.sum((0, 1)).cpu()
        self.choices[layer] += choice.sum((0, 1)).cpu()
        nominal, macs = nominal[:, None], macs[:, None]  # [T, 1, K]
        self.cost_nominal += float((way * nominal).sum()) / G
        self.cost_nominal_hard += float((is_run * nominal).sum()) / G
        self.cost_macs_hard += float((is_run * macs).sum()) / G
        self.entropy += float(entropy(mean).sum()) / G
        self.uncertainty += float(undecided.sum()) / G
        self.kl += float(divergence(q.route, p.route).sum())
        self.hard_tokens += float(guide.execution.is_hard(undecided, place).sum()) / G


def by_group(x: Tensor, dims: int) -> Tensor:
    """x [B, T, ..] of one group of heads as one with a dimension of groups, `dims` in all."""
    return x if x.dim() == dims else x.unsqueeze(2)


def evaluate(
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    batch: int,
    losses: SequenceLosses | None = None,
) -> dict[str, Any]:
    """Validation figures on tokens and targets [N, T] under the stable names of summary.json.

    Two forward passes: along posterior means (soft), and along the likeliest mechanism of every
    token (hard), which then is all that runs for it. Figures of the posterior come from the pass
    that is deployed: the hard one once every token is hard, else the soft one. Hard costs are
    those of what has to run, of a mixture every mechanism in it; `cost_nominal_soft` is shares
    times costs, which nobody executes. `losses`, if given, is filled sequence by sequence.

    With several groups of heads, each routed for itself, loads and costs are averages over them,
    the KL is their sum, and `load_by_group` is the load of each.

    With depth gates a token that skips a layer pays nothing there, `load` is among tokens that
    run the layer (among all, of a layer that nobody runs), and there is a section `depth`: the
    share of all pairs of layer and token (the first layer, which everybody runs, among them) in
    which the token skips the layer, hard and soft (1 - mean gate), and by layer, hard; the
    uncertainty of the gates, averaged over the layers that have one; and their KL.
    """
    with evaluating(model, guide):
        soft = _pass(model, guide, windows, batch, hard=False)
        hard = _pass(model, guide, windows, batch, hard=True)
    if losses is not None:
        losses.soft, losses.hard = soft.sequences, hard.sequences
    deployed = hard if guide.execution.is_hard_everywhere else soft
    names = model.network.mechanism_names
    layers = model.network.shape.layers
    K = len(names)
    mean = deployed.mean / deployed.tokens  # [L, G, K]
    runs = hard.runs.float()[:, None, None]
    of_groups = torch.where(runs > 0, hard.hard / runs, hard.choices / hard.tokens)  # [L, G, K]
    load = of_groups.mean(1)
    overall = hard.hard.mean(1).sum(0) / runs.sum() if model.gated else load.mean(0)
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
        **_group_figures(names, of_groups),
        **_depth_figures(model, soft, hard, deployed),
    }


def _group_figures(names: list[str], load: Tensor) -> dict[str, list[list[dict[str, float]]]]:
    """`load_by_group` of loads [L, G, K], if there are several groups of heads."""
    if load.shape[1] == 1:
        return {}
    rows = [[dict(zip(names, one.tolist(), strict=True)) for one in layer] for layer in load]
    return {"load_by_group": rows}


def _depth_figures(
    model: LanguageModel, soft: _Totals, hard: _Totals, deployed: _Totals
) -> dict[str, dict[str, Any]]:
    """The section `depth`, if there are gates."""
    if not model.gated:
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
    device = network.device
    mean, hard_shares, choices = (torch.zeros(L, network.shape.groups, K) for _ in range(3))
    totals = _Totals(mean, hard_shares, choices, torch.zeros(L, dtype=torch.float64))
    positions = torch.arange(windows[0].shape[1], device=device)
    nominal, macs = (costs_at(network, unit, positions) for unit in ("nominal", "macs"))
    for tokens, targets in batches(windows, batch):
        walked = walk(model, guide, tokens.to(device), along_means(hard))
        for layer, (q, p) in enumerate(zip(walked.posteriors, walked.priors, strict=True)):
            totals.add(Place(layer, positions), guide, q, p, nominal, macs)
        nll = token_nll(walked.logits, targets.to(device))
        totals.nll += float(nll.sum())
        totals.sequences += nll.mean(1).tolist()
        totals.tokens += targets.numel()
    return totals


def batches(windows: tuple[Tensor, Tensor], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of tokens and targets [N, T], `batch` at a time."""
    yield from zip(windows[0].split(batch), windows[1].split(batch), strict=True)
