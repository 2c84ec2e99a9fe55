"""belief.json: what only the network itself can say about its posterior, measured once and kept.

one_token         the guide beside the exact posterior of single tokens, see `token_figures`; None
                  where that is not defined: of routes that end soft, of one mechanism, of a
                  guide without a KL or a density, or of a network that has no cache
beside_truth      the guide beside the exact posterior of a handful of tokens
objective         the evidence lower bound and its parts beside that of a uniform guess, nats per
                  token; None of a guide without a KL
checkpoint        of which weights this holds
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_meta import checksums
from pyro_meta.analysis import documents, one_token
from pyro_meta.analysis.json_values import plain
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.folders import write_whole
from pyro_meta.guides import Guide
from pyro_meta.posterior.approximation import beside_truth
from pyro_meta.posterior.exact import MOST_PATTERNS, Handful
from pyro_meta.posterior.objective import against, averaged
from pyro_meta.posterior.one_token import effort_for, is_tried, try_all
from pyro_meta.posterior.token_figures import figures
from pyro_meta.training.checkpoint_files import WEIGHTS, weights_sha256
from pyro_meta.training.run import Run

NAME = "belief.json"
MOMENTS = ("guide_mean", "guide_deviation", "truth_mean", "truth_deviation")
METHODS = ("enumeration", "NUTS")
VERSION = 2
"""Of belief.json; another one is measured anew."""
OBJECTIVE_TEXTS, OBJECTIVE_DRAWS = 4, 2
ENDS = (24, 32)
"""Lengths of the texts whose last tokens are a handful."""

Tell = Callable[[str], None]
"""Told what is being done."""


def believe(
    run: Run, tell: Tell = lambda what: None, folder: Path | None = None
) -> dict[str, Any] | None:
    """What belief.json of `run` says, measured if it is not there or is of other weights.

    It is kept in `folder`, by default the run's own, and looked for in both. None where there is no
    checkpoint, or the text that it was trained on is not to be had.
    """
    path = (folder or run.folder) / NAME
    if run.latest_checkpoint() is None:
        return None
    state = run.state()
    identity = state["files"].get(WEIGHTS) or weights_sha256(state)
    for place in (path, run.folder / NAME):
        if (kept := _kept(place, identity)) is not None:
            return kept
    tell("reading the checkpoint")
    try:
        model, guide, _, config = run.load()
        corpus = config.data.corpus()
    except UsageError:
        return None
    if corpus.sha256 != state["corpus"]:
        return None
    windows = corpus.windows(config.context, config.validation_tokens)
    with evaluating(model, guide):
        found = measure(guide, windows, config.kl.weight, tell)
    found |= {"version": VERSION, "checkpoint": identity}
    write_whole(path, checksums.sealed(found))
    return found


def _kept(path: Path, identity: object) -> dict[str, Any] | None:
    """What a belief.json holds of weights `identity`; None unless it is whole and of them."""
    try:
        kept = checksums.unsealed(path)
        if kept.get("version") != VERSION or kept.get("checkpoint") != identity:
            return None
        if kept["objective"] is not None:
            for key in ("nll", "kl", "elbo", "uniform"):
                documents.number(kept["objective"], key, NAME)
        if kept["one_token"] is not None:
            one_token.require_whole(kept["one_token"], NAME)
        for beside in kept["beside_truth"]:
            for key in ("kl_weight", "amortisation", "approximation"):
                documents.number(beside, key, NAME)
            moments = {key: np.array(beside["moments"][key], float) for key in MOMENTS}
            is_right = len({one.shape for one in moments.values()}) == 1
            if not is_right or any(one.ndim != 3 or not one.size for one in moments.values()):
                return None
            if beside["method"] not in METHODS or not np.isfinite([*moments.values()]).all():
                return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return kept


def measure(
    guide: Guide, windows: tuple[Tensor, Tensor], kl_weight: float, tell: Tell = lambda what: None
) -> dict[str, Any]:
    """All of it, for tokens and targets [B, T] and the final weight of the KL.

    A handful beside the truth only of a guide with a KL that routes all heads of a layer together.
    """
    network = guide.model.network
    out: dict[str, Any] = {"objective": None, "one_token": None}
    if guide.pays_kl:
        tell("the evidence lower bound")
        out["objective"] = _objective(guide, windows)
    if is_tried(guide):
        tell("every choice of single tokens")
        tried = try_all(guide, windows, effort_for(network, windows[0].shape[1]))
        if tried is not None:
            tell("the best posterior that sees what the guide sees")
            out["one_token"] = plain(figures(tried, kl_weight))
    return out | {"beside_truth": _beside(guide, windows, kl_weight, tell)}


def _objective(guide: Guide, windows: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The bound of a few texts by draws of all routes; what loads pay once is not in it."""
    device = guide.model.network.device
    tokens, targets = (part[:OBJECTIVE_TEXTS].to(device) for part in windows)
    found = averaged(guide, tokens, against(targets), OBJECTIVE_DRAWS)
    nll, kl = (float(part.mean()) for part in found)
    uniform = -math.log(guide.model.network.shape.vocabulary)
    return {"nll": nll, "kl": kl, "elbo": -(nll + kl), "uniform": uniform}


def _beside(
    guide: Guide, windows: tuple[Tensor, Tensor], kl_weight: float, tell: Tell
) -> list[dict[str, Any]]:
    """The guide beside the truth on a handful of tokens, by text."""
    if not guide.pays_kl or guide.model.network.shape.groups > 1:
        return []
    found = []
    with torch.enable_grad():
        for row, end in enumerate(ENDS[: len(windows[0])]):
            tell(f"a handful of tokens beside the truth, {row + 1} of {len(ENDS)}")
            length = min(end, windows[0].shape[1])
            tokens, targets = (part[row, :length] for part in windows)
            beside = beside_truth(Handful(guide, tokens, targets, _count(guide), kl_weight))
            if beside is not None:
                found.append(asdict(beside) | {"ids": tokens.tolist()})
    return found


def _count(guide: Guide) -> int:
    """Tokens in a handful: as many as can be enumerated, at least one and at most four."""
    network = guide.model.network
    K, L = max(2, len(network.mechanisms)), network.shape.layers
    return max(1, min(4, int(math.log(MOST_PATTERNS, K) / L)))
