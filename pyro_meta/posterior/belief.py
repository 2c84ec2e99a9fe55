"""belief.json: what only the network itself can say about its posterior, measured once and kept.

amortisation      per tempering: gaps on whole texts, see `amortisation`
beside_truth      the guide beside the exact posterior of a handful of tokens
checkpoint        of which weights this holds
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.folders import write_whole
from pyro_meta.guides import Guide
from pyro_meta.posterior.amortisation import amortisation_gap
from pyro_meta.posterior.approximation import beside_truth
from pyro_meta.posterior.exact import MOST_PATTERNS, Handful
from pyro_meta.training.run import Run

VERSION = 1
"""Of belief.json; another one is measured anew."""
ENDS = (24, 32)
"""Lengths of the texts whose last tokens are a handful."""

Tell = Callable[[str], None]
"""Told what is being done."""


def believe(run: Run, tell: Tell = lambda what: None) -> dict[str, Any] | None:
    """What belief.json of `run` says, measured if it is not there or is of other weights.

    None where there is no checkpoint, or the text that it was trained on is not to be had.
    """
    path = run.folder / "belief.json"
    if run.latest_checkpoint() is None:
        return None
    identity = run.state()["files"]["model.safetensors"]
    if path.is_file():
        try:
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if kept.get("version") == VERSION and kept.get("checkpoint") == identity:
                return kept
        except ValueError:  # not whole: measured again
            pass
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
    write_whole(path, json.dumps(found, allow_nan=False) + "\n")
    return found


def measure(
    guide: Guide, windows: tuple[Tensor, Tensor], kl_weight: float, tell: Tell = lambda what: None
) -> dict[str, Any]:
    """All of it, for tokens and targets [B, T] and the final weight of the KL."""
    if not guide.pays_kl:
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
