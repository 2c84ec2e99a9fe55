"""How a token may attend: pure tensor functions, and the mechanisms built from them."""

from pyro_meta.attention.functional import full_attention, linear_attention, window_attention
from pyro_meta.attention.mechanisms import (
    BUILT_IN,
    Full,
    Linear,
    Mechanism,
    Window,
    build_mechanisms,
    find_mechanism,
)

__all__ = [
    "BUILT_IN",
    "Full",
    "Linear",
    "Mechanism",
    "Window",
    "build_mechanisms",
    "find_mechanism",
    "full_attention",
    "linear_attention",
    "window_attention",
]
