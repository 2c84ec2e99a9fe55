"""A run as the analysis sees it: its posterior, metrics and summary, read from files."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pyro_meta.analysis import arviz_versions
from pyro_meta.analysis.collapse import Verdict, collapse_verdicts
from pyro_meta.analysis.depth_gates import Depth
from pyro_meta.analysis.diversity import (
    Array,
    Choices,
    Mask,
    effective_number,
    entropy,
    load,
    routing_information,
)
from pyro_meta.analysis.json_values import plain
from pyro_meta.analysis.posterior_file import VERSION
from pyro_meta.errors import UsageError

SHOWN = ("val_nll_soft", "val_nll_hard", "cost_nominal_hard", "cost_macs_hard", "hard_fraction")
BY_TOKEN = (
    "nll_soft", "nll_hard", "nll_averaged", "top_probability", "top_is_right",
    "top_probability_averaged", "top_is_right_averaged",
)  # fmt: skip
SHOWN_IF_THERE = ("executed", "depth", "truth", "seed", "parameters")  # depth and truth are not


@dataclass(frozen=True)
class Blocks:
    """Terms of importance weights of short blocks of tokens; S draws, R blocks."""

    length: Choices
    """Tokens in each block, [R]."""
    position: Choices
    """Position of its first token, [R]."""
    log_likelihood: Array
    """log p(y | alpha), [S, R]."""
    expected_log_likelihood: Array
    """The same, expected for y as the deployed route predicts it, [S, R]."""
    log_ratio: Array
    """log p(alpha) - log q(alpha | x), [S, R]."""

    def of_length(self, length: int) -> "Blocks":
        """Those blocks alone."""
        kept = self.length == length
        return Blocks(
            self.length[kept],
            self.position[kept],
            self.log_likelihood[:, kept],
            self.expected_log_likelihood[:, kept],
            self.log_ratio[:, kept],
        )


@dataclass(frozen=True)
class Reading:
    """What a run left behind.

    L layers, N validation tokens, M drawn ones (the first of them), K mechanisms, S draws, B drawn
    sequences.
    """

    folder: Path
    draws: Array
    """Posterior draws of the routes, [S, L, M, K]."""
    log_likelihood: Array
    """log p(y | alpha) of drawn sequences, [S, B], nats."""
    means: Array
    """Posterior means along the deployed route, [L, N, K]."""
    prior_means: Array
    """Prior means, [L, N, K]."""
    choice: Choices
    """Mechanism that runs once it is hard, [L, N]; -1 where a mixture does."""
    concentration: Array
    """a_0 of the posterior, [L, N]; NaN unless it is a Dirichlet."""
    prior_concentration: Array
    """a_0 of the prior, likewise."""
    total: Array
    """H(E alpha), [L, N], nats."""
    expected: Array
    """E H(alpha), [L, N], nats."""
    epistemic: Array
    """total - expected, [L, N], nats."""
    kl: Array
    """KL(q || p), [L, N], nats."""
    depth: Depth | None
    """Depth gates; None: there are none, and every token runs every layer."""
    tokens: dict[str, Array]
    """Figures by token, [N]: losses and top predictions under their names in the file."""
    blocks: Blocks
    sequence: Choices
    """Which sequence a token is of, [N]."""
    position: Choices
    """Its place there, [N]."""
    ids: Choices
    """Token ids, [N]."""
    mechanisms: list[str]
    text: list[str]
    """What each token adds to the text, [N]."""
    kl_weight: float
    """w at the end of training: what the posterior is tempered by."""
    facts: dict[str, Any]
    """Guide, prior, context and the like."""
    steps: Array
    """Training steps, [M]."""
    entropy_by_step: Array
    """H(m) / log K of the posterior means at each training step, [M, L]."""
    hard_share: Array
    """Share of tokens executed hard at each training step, [M]."""
    kl_weight_by_step: Array
    """Weight of the KL at each training step, [M]."""
    kl_by_step: Array
    """KL(q || p) over all layers at each training step, [M], nats per token."""
    sequence_losses: dict[str, Any]
    """sequences.json: losses by validation sequence, and which sequences these are."""
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
        except UsageError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise UsageError(f"{folder} is damaged: {error}") from error

    @classmethod
    def _read(cls, folder: Path) -> "Reading":
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        losses = folder / "sequences.json"
        groups = arviz_versions.load(folder / "posterior.nc")
        stats, observed = groups["sample_stats"], groups["observed_data"]
        if stats.attrs.get("layout") != VERSION:
            raise UsageError(
                f"{folder / 'posterior.nc'} has the layout of another version; "
                f"python -m pyro_meta.report --reread {folder} writes it anew"
            )
        mechanisms = [str(name) for name in stats["mechanism"].values]
        if mechanisms != list(summary["load"]) or not metrics:
            raise ValueError("summary.json, metrics.jsonl and posterior.nc are not of one run")

        def by_layer(name: str, *dims: str) -> Any:
            return stats[name].transpose("layer", "token", *dims).values

        def by_step(name: str) -> Array:
            return np.array([record[name] for record in metrics])

        return cls(
            folder=folder,
            draws=_by_draw(groups["posterior"]["route"], "layer", "token", "mechanism"),
            log_likelihood=_by_draw(groups["log_likelihood"]["next_token"], "sequence"),
            means=by_layer("posterior_mean", "mechanism"),
            prior_means=by_layer("prior_mean", "mechanism"),
            choice=by_layer("choice"),
            concentration=by_layer("concentration"),
            prior_concentration=by_layer("prior_concentration"),
            total=by_layer("entropy_total"),
            expected=by_layer("entropy_expected"),
            epistemic=by_layer("entropy_epistemic"),
            kl=by_layer("kl"),
            depth=Depth.of(stats),
            tokens={name: stats[name].values for name in BY_TOKEN},
            blocks=Blocks(
                stats["block_length"].values,
                stats["block_position"].values,
                *(
                    stats[f"block_{name}"].transpose("block_draw", "block").values
                    for name in ("log_likelihood", "expected_log_likelihood", "log_ratio")
                ),
            ),
            sequence=stats["sequence"].values,
            position=stats["position"].values,
            ids=observed["input_token"].values,
            mechanisms=mechanisms,
            text=[str(piece) for piece in observed["text"].values],
            kl_weight=float(stats.attrs["kl_weight"]),
            facts=plain(stats.attrs),
            steps=by_step("step"),
            entropy_by_step=by_step("entropy_by_layer"),
            hard_share=by_step("hard_share"),
            kl_weight_by_step=by_step("kl_weight"),
            kl_by_step=by_step("kl"),
            sequence_losses=json.loads(losses.read_text("utf-8")) if losses.is_file() else {},
            summary={key: summary[key] for key in SHOWN}
            | {key: summary[key] for key in SHOWN_IF_THERE if key in summary},
        )

    @cached_property
    def runs(self) -> Mask:
        """Which tokens run a layer once they are hard, [L, N]; all, where there are no gates."""
        if self.depth is None:
            return np.ones(self.kl.shape, dtype=bool)
        return self.depth.runs.astype(bool)

    def loads_among(self, mask: Mask) -> Array:
        """Share of tokens that run each mechanism, of those of `mask` [N] that run the layer, [K].

        Layers together.
        """
        if self.depth is None:
            return load(self.choice[:, mask], self.means[:, mask]).mean(0)
        runs = self.runs[:, mask]
        return load(self.choice[:, mask][runs], self.means[:, mask][runs])

    @cached_property
    def loads(self) -> Array:
        """Share of tokens that run each mechanism, of those that run the layer, [L, K].

        Of all tokens where nobody runs it.
        """
        if self.depth is None:
            return load(self.choice, self.means)
        rows = []
        for layer, runs in enumerate(self.runs):
            among = runs if runs.any() else np.ones_like(runs)
            rows.append(load(self.choice[layer, None][:, among], self.means[layer, None][:, among]))
        return np.concatenate(rows)

    @cached_property
    def prior_shares(self) -> Array:
        """Mean of the prior over all tokens, [L, K]."""
        return self.prior_means.mean(1, dtype=float)

    @property
    def log_k(self) -> float:
        """log K, the most that an entropy can be; 1 where there is a single mechanism."""
        return float(np.log(len(self.mechanisms))) if len(self.mechanisms) > 1 else 1.0

    def verdicts(self) -> list[Verdict]:
        return collapse_verdicts(self.means, self.kl, self.loads)

    def diversity(self) -> list[dict[str, float]]:
        """By layer: effective numbers of mechanisms, information, entropies and KL."""
        return [
            {
                "effective_by_load": float(effective_number(self.loads[layer])),
                "effective_by_mean": float(effective_number(means.mean(0, dtype=float))),
                "effective_per_token": float(np.exp(entropy(means).mean(dtype=float))),
                "information": float(routing_information(means)),
                "entropy": float(entropy(means).mean(dtype=float) / self.log_k),
                "total": float(self.total[layer].mean(dtype=float)),
                "expected": float(self.expected[layer].mean(dtype=float)),
                "epistemic": float(self.epistemic[layer].mean(dtype=float)),
                "kl": float(self.kl[layer].mean(dtype=float)),
            }
            for layer, means in enumerate(self.means)
        ]


def _by_draw(array: xr.DataArray, *dims: str) -> Array:
    """Values with chains and draws joined in the first axis."""
    ordered = array.transpose("chain", "draw", *dims).values
    return ordered.reshape(-1, *ordered.shape[2:])
