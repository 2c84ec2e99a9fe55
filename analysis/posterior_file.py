"""posterior.nc: what it holds, and how it is written piece by piece.

Draws, by ArviZ's InferenceData schema, of the first validation tokens:

    posterior             route [.., layer, group, token, mechanism]    draws of q(alpha | x)
    prior                 the same variables with the same dimensions, drawn from p(alpha)
    posterior_predictive  next_token [.., token]                  y drawn from p(y | alpha)
    log_likelihood        next_token [.., token]                  log p(y | alpha) of what came
    log_prior             route, compute [.., layer, group, token]      log p(alpha), by site
    sample_stats          lp, log_guide, cost [..]                one number for each draw
    observed_data         next_token [token]                      y
    constant_data         input_token, sequence, position, cost   x, and what mechanisms cost there

Figures in closed form, which need no draws, of all validation tokens, and importance weights of
short blocks, in two groups beside the schema:

    tokens                see `LAYOUT`
    blocks                terms of the weights, by block

`..` is chain, draw. A model with loads has, besides, `load` in posterior, prior and log_prior
(`LOADS`), one with depth gates `depth` there and `depth_...` in tokens (`GATES`). Every group has
the attributes of the file: which data, model, guide, weights, seed and versions.

`token` counts validation tokens. Draws are of the first of them alone, whole sequences if one fits,
so that it is longer in `tokens` than in the other groups; what is known of drawn tokens only is NaN
there for the others. Every group is one netCDF group and grows along its unlimited dimensions:
memory is that of one piece, however long the text.

Dimensions: S draws, L layers, G groups of heads, N tokens, K mechanisms.
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

VERSION = 4
"""Of the layout; what reads a file compares it."""

TEXT = h5py.string_dtype()
GROWING = ("token", "block")
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

_BY_LAYER = ("layer", "group", "token")
_BY_MECHANISM = (*_BY_LAYER, "mechanism")
_DRAWN = ("chain", "draw")
_UNKNOWN = (-MOST_NATS, MOST_NATS, True)
"""Of a density that may not be there."""

_ROUTE = Variable((*_DRAWN, *_BY_MECHANISM), "f4", "", *SHARE)
_LOAD = Variable((*_DRAWN, "layer", "group", "mechanism"), "f4", "", *SHARE)
_DEPTH = Variable((*_DRAWN, "layer", "token"), "f4", "", *SHARE)

LAYOUT: dict[str, dict[str, Variable]] = {
    "posterior": {"route": _ROUTE._replace(meaning="draws of q(alpha | x)")},
    "prior": {"route": _ROUTE._replace(meaning="draws of p(alpha)")},
    "posterior_predictive": {
        "next_token": Variable((*_DRAWN, "token"), "i4", "y drawn from p(y | alpha)", *INDEX)
    },
    "log_likelihood": {
        "next_token": Variable((*_DRAWN, "token"), "f4", "log p(y | alpha), nats, untempered")
    },
    "log_prior": {
        "route": Variable(
            (*_DRAWN, *_BY_LAYER), "f4", "log p(alpha | load), nats; NaN without density", *_UNKNOWN
        ),
        "compute": Variable(
            (*_DRAWN, *_BY_LAYER), "f4", "-lambda E_k[c], what compute costs, nats"
        ),
    },
    "sample_stats": {
        "lp": Variable(
            _DRAWN, "f8", "log p(alpha) + log p(y | alpha) / kl_weight, nats, drawn tokens",
            *_UNKNOWN,
        ),
        "log_guide": Variable(
            _DRAWN, "f8", "log q(alpha | x), nats, drawn tokens; NaN without density", *_UNKNOWN
        ),
        "cost": Variable(_DRAWN, "f8", "mean cost of the routes, full attention = 1"),
    },
    "observed_data": {"next_token": Variable(("token",), "i4", "y", *INDEX)},
    "constant_data": {
        "input_token": Variable(("token",), "i4", "x", *INDEX),
        "sequence": Variable(("token",), "i4", "which validation sequence", *INDEX),
        "position": Variable(("token",), "i4", "place in its sequence, from 0", *INDEX),
        "cost": Variable(
            ("token", "mechanism"), "f4", "MACs of the mechanism there, full attention = 1"
        ),
    },
    "tokens": {
        "next_token": Variable(("token",), "i4", "y", *INDEX),
        "input_token": Variable(("token",), "i4", "x", *INDEX),
        "text": Variable(("token",), TEXT, "what x adds to the text"),
        "sequence": Variable(("token",), "i4", "which validation sequence", *INDEX),
        "position": Variable(("token",), "i4", "place in its sequence, from 0", *INDEX),
        "posterior_mean": Variable(_BY_MECHANISM, "f4", "E_q[alpha]", *SHARE),
        "prior_mean": Variable(_BY_MECHANISM, "f4", "E_p[alpha]", *SHARE),
        "choice": Variable(
            _BY_LAYER, "i1", "mechanism that runs once it is hard; -1: a mixture runs", -1, 127
        ),
        "concentration": Variable(
            _BY_LAYER, "f4", "a_0 of a Dirichlet, else NaN", 0, np.inf, True
        ),
        "prior_concentration": Variable(
            _BY_LAYER, "f4", "the same of the prior", 0, np.inf, True
        ),
        "entropy_total": Variable(_BY_LAYER, "f4", "H(E_q[alpha]), nats"),
        "entropy_expected": Variable(_BY_LAYER, "f4", "E_q[H(alpha)], nats"),
        "entropy_epistemic": Variable(_BY_LAYER, "f4", "total - expected, nats"),
        "kl": Variable(_BY_LAYER, "f4", "KL(q || p), nats"),
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
    },
    "blocks": {
        "sequence": Variable(("block",), "i4", "sequence of the block", *INDEX),
        "position": Variable(("block",), "i4", "position of its first token", *INDEX),
        "length": Variable(("block",), "i4", "tokens in it", 1, INDEX[1]),
        "log_likelihood": Variable(
            ("block_draw", "block"), "f8", "log p(y | alpha) of the block, nats"
        ),
        "expected_log_likelihood": Variable(
            ("block_draw", "block"), "f8", "the same, expected for y as the deployed route predicts"
        ),
        "log_ratio": Variable(
            ("block_draw", "block"), "f8", "log p(alpha) - log q(alpha) of the block, nats"
        ),
    },
}  # fmt: skip
"""Every variable of every group."""

LOADS: dict[str, dict[str, Variable]] = {
    "posterior": {"load": _LOAD._replace(meaning="draws of q(pi)")},
    "prior": {"load": _LOAD._replace(meaning="draws of p(pi)")},
    "log_prior": {
        "load": Variable((*_DRAWN, "layer", "group"), "f4", "log p(pi), nats", *_UNKNOWN)
    },
}
"""What a model whose prior has loads has besides."""

GATES: dict[str, dict[str, Variable]] = {
    "posterior": {"depth": _DEPTH._replace(meaning="draws of q(g | x)")},
    "prior": {"depth": _DEPTH._replace(meaning="draws of p(g)")},
    "log_prior": {
        "depth": Variable((*_DRAWN, "layer", "token"), "f4", "log p(g), nats", *_UNKNOWN)
    },
    "tokens": {
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


def layout(has_loads: bool = False, is_gated: bool = False) -> dict[str, dict[str, Variable]]:
    """Every variable of every group of a file."""
    loads, gates = LOADS if has_loads else {}, GATES if is_gated else {}
    return {name: own | loads.get(name, {}) | gates.get(name, {}) for name, own in LAYOUT.items()}


class PosteriorWriter:
    """Writes posterior.nc under a temporary name, and renames it once it is whole.

    Use it as a context; an exception leaves nothing behind. A disk that is full, or fails, is an
    `OSError` of the step that found it so.

    Parameters
    ----------
    path
        The file to be.
    sizes
        Lengths of the fixed dimensions: chain, draw, layer, group and block_draw.
    mechanisms
        Their names, in the order of the weights.
    facts
        What belongs to the whole file, kept as attributes of every group.
    has_loads
        Whether the prior has loads.
    is_gated
        Whether there are depth gates.
    """

    def __init__(
        self,
        path: Path,
        sizes: Mapping[str, int],
        mechanisms: Sequence[str],
        facts: Mapping[str, Any],
        has_loads: bool = False,
        is_gated: bool = False,
    ) -> None:
        self._layout = layout(has_loads, is_gated)
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
            `token` or `block`.
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
            group = self._file.create_group(name)
            self._begin(group, variables)
            group.attrs.update(self._facts | {"layout": VERSION})

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
