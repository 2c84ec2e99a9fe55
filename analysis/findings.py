"""All numbers of a report, gathered: what goes into report.json, and what the pictures draw."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from pyro_meta.analysis import collapse, diversity, verdicts
from pyro_meta.analysis.calibration import (
    ByUncertainty,
    Calibration,
    RiskCoverage,
    by_uncertainty,
    calibration,
    risk_coverage,
)
from pyro_meta.analysis.comparison import bootstrap_interval
from pyro_meta.analysis.diversity import Array, Mask
from pyro_meta.analysis.estimates import State
from pyro_meta.analysis.importance_weights import Weights, reliable_below, shape_alone, weigh
from pyro_meta.analysis.json_values import plain
from pyro_meta.analysis.reading import Reading
from pyro_meta.analysis.sensitivity import Sensitivity, power_scaled
from pyro_meta.analysis.token_classes import Piece, frequencies, kinds, ranked_pieces
from pyro_meta.analysis.verdicts import Judgement

BLOCK = 4
"""Tokens in a block whose k-hat is shown first."""
MOST_LEADING, LEAST_SHARE = 3, 0.005
"""Mechanisms that the headline names, and the least share that it does."""
MOST_UNCERTAIN = 12
"""Kinds of tokens that are listed as the most, and as the least uncertain."""


class Findings:
    """The diagnostics of one run, computed when they are asked for.

    Parameters
    ----------
    reading
        The run.
    belief
        What `pyro_meta.posterior` has found out with the network (belief.json), or nothing.
    """

    def __init__(self, reading: Reading, belief: Mapping[str, Any] | None = None) -> None:
        self.reading, self.belief = reading, dict(belief or {})

    # -- groups of tokens --------------------------------------------------------------------

    @cached_property
    def kinds(self) -> dict[str, Mask]:
        return kinds(self.reading.text)

    @cached_property
    def frequencies(self) -> dict[str, Mask]:
        return {k: v for k, v in frequencies(self.reading.ids).items() if v.any()}

    @cached_property
    def quarters(self) -> dict[str, Mask]:
        return {k: v for k, v in diversity.quarters(self.reading.position).items() if v.any()}

    def by_group(self) -> list[dict[str, Any]]:
        """Shares of mechanisms, uncertainty and loss of each group of tokens, layers together."""
        run = self.reading
        rows = []
        for division in (self.kinds, self.frequencies, self.quarters):
            for name, mask in division.items():
                shares = run.shares_among(mask)
                rows.append(
                    {
                        "group": name,
                        "share": float(mask.mean()),
                        "load": dict(zip(run.mechanisms, shares.tolist(), strict=True)),
                        "uncertainty": float(run.uncertainty[:, mask].mean(dtype=float)),
                        "epistemic": float(run.epistemic[:, mask].mean(dtype=float)),
                        "loss_hard": float(run.tokens["nll_hard"][mask].mean(dtype=float)),
                    }
                )
        return rows

    def spread(self) -> dict[str, Any]:
        """How much the route differs between tokens, layers, positions and classes of tokens."""
        run = self.reading
        means = run.means
        return {
            "tokens": diversity.spread(means).tolist(),
            "by_kind": [diversity.spread_between(m, self.kinds) for m in means],
            "by_frequency": [diversity.spread_between(m, self.frequencies) for m in means],
            "by_position": [diversity.spread_between(m, self.quarters) for m in means],
            "divergence_of_tokens": [diversity.mean_pairwise_divergence(m) for m in means],
            "divergence_of_layers": diversity.mean_pairwise_divergence(means.mean(1, dtype=float)),
            "divergence_of_loads": diversity.mean_pairwise_divergence(run.shares),
            "draws_differ": diversity.draws_differ(run.draws).mean(1).tolist(),
        }

    def uncertain_tokens(self) -> dict[str, list[dict[str, Any]]]:
        """The pieces of text whose routes are the most and the least uncertain on average."""
        run = self.reading
        ranked = ranked_pieces(run.text, run.uncertainty.mean(0, dtype=float))

        def listed(pieces: list[Piece]) -> list[dict[str, Any]]:
            return [
                {"text": one.text, "uncertainty": one.mean, "count": one.times} for one in pieces
            ]

        return {
            "most": listed(ranked[:MOST_UNCERTAIN]),
            "least": listed(ranked[::-1][:MOST_UNCERTAIN]),
        }

    # -- collapse ----------------------------------------------------------------------------

    def collapse(self) -> dict[str, Any]:
        run = self.reading
        quantiles = np.quantile(run.kl, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).T
        return {
            "checks_by_layer": [
                {
                    "question": check.question,
                    "threshold": check.threshold,
                    "values": [one.value for one in check.estimates],
                    "intervals": [one.interval for one in check.estimates],
                    "states": check.states,
                }
                for check in run.checks
            ],
            "whole_router": [
                asdict(verdict) | {"is_collapsed": verdict.is_collapsed}
                for verdict in run.verdicts()
            ],
            "kl_quantiles_by_layer": quantiles.tolist(),
            "share_at_prior_by_layer": collapse.share_at_prior(run.kl).tolist(),
            "active_units_by_layer": collapse.active_units(run.means).sum(1).tolist(),
            "dead_by_layer": [
                [name for name, dead in zip(run.mechanisms, row, strict=True) if dead]
                for row in collapse.dead_mechanisms(run.shares)
            ],
            "load_by_layer": run.shares.tolist(),
            "prior_mean_by_layer": run.prior_shares.tolist(),
            "load_against_prior_nats": collapse.against_prior(
                run.shares, run.prior_shares
            ).tolist(),
        }

    # -- belief ------------------------------------------------------------------------------

    @cached_property
    def block_lengths(self) -> list[int]:
        return sorted({int(length) for length in self.reading.blocks.length})

    def weights(self, length: int, kl_weight: float, without_y: bool = False) -> Weights:
        """Importance weights of the blocks of one length, for p_w(alpha | x, y).

        `without_y` takes the expectation over y as the deployed route predicts it in its place.
        """
        blocks = self.reading.blocks.of_length(length)
        evidence = blocks.expected_log_likelihood if without_y else blocks.log_likelihood
        return weigh(evidence, blocks.log_ratio, kl_weight)

    def targets(self) -> list[tuple[str, Weights]]:
        """Weights for every length of block and every posterior that they are held against."""
        w = self.reading.kl_weight
        rows = []
        for length in self.block_lengths:
            tokens = f"{length} token" + "s" * (length > 1)
            rows.append((f"{tokens}, w = {w:g}", self.weights(length, w)))
            rows.append((f"{tokens}, w = {w:g}, y unknown", self.weights(length, w, True)))
            if w != 1:
                rows.append((f"{tokens}, w = 1", self.weights(length, 1.0)))
        return rows

    @cached_property
    def judged(self) -> Weights | None:
        """Weights of blocks of 4 tokens, for the tempered posterior given x; None without any.

        Of shorter ones, where texts are shorter.
        """
        if not self.block_lengths:
            return None
        length = max(one for one in self.block_lengths if one <= max(BLOCK, self.block_lengths[0]))
        return self.weights(length, self.reading.kl_weight, without_y=True)

    @cached_property
    def tail_of_shapes(self) -> Array | None:
        """Tail index that the two Dirichlets alone force, [L, N]; None for other distributions."""
        run = self.reading
        if np.isnan(run.concentration).any() or np.isnan(run.prior_concentration).any():
            return None
        return shape_alone(
            run.concentration[..., None] * run.means,
            run.prior_concentration[..., None] * run.prior_means,
        )

    def believed(self) -> dict[str, Any]:
        """k-hat by length of block and tempering, and what the network's own tests said."""
        out: dict[str, Any] = {"kl_weight": self.reading.kl_weight, "blocks": []}
        for name, found in self.targets():
            out["blocks"].append(
                {
                    "target": name,
                    "kl_weight": found.kl_weight,
                    "blocks": len(found.k_hat),
                    "draws": len(self.reading.blocks.log_ratio),
                    "k_hat_quantiles": _quantiles(found.k_hat),
                    "share_below_0.7": found.usable,
                    "share_below_0.5": found.good,
                    "efficiency_median": float(np.median(found.efficiency)),
                    "gap_at_least_nats_per_block": float(found.gap.mean()),
                }
            )
        out["reliable_below"] = reliable_below(max(2, len(self.reading.blocks.log_ratio)))
        tail = self.tail_of_shapes
        out["tail_of_shapes_quantiles"] = None if tail is None else _quantiles(tail)
        return out | {k: v for k, v in self.belief.items() if k != "one_token"}

    @cached_property
    def sensitivity(self) -> Sensitivity | None:
        """What shares of mechanisms react to when prior or likelihood count more."""
        return power_scaled(self.reading)

    # -- use ---------------------------------------------------------------------------------

    @cached_property
    def token_uncertainty(self) -> Array:
        """E H(alpha) / log K, averaged over layers, [N]."""
        return self.reading.uncertainty.mean(0, dtype=float)

    def hardening(self) -> ByUncertainty:
        """What turning hard costs, by uncertainty of the route."""
        losses = self.reading.tokens
        difference = losses["nll_hard"].astype(float) - losses["nll_soft"]
        return by_uncertainty(self.token_uncertainty, difference)

    def selective(self) -> dict[str, RiskCoverage]:
        """Risk-coverage by the prediction's own probability, and by the route's uncertainty."""
        tokens = self.reading.tokens
        wrong = 1 - tokens["top_is_right"].astype(float)
        return {
            "probability of the prediction": risk_coverage(-tokens["top_probability"], wrong),
            "uncertainty of the route": risk_coverage(self.token_uncertainty, wrong),
        }

    @cached_property
    def drawn(self) -> Mask:
        """Which tokens have draws, [N]."""
        return np.isfinite(self.reading.tokens["nll_averaged"])

    def calibrated(self) -> dict[str, Calibration]:
        """Calibration on the drawn tokens, of the deployed route and averaged over draws."""
        tokens = {name: values[self.drawn] for name, values in self.reading.tokens.items()}
        return {
            "deployed route": calibration(tokens["top_probability"], tokens["top_is_right"]),
            "averaged over draws": calibration(
                tokens["top_probability_averaged"], tokens["top_is_right_averaged"]
            ),
        }

    def averaging(self) -> dict[str, Any]:
        """What averaging over draws of the routes is worth, by sequence, nats per token."""
        run = self.reading
        deployed = "nll_hard" if run.facts["hard_below"] >= 1 else "nll_soft"
        gain = (run.tokens["nll_averaged"].astype(float) - run.tokens[deployed])[self.drawn]
        sequence = run.sequence[self.drawn]
        means = np.array([gain[sequence == one].mean() for one in np.unique(sequence)])
        single = -run.log_likelihood / max(1, int(self.drawn.sum()) // len(means))
        return {
            "difference": float(means.mean()),
            "interval": bootstrap_interval(means) if len(means) > 1 else None,
            "sequences": len(means),
            "draws": len(run.draws),
            "single_draw": float(single.mean()),
            "averaged": float(run.tokens["nll_averaged"][self.drawn].mean(dtype=float)),
        }

    def used(self) -> dict[str, Any]:
        return {
            "hard_minus_soft_by_uncertainty": asdict(self.hardening()),
            "risk_coverage": {name: asdict(curve) for name, curve in self.selective().items()},
            "calibration": {name: asdict(curve) for name, curve in self.calibrated().items()},
            "averaging_over_draws": self.averaging(),
        }

    # -- the whole ---------------------------------------------------------------------------

    def judgements(self) -> list[Judgement]:
        """The verdict box: three collapses by layer, single tokens and use."""
        run = self.reading
        losses = run.sequence_losses
        return [
            *(verdicts.of_layers(check, run.layer_names) for check in run.checks),
            *verdicts.of_single_tokens(self.belief),
            verdicts.of_sensitivity(self.sensitivity),
            verdicts.of_hardening(losses["soft"], losses["hard"]),
        ]

    def headline(self) -> str:
        """What the run found, in a sentence: who decides, what runs, and what the checks say."""
        run = self.reading
        routing, count = verdicts.routing_layers(run.checks), len(run.means)
        layers = "layers" if int(run.facts["groups"]) == 1 else "pairs of layer and head group"
        does = "decides" if routing or count > 1 else "does not decide"
        where = f" in {routing or 'none'} of {count} {layers}" if count > 1 else ""
        rest = self.judgements()[len(run.checks) :]
        failed = sum(line.is_good is False for line in rest)
        undecided = sum(line.answer == State.UNDECIDED for line in rest)
        other = (
            f"{failed} of {len(rest)} other checks failed" if failed else "no other check failed"
        )
        return (
            f"The token {does} which mechanism runs{where}; {self._what_runs()}; "
            f"{other}{f', {undecided} undecided' if undecided else ''}."
        )

    def _what_runs(self) -> str:
        """The shares of the leading mechanisms, layers together, in words."""
        run = self.reading
        shares = run.shares_among(np.ones(run.means.shape[1], dtype=bool))
        of, verb = ("a mixture", "is") if (run.choice < 0).any() else ("all choices", "are")
        leading = np.argsort(-shares, kind="stable")[:MOST_LEADING]
        named = [(shares[k], run.mechanisms[k]) for k in leading if shares[k] >= LEAST_SHARE]
        (most, name), *others = named
        told = [f"{most:.1%} {verb} {name}", *(f"{share:.1%} {other}" for share, other in others)]
        return f"of {of} {', '.join(told)}"

    def to_json(self) -> dict[str, Any]:
        """Every number, as report.json holds it; None for what is no number."""
        run = self.reading
        return plain(
            {
                "run": run.folder.resolve().name,
                "facts": run.facts,
                "summary": run.summary,
                "headline": self.headline(),
                "verdicts": [asdict(line) for line in self.judgements()],
                "diversity_by_layer": run.diversity(),
                "groups_of_tokens": self.by_group(),
                "spread": self.spread(),
                "uncertain_tokens": self.uncertain_tokens(),
                "collapse": self.collapse(),
                "one_token": self.belief.get("one_token"),
                "belief": self.believed(),
                "sensitivity": None if self.sensitivity is None else self.sensitivity.to_json(),
                "use": self.used(),
                **({} if run.depth is None else {"depth": run.depth.to_json(run.text)}),
            }
        )


def _quantiles(values: Array) -> dict[str, float]:
    at = (0.05, 0.25, 0.5, 0.75, 0.95)
    with np.errstate(invalid="ignore"):  # between two that are infinite there is no number
        found = np.quantile(values, at)
    return {f"{q:g}": float(value) for q, value in zip(at, found, strict=True)}
