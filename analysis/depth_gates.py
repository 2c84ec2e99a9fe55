"""How deep tokens go: what depth gates do. L layers, N tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_meta.analysis.diversity import Array
from pyro_meta.analysis.token_classes import Piece, ranked_pieces

LISTED = 8
"""Kinds of tokens that are listed as skipping the most, and the least."""


@dataclass(frozen=True)
class Depth:
    """The gates along the deployed route, [L, N] each; the first layer is always open."""

    mean: Array
    """Posterior mean."""
    prior_mean: Array
    runs: Array
    """Whether the token runs the layer once it is hard, 0 or 1."""
    kl: Array
    """KL(q || p), nats."""

    @classmethod
    def of(cls, stats: Mapping[str, Array]) -> "Depth | None":
        """From the group `tokens`, [L, N] each; None where there are no gates."""
        if "depth_mean" not in stats:
            return None
        return cls(*(stats[f"depth_{name}"] for name in ("mean", "prior_mean", "runs", "kl")))

    def by_layer(self) -> list[dict[str, float]]:
        """Shares of tokens that skip a layer: hard, by posterior and prior mean; and the KL."""
        return [
            {
                "skipped": float(1 - self.runs[layer].mean(dtype=float)),
                "skipped_soft": float(1 - self.mean[layer].mean(dtype=float)),
                "skipped_prior": float(1 - self.prior_mean[layer].mean(dtype=float)),
                "kl": float(self.kl[layer].mean(dtype=float)),
            }
            for layer in range(len(self.mean))
        ]

    def by_piece(self, text: Sequence[str]) -> dict[str, list[Piece]]:
        """The pieces of text that skip the greatest and the least share of the gated layers."""
        ranked = ranked_pieces(text, 1 - self.runs[1:].mean(0, dtype=float))
        return {"most": ranked[:LISTED], "least": ranked[::-1][:LISTED]}

    def to_json(self, text: Sequence[str]) -> dict[str, Any]:
        listed = {
            which: [{"text": one.text, "skipped": one.mean, "count": one.times} for one in pieces]
            for which, pieces in self.by_piece(text).items()
        }
        return {"by_layer": self.by_layer(), "tokens": listed}
