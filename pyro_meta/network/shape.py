"""Sizes of a transformer."""

from dataclasses import dataclass

from pyro_meta.attention.sizes import CHUNK, Sizes
from pyro_meta.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer.

    Raises
    ------
    UsageError
        A size is out of range, or the width is not divisible by the heads.
    """

    vocabulary: int
    """Number of distinct tokens, V."""
    context: int = 256
    """Tokens in a training sequence: costs are averaged over that many positions, and generation
    reads the last that many."""
    width: int = 128
    """Width D of the residual stream; divisible by 2 x `heads`."""
    layers: int = 4
    """Number of layers L."""
    heads: int = 4
    """Number of query heads H in a layer."""
    kv_heads: int | None = None
    """Number of key-value heads G, a divisor of `heads` (grouped queries); None: as many as
    `heads`."""
    window: int = 64
    """Tokens that `window` attention sees, the token itself included."""
    dropout: float = 0.0
    """Dropout probability, at least 0 and below 1, after embedding, attention and MLP."""
    mlp_width: int | None = None
    """Hidden width of the MLP; None: 4 x `width`."""
    chunk: int = CHUNK
    """Tokens in a chunk of the `chunk` mechanisms; of `chunk_sentence` and `chunk_learned`, on
    average."""
    groups: int = 1
    """Groups of heads that are routed each for itself: 1, or the number of key-value heads."""
    sinks: int = 0
    """First tokens of the text that `window` attention sees beside the last ones."""

    head: int | None = None
    """Width of a head; None: `width` / `heads`."""

    def __post_init__(self) -> None:
        sizes = ("vocabulary", "context", "width", "layers", "heads", "window", "chunk")
        for name in (*sizes, "mlp_width", "head"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UsageError(f"{name}: {size} given; at least 1 is allowed")
        if self.sinks < 0:
            raise UsageError(f"sinks: {self.sinks} given; at least 0 is allowed")
        if self.head is None and self.width % (2 * self.heads):
            raise UsageError(
                f"width: {self.width} given; it must be divisible by 2 x heads = {2 * self.heads} "
                "(rotary positions turn pairs)"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UsageError(
                f"kv_heads: {self.kv_heads} given; a divisor of heads = {self.heads} is allowed"
            )
        if self.groups not in (1, self.kv_heads or self.heads):
            raise UsageError(
                f"groups: {self.groups} given; 1 or the number of key-value heads, "
                f"{self.kv_heads or self.heads}, is allowed"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout: {self.dropout} given; 0 <= dropout < 1 is allowed")

    @property
    def head_width(self) -> int:
        return self.head or self.width // self.heads

    @property
    def of_mechanisms(self) -> Sizes:
        """What mechanisms are built of."""
        return Sizes(self.head_width, self.window, self.chunk, self.sinks)

    @property
    def of_groups(self) -> tuple[int, ...]:
        """What stands behind [B, T] in the sizes of routes: (G,), or () of one group."""
        return () if self.groups == 1 else (self.groups,)

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_width or 4 * self.width
