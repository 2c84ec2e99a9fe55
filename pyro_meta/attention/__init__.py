"""How a token may attend: pure tensor functions, and the mechanisms built from them."""

from pyro_meta.attention.auxiliary_losses import collected_penalties
from pyro_meta.attention.cache import Cache, LayerCache, read_in_pieces
from pyro_meta.attention.chunks.mechanisms import Chunk, ChunkLearned, ChunkSentence, ChunkSliding
from pyro_meta.attention.dispatch import (
    NO_TOKEN,
    is_choice,
    one_for_all,
    recorded_attention,
    routed_attention,
)
from pyro_meta.attention.inputs import Inputs
from pyro_meta.attention.mechanisms import (
    Full,
    Linear,
    Mechanism,
    Window,
    carries,
    decodes,
    recurs,
    remembers,
    serves,
)
from pyro_meta.attention.memory import Memory
from pyro_meta.attention.momentum import LinearMomentum
from pyro_meta.attention.ops.backend import backend
from pyro_meta.attention.ops.dense import full_attention, linear_attention, window_attention
from pyro_meta.attention.ops.momentum import mean_attention
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.registry import BUILT_IN, build_mechanisms, find_mechanism
from pyro_meta.attention.sizes import Sizes
from pyro_meta.attention.span import Span

__all__ = [
    "BUILT_IN",
    "NO_TOKEN",
    "Cache",
    "Chunk",
    "ChunkLearned",
    "ChunkSentence",
    "ChunkSliding",
    "Full",
    "Inputs",
    "LayerCache",
    "Linear",
    "LinearMomentum",
    "Mechanism",
    "Memory",
    "Queries",
    "Sizes",
    "Span",
    "Window",
    "backend",
    "build_mechanisms",
    "carries",
    "collected_penalties",
    "decodes",
    "find_mechanism",
    "full_attention",
    "is_choice",
    "linear_attention",
    "mean_attention",
    "one_for_all",
    "read_in_pieces",
    "recorded_attention",
    "recurs",
    "remembers",
    "routed_attention",
    "serves",
    "window_attention",
]
