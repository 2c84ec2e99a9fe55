"""The sizes of a transformer that its mechanisms are built of."""

from typing import NamedTuple

CHUNK = 16


class Sizes(NamedTuple):
    """What `Mechanism.of_sizes` is given; each mechanism takes of it what it knows."""

    head_width: int
    """Width d of a head."""
    window: int
    """Tokens that `window` attention sees, the token itself included."""
    chunk: int = CHUNK
    """Tokens in a chunk of the `chunk` mechanisms."""
    sinks: int = 0
    """First tokens of the text that `window` attention sees beside the last ones."""
