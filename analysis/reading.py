"""A run as the analysis sees it: its posterior, metrics and summary, read from files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pyro_meta.analysis import _arviz
from pyro_meta.analysis.routing import (
    Array,
    Uncertainty,
    Verdict,
    collapse_verdicts,
    effective_number,
    entropy,
    load,
    routing_information,
    uncertainty_from_draws,
)
from pyro_meta.errors import UsageError

SHOWN = ("val_nll_soft", "val_nll_hard", "cost_nominal_hard", "cost_macs_hard", "hard_fraction")
SHOWN_IF_THERE = ("executed",)  # not in runs of before


@dataclass(frozen=True)
class Reading:
    """What a run left behind.

    L layers, N tokens, K mechanisms, S draws.
    """

    folder: Path
    draws: Array
    """Posterior draws of the routes, [S, L, N, K]."""
    prior_draws: Array
    """Prior draws of the routes, [S, L, N, K]."""
    means: Array
    """Posterior means along the mean route, [L, N, K]."""
    kl: Array
    """KL(q || p), averaged over draws, [L, N], nats."""
    mechanisms: list[str]
    text: list[str]
    """What each token adds to the text, [N]."""
    steps: Array
    """Training steps, [M]."""
    entropy_by_step: Array
    """H(m) / log K of the posterior means at each training step, [M, L]."""
    hard_share: Array
    """Share of tokens executed hard at each training step, [M]."""
    kl_weight: Array
    """Weight of the KL at each training step, [M]."""
    summary: dict[str, Any]
    """The figures of summary.json that are shown."""

    @classmethod
    def of(cls, folder: Path) -> "Reading":
        """Read the run in `folder`; raises `UsageError` if it has not finished or is damaged."""
        for name in ("summary.json", "posterior.nc", "metrics.jsonl"):
            if not (folder / name).is_file():
                state = "has not finished" if (folder / "config.yaml").is_file() else "is not a run"
                raise UsageError(f"{folder} {state}: it has no {name}")
        try:
            return cls._read(folder)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UsageError(f"{folder} is damaged: {error}") from error

    @classmethod
    def _read(cls, folder: Path) -> "Reading":
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        groups = _arviz.load(folder / "posterior.nc")
        posterior, prior = groups["posterior"]["route"], groups["prior"]["route"]
        stats, observed = groups["sample_stats"], groups["observed_data"]
        mechanisms = [str(name) for name in posterior["mechanism"].values]
        if mechanisms != list(summary["load"]) or not metrics:
            raise ValueError("summary.json, metrics.jsonl and posterior.nc are not of one run")
        return cls(
            folder=folder,
            draws=_by_draw(posterior, "layer", "token", "mechanism"),
            prior_draws=_by_draw(prior, "layer", "token", "mechanism"),
            means=stats["posterior_mean"].transpose("layer", "token", "mechanism").values,
            kl=_by_draw(stats["kl"], "layer", "token").mean(0),
            mechanisms=mechanisms,
            text=[str(piece) for piece in observed["text"].values],
            steps=np.array([record["step"] for record in metrics]),
            entropy_by_step=np.array([record["entropy_by_layer"] for record in metrics]),
            hard_share=np.array([record["hard_share"] for record in metrics]),
            kl_weight=np.array([record["kl_weight"] for record in metrics]),
            summary={key: summary[key] for key in SHOWN}
            | {key: summary[key] for key in SHOWN_IF_THERE if key in summary},
        )

    def uncertainty(self) -> Uncertainty:
        """Entropies of the route of each layer and token, [L, N]."""
        return uncertainty_from_draws(self.draws)

    def verdicts(self) -> list[Verdict]:
        return collapse_verdicts(self.means, self.kl)

    def diversity(self) -> list[dict[str, float]]:
        """By layer: effective numbers of mechanisms, information, entropies and KL."""
        uncertain = self.uncertainty()
        log_k = np.log(len(self.mechanisms)) if len(self.mechanisms) > 1 else 1.0
        return [
            {
                "effective_by_load": float(effective_number(load(means))),
                "effective_per_token": float(np.exp(entropy(means).mean())),
                "information": float(routing_information(means)),
                "entropy": float(entropy(means).mean() / log_k),
                "total": float(uncertain.total[layer].mean()),
                "expected": float(uncertain.expected[layer].mean()),
                "epistemic": float(uncertain.epistemic[layer].mean()),
                "kl": float(self.kl[layer].mean()),
            }
            for layer, means in enumerate(self.means)
        ]


def _by_draw(array: xr.DataArray, *dims: str) -> Array:
    """Values with chains and draws joined in the first axis."""
    stacked = array.stack(sample=("chain", "draw"))
    return stacked.transpose("sample", *dims).values
