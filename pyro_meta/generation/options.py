"""The options of sampling by name, with their help; nothing here needs PyTorch."""

import math
from dataclasses import dataclass

from pyro_meta.errors import UsageError


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen from its distribution.

    Raises
    ------
    UsageError
        A setting is out of range.
    """

    temperature: float = 0.8
    """Divides the logits: below 1 likely tokens become likelier, above 1 less likely."""
    top_k: int | None = None
    """Keep the k likeliest tokens; of equally likely ones, any that make up the number."""
    top_p: float | None = None
    """Keep the fewest tokens whose probabilities sum to p (nucleus sampling)."""
    greedy: bool = False
    """Take the likeliest token; temperature, top_k and top_p then play no part."""

    def __post_init__(self) -> None:
        if not 1e-300 < self.temperature < math.inf:
            raise UsageError(
                f"option --temperature: {self.temperature} given; a finite number above 0 "
                "is allowed (for the likeliest token use --greedy true)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"option --top_k: {self.top_k} given; at least 1 is allowed")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"option --top_p: {self.top_p} given; 0 < p <= 1 is allowed")
