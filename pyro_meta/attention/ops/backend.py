"""Which way hard routes are executed; chosen by device and size unless a test says otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

BACKENDS = ("auto", "gather", "mask", "flex", "triton")
LEAST_WIDTH = 16  # of a head, below which the compiled kernel of flex_attention is refused
_chosen: ContextVar[str] = ContextVar("backend", default="auto")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Execute hard routes in one way, whatever the device and whether it pays.

    Parameters
    ----------
    name
        `gather`: chunks of gathered queries on `scaled_dot_product_attention`. `mask`: the softmax
        mechanisms of a layer in one masked call of it, and the others gathered. `flex`:
        `flex_attention`; on a CPU it runs eagerly, without gradients. `triton`: the kernels of
        `pyro_meta.attention.ops.triton`, where no gradient is wanted; on a CPU in float32, in
        Triton's interpreter. `auto`, as everywhere outside this context: triton on CUDA, flex there
        with gradients; and elsewhere what a profile of the machine takes for the fastest of gather,
        mask, and a mechanism on all tokens.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} given; {', '.join(BACKENDS)} are allowed")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def is_forced() -> bool:
    """Whether a mechanism serves its own tokens even where that does not pay."""
    return _chosen.get() != "auto"


def masks() -> bool:
    """Whether softmax mechanisms share a masked call, whatever that costs."""
    return _chosen.get() == "mask"


def uses_flex(device_type: str, head_width: int) -> bool:
    """Whether softmax attention runs on `flex_attention`, by itself from `LEAST_WIDTH` on."""
    name = _chosen.get()
    is_able = device_type == "cuda" and head_width >= LEAST_WIDTH
    return name == "flex" or (name == "auto" and is_able)


def uses_triton(device_type: str) -> bool:
    """Whether attention runs in this project's own kernels, where they know how to."""
    name = _chosen.get()
    return name == "triton" or (name == "auto" and device_type == "cuda" and _has_triton())


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
