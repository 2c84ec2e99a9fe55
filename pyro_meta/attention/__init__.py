"""How a token may attend: pure tensor functions, and the mechanisms built from them."""

from pyro_meta.attention.backend import backend
from pyro_meta.attention.cache import Cache, LayerCache, Span, read_in_pieces
from pyro_meta.attention.dispatch import (
    NO_TOKEN,
    Inputs,
    is_choice,
    routed_attention,
)
from pyro_meta.attention.functional import full_attention, linear_attention, window_attention
from pyro_meta.attention.hamiltonian import mean_attention
from pyro_meta.attention.mechanisms import (
    BUILT_IN,
    Full,
    Linear,
    LinearMomentum,
    Mechanism,
    Window,
    build_mechanisms,
    carries,
    decodes,
    find_mechanism,
    recurs,
    serves,
)
from pyro_meta.attention.queries import Queries

__all__ = [
    "BUILT_IN",
    "NO_TOKEN",
    "Cache",
    "Full",
    "Inputs",
    "LayerCache",
    "Linear",
    "LinearMomentum",
    "Mechanism",
    "Queries",
    "Span",
    "Window",
    "backend",
    "build_mechanisms",
    "carries",
    "decodes",
    "find_mechanism",
    "full_attention",
    "is_choice",
    "linear_attention",
    "mean_attention",
    "read_in_pieces",
    "recurs",
    "routed_attention",
    "serves",
    "window_attention",
]
