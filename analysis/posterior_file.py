"""posterior.nc: what it holds, and how it is written piece by piece.

    posterior       route [chain, draw, layer, token, mechanism]       draws of q(alpha | x)
    prior           route [chain, draw, layer, position, mechanism]    draws of p(alpha)
    log_likelihood  next_token [chain, draw, sequence]                 log p(y | alpha) by sequence
    observed_data   next_token, input_token, text [token]
    sample_stats    by token, by draw and by block: see `LAYOUT`

A model with depth gates has, besides, `depth` in posterior and prior, like `route` but a number,
and `depth_...` in sample_stats (`GATES`).

`token` counts all validation tokens in `observed_data` and `sample_stats`; draws are of the first
of them alone, whole sequences if one fits, and so `token` is shorter in `posterior`. What is known
of drawn tokens only is NaN for the others. Every group is one netCDF group, as ArviZ wants it, and
grows along its unlimited dimensions: memory is that of one piece, however long the text.

Dimensions: S draws, L layers, N tokens, K mechanisms.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5netcdf
import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_meta.analysis.own_thread import OwnThread
from pyro_meta.analysis.patient_file import PatientFile
from pyro_meta.folders import replacing

VERSION = 3
"""Of the layout; what reads a file compares it."""

TEXT = h5py.string_dtype()
GROWING = ("token", "sequence", "block")
CHUNK_VALUES = 1 << 16
MOST_NATS = 1e9
"""No loss, entropy or log density is as large; whatever is computed of them stays finite."""


class Variable(NamedTuple):
    """Dimensions and type of a variable, what it is, and which values it can have."""

    dims: tuple[str, ...]
    dtype: Any
    meaning: str
    least: float = -MOST_NATS
    most: float = MOST_NATS
    has_gaps: bool = False
    """Whether it is NaN where it does not apply or is not known."""


SHARE = (-1e-3, 1 + 1e-3)
"""Bounds of weights and probabilities, to rounding in the coarsest precision."""
INDEX = (0, 2**31 - 1)
"""Bounds of what is counted from 0."""

_BY_MECHANISM = ("layer", "token", "mechanism")
_ROUTE_DRAWS = ("chain", "draw", "layer", "token", "mechanism")
_PRIOR_DRAWS = ("chain", "draw", "layer", "position", "mechanism")

LAYOUT: dict[str, dict[str, Variable]] = {
    "posterior": {"route": Variable(_ROUTE_DRAWS, "f4", "draws of q(alpha | x)", *SHARE)},
    "prior": {"route": Variable(_PRIOR_DRAWS, "f4", "draws of p(alpha)", *SHARE)},
    "log_likelihood": {
        "next_token": Variable(
            ("chain", "draw", "sequence"), "f8", "log p(y | alpha), nats per sequence"
        )
    },
    "observed_data": {
        "next_token": Variable(("token",), "i4", "y", *INDEX),
        "input_token": Variable(("token",), "i4", "x", *INDEX),
        "text": Variable(("token",), TEXT, "what x adds to the text"),
    },
    "sample_stats": {
        "sequence": Variable(("token",), "i4", "which validation sequence", *INDEX),
        "position": Variable(("token",), "i4", "place in its sequence, from 0", *INDEX),
        "posterior_mean": Variable(_BY_MECHANISM, "f4", "E_q[alpha]", *SHARE),
        "prior_mean": Variable(_BY_MECHANISM, "f4", "E_p[alpha]", *SHARE),
        "choice": Variable(
            ("layer", "token"),
            "i1",
            "mechanism that runs once it is hard; -1: a mixture runs",
            -1,
            127,
        ),
        "concentration": Variable(
            ("layer", "token"), "f4", "a_0 of a Dirichlet, else NaN", 0, np.inf, True
        ),
        "prior_concentration": Variable(
            ("layer", "token"), "f4", "the same of the prior", 0, np.inf, True
        ),
        "entropy_total": Variable(("layer", "token"), "f4", "H(E_q[alpha]), nats"),
        "entropy_expected": Variable(("layer", "token"), "f4", "E_q[H(alpha)], nats"),
        "entropy_epistemic": Variable(("layer", "token"), "f4", "total - expected, nats"),
        "kl": Variable(("layer", "token"), "f4", "KL(q || p), nats"),
        "nll_soft": Variable(("token",), "f4", "-log p(y) along posterior means, nats", -1e-3),
        "nll_hard": Variable(("token",), "f4", "-log p(y) along hard routes, nats", -1e-3),
        "nll_averaged": Variable(
            ("token",), "f4", "-log of p(y | alpha) averaged over draws", -1e-3, np.inf, True
        ),
        "top_probability": Variable(("token",), "f4", "greatest p(y | x), deployed route", *SHARE),
        "top_is_right": Variable(
            ("token",), "f4", "whether that y is the one that came, 0 or 1", *SHARE
        ),
        "top_probability_averaged": Variable(
            ("token",), "f4", "the same, averaged over draws", *SHARE, True
        ),
        "top_is_right_averaged": Variable(("token",), "f4", "likewise", *SHARE, True),
        "block_sequence": Variable(("block",), "i4", "sequence of the block", *INDEX),
        "block_position": Variable(("block",), "i4", "position of its first token", *INDEX),
        "block_length": Variable(("block",), "i4", "tokens in it", 1, INDEX[1]),
        "block_log_likelihood": Variable(
            ("block_draw", "block"), "f8", "log p(y | alpha) of the block, nats"
        ),
        "block_expected_log_likelihood": Variable(
            ("block_draw", "block"), "f8", "the same, expected for y as the deployed route predicts"
        ),
        "block_log_ratio": Variable(
            ("block_draw", "block"), "f8", "log p(alpha) - log q(alpha) of the block, nats"
        ),
    },
}
"""Every variable of every group."""

GATES: dict[str, dict[str, Variable]] = {
    "posterior": {"depth": Variable(_ROUTE_DRAWS[:-1], "f4", "draws of q(g | x)", *SHARE)},
    "prior": {"depth": Variable(_PRIOR_DRAWS[:-1], "f4", "draws of p(g)", *SHARE)},
    "sample_stats": {
        "depth_mean": Variable(
            ("layer", "token"), "f4", "E_q[g], how far open the gate is", *SHARE
        ),
        "depth_prior_mean": Variable(("layer", "token"), "f4", "E_p[g]", *SHARE),
        "depth_runs": Variable(
            ("layer", "token"), "i1", "whether it runs the layer, once hard", *SHARE
        ),
        "depth_kl": Variable(("layer", "token"), "f4", "KL(q || p) of the gate, nats"),
    },
}
"""What a model with depth gates has besides."""


class PosteriorWriter:
    """Writes posterior.nc under a temporary name, and renames it once it is whole.

    Use it as a context; an exception leaves nothing behind. A disk that is full, or fails, is an
    `OSError` of the step that found it so.

    Parameters
    ----------
    path
        The file to be.
    sizes
        Lengths of the fixed dimensions: chain, draw, layer, position and block_draw.
    mechanisms
        Their names, in the order of the weights.
    facts
        What belongs to the whole file, kept as attributes of `sample_stats`.
    is_gated
        Whether there are depth gates.
    """

    def __init__(
        self,
        path: Path,
        sizes: Mapping[str, int],
        mechanisms: Sequence[str],
        facts: Mapping[str, Any],
        is_gated: bool = False,
    ) -> None:
        more = GATES if is_gated else {}
        self._layout = {name: own | more.get(name, {}) for name, own in LAYOUT.items()}
        self._path = path
        self._file: Any = None
        self._sizes = dict(sizes) | {"mechanism": len(mechanisms)}
        self._mechanisms, self._facts = list(mechanisms), dict(facts)

    def __enter__(self) -> "PosteriorWriter":
        with ExitStack() as stack:
            partial = stack.enter_context(replacing(self._path))
            self._disk = stack.enter_context(PatientFile(partial, self._path))
            # its own thread: a signal raises in the main one, which HDF5 would not survive
            self._thread = stack.enter_context(OwnThread())
            stack.push(self._close)
            self._do(self._open)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, dim: str, pieces: Mapping[str, Mapping[str, ArrayLike]]) -> None:
        """Make `dim` longer in each group that is named, and fill the variables that are given.

        Variables of `dim` that are left out stay NaN there.

        Parameters
        ----------
        dim
            `token`, `sequence` or `block`.
        pieces
            Group -> variable -> values, all of one length along `dim`.

        Raises
        ------
        OSError
            The disk does not take it.
        """
        self._do(self._append, dim, pieces)

    def update(self, group: str, dim: str, start: int, values: Mapping[str, ArrayLike]) -> None:
        """Fill variables from `start` on along `dim`, where `append` has made room."""
        self._do(self._update, group, dim, start, values)

    def put(self, group: str, name: str, values: ArrayLike) -> None:
        """Fill a variable that does not grow."""
        self._do(self._put, group, name, values)

    def _do(self, step: Callable[..., None], *args: Any) -> None:
        """Take a step in the thread of HDF5, and tell what the disk said of it."""
        self._thread.do(partial(step, *args))
        if self._disk.failure is not None:
            raise self._disk.failure

    def _close(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close the file, whatever has happened; a disk that failed is told of once."""
        if self._file is not None:
            self._thread.do(self._file.close)
        if error is None and self._disk.failure is not None:
            raise self._disk.failure

    def _open(self) -> None:
        self._file = h5netcdf.File(self._disk, "w")
        for name, variables in self._layout.items():
            self._begin(self._file.create_group(name), variables)
        self._file["sample_stats"].attrs.update(self._facts | {"layout": VERSION})

    def _append(self, dim: str, pieces: Mapping[str, Mapping[str, ArrayLike]]) -> None:
        for name, values in pieces.items():
            group, layout = self._file[name], self._layout[name]
            arrays = {key: np.asarray(value) for key, value in values.items()}
            lengths = {a.shape[layout[key].dims.index(dim)] for key, a in arrays.items()}
            (length,) = lengths
            start = len(group.dimensions[dim])
            group.resize_dimension(dim, start + length)
            if dim in group.variables:
                group[dim][start:] = np.arange(start, start + length)
            for key, array in arrays.items():
                group[key][_window(layout[key].dims, dim, slice(start, start + length))] = array

    def _update(self, group: str, dim: str, start: int, values: Mapping[str, ArrayLike]) -> None:
        for key, value in values.items():
            array, dims = np.asarray(value), self._layout[group][key].dims
            stop = start + array.shape[dims.index(dim)]
            self._file[group][key][_window(dims, dim, slice(start, stop))] = array

    def _put(self, group: str, name: str, values: ArrayLike) -> None:
        self._file[group][name][...] = np.asarray(values)

    def _begin(self, group: Any, variables: Mapping[str, Variable]) -> None:
        used = dict.fromkeys(dim for variable in variables.values() for dim in variable.dims)
        for dim in used:
            group.dimensions[dim] = None if dim in GROWING else self._sizes[dim]
        for dim in used:
            if dim in variables:  # as in `sample_stats`, where `position` is one of each token
                continue
            if dim == "mechanism":
                group.create_variable(dim, (dim,), TEXT)[...] = np.array(self._mechanisms, object)
                continue
            index = group.create_variable(dim, (dim,), "i8", chunks=_chunks((dim,), self._sizes))
            if dim not in GROWING:
                index[...] = np.arange(self._sizes[dim])
        for name, variable in variables.items():
            made = group.create_variable(
                name,
                variable.dims,
                variable.dtype,
                chunks=_chunks(variable.dims, self._sizes),
                fillvalue=np.nan if str(variable.dtype).startswith("f") else None,
                **(
                    {} if variable.dtype is TEXT else {"compression": "gzip", "compression_opts": 1}
                ),
            )
            made.attrs["long_name"] = variable.meaning


def _chunks(dims: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """Shape of a chunk on disk: whole along fixed dimensions, about 2^16 values in all."""
    if not set(dims) & set(GROWING):
        return None
    others = int(np.prod([sizes[dim] for dim in dims if dim not in GROWING], dtype=np.int64))
    grown = max(1, CHUNK_VALUES // max(1, others))
    return tuple(grown if dim in GROWING else max(1, sizes[dim]) for dim in dims)


def _window(dims: Sequence[str], dim: str, span: slice) -> tuple[slice, ...]:
    return tuple(span if one == dim else slice(None) for one in dims)


def as_text(pieces: Sequence[str]) -> NDArray[Any]:
    """Strings as netCDF can keep them: they end at a NUL there, so that it is shown instead."""
    return np.array([piece.replace("\0", "\u2400") for piece in pieces], dtype=object)
