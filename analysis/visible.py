"""Pieces of text, made visible: signs for line ends and tabs, codes for what has no shape."""

from pyro_meta.terminal.consoles import printable

SIGNS = {"\n": "\u23ce", "\t": "\u2192", "\r": "\u240d", "\ufffd": "\u25a1"}
SPACE = "\u2423"


def visible(piece: str, spaces: bool = False) -> str:
    """A piece with signs for what has no shape; for its spaces too, where `spaces`."""
    signs = SIGNS | ({" ": SPACE} if spaces else {})
    return "".join(signs.get(char) or printable(char) for char in piece)
