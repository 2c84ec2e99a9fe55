"""belief.json: what only the network itself can say about its posterior, measured once and kept.

amortisation      per tempering: gaps on whole texts, see `amortisation`
beside_truth      the guide beside the exact posterior of a handful of tokens
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
from pyro_meta.analysis import documents
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.folders import write_whole
from pyro_meta.guides import Guide
from pyro_meta.posterior.amortisation import amortisation_gap
from pyro_meta.posterior.approximation import beside_truth
from pyro_meta.posterior.exact import MOST_PATTERNS, Handful
from pyro_meta.training.run import Run

NAME = "belief.json"
MOMENTS = ("guide_mean", "guide_deviation", "truth_mean", "truth_deviation")
METHODS = ("enumeration", "NUTS")
VERSION = 1
"""Of belief.json; another one is measured anew."""
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
    identity = run.state()["files"]["model.safetensors"]
    for place in (path, run.folder / NAME):
        if (kept := _kept(place, identity)) is not None:
            return kept
    tell("reading the checkpoint")
    try:
        model, guide, _, config = run.load()
        corpus = config.data.corpus()
    except UsageError:
        return None
    if corpus.sha256 != run.state()["corpus"]:
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
        for gap in kept["amortisation"]:
            documents.number(gap, "kl_weight", NAME)
            for one in (gap["amortisation"], gap["conditioning"]):
                documents.number(one, "gap", NAME)
                documents.number(one, "share_of_loss", NAME)
                _low, _high = documents.numbers(one, "interval", NAME)
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

    Nothing of a guide without a KL, nor of one that routes groups of heads.
    """
    if not guide.pays_kl or guide.model.network.shape.groups > 1:
        return {"amortisation": [], "beside_truth": []}
    gaps, beside = [], []
    with torch.enable_grad():
        for w in dict.fromkeys((kl_weight, 1.0)):
            tell(f"amortisation gap, w = {w:g}")
            gaps.append(asdict(amortisation_gap(guide, windows, w)))
        for row, end in enumerate(ENDS[: len(windows[0])]):
            tell(f"a handful of tokens beside the truth, {row + 1} of {len(ENDS)}")
            length = min(end, windows[0].shape[1])
            tokens, targets = (part[row, :length] for part in windows)
            found = beside_truth(Handful(guide, tokens, targets, _count(guide), kl_weight))
            if found is not None:
                beside.append(asdict(found) | {"ids": tokens.tolist()})
    return {"amortisation": gaps, "beside_truth": beside}


def _count(guide: Guide) -> int:
    """Tokens in a handful: as many as can be enumerated, at least one and at most four."""
    network = guide.model.network
    K, L = max(2, len(network.mechanisms)), network.shape.layers
    return max(1, min(4, int(math.log(MOST_PATTERNS, K) / L)))
