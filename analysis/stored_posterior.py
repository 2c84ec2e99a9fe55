"""posterior.nc, read back: what its layout promises, and nothing that it cannot hold.

A run may come from anybody. So the file is looked at before anything of it is read: links and
storage that lead out of it, types and lengths that are not those of the layout, and sizes that its
bytes cannot hold are refused without following or allocating them. Values are held against their
bounds, so that what is computed of them stays finite.

That is not all: of some damaged files HDF5 itself never returns, or takes the process with it. So
another process reads each file first.
"""

import math
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from pyro_meta.analysis.posterior_file import (
    CHUNK_VALUES,
    GROWING,
    TEXT,
    VERSION,
    Variable,
    layout,
)
from pyro_meta.checksums import require_plain

MOST_PACKED = 1032
"""Bytes that deflate can make of one, at most."""
POINTER = 16
"""Bytes of a string in its variable; the string itself lies elsewhere in the file."""
STRINGS_AT_ONCE = 4096
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
FACTS = {
    "kl_weight": float, "guide": str, "prior": str, "is_mixture": int, "context": int,
    "hard_below": float, "layout": int, "groups": int, "seed": int, "data": str,
    "data_sha256": str, "weights_sha256": str,
}  # fmt: skip
"""Attributes that are read, and their types; every group has them, and those of `sample_stats`
count."""
UNREAD = {
    "posterior": {"load", "depth"}, "prior": {"load", "depth"},
    "constant_data": {"input_token", "position"}, "tokens": {"next_token"},
    "sample_stats": {"log_guide", "lp"},
}  # fmt: skip
"""Variables that no diagnostic needs."""


class OtherVersion(ValueError):
    """The file has the layout of another version of pyro_meta."""


class Stored(NamedTuple):
    """What a posterior.nc holds."""

    groups: dict[str, dict[str, NDArray[Any]]]
    """Group -> variable -> values, in the order of dimensions that the layout gives. Of the prior's
    routes the mean over tokens is kept, [1, S, L, G, K], of each part of the log prior the sum over
    all but draws and tokens, [1, S, M], or over all but draws, [1, S]."""
    facts: dict[str, Any]
    mechanisms: list[str]
    text: list[str]
    """What each token adds to the text."""


def load(path: Path) -> Stored:
    """Read a posterior.nc.

    Raises
    ------
    OtherVersion
        It has another layout.
    OSError, ValueError, LookupError, TypeError, RuntimeError
        It is no plain file, or no posterior.
    """
    require_plain(path)
    _try_elsewhere(path)
    return _read(path)


TRIAL = """
import sys
path, seconds, *sys.path = sys.argv[1:]
from pyro_meta.analysis.stored_posterior import _try
_try(path, int(seconds))
"""
SECONDS, BYTES_PER_SECOND = 10, 1 << 20
"""Of the processor, which reading takes at most: many times what it needs."""


def _try_elsewhere(path: Path) -> None:
    """Raise `ValueError` if a process that reads the file is ended by it, or never done."""
    seconds = SECONDS + path.stat().st_size // BYTES_PER_SECOND
    with suppress(FileNotFoundError, PermissionError):  # Python is part of another program
        done = subprocess.run(
            [sys.executable, "-c", TRIAL, str(path), str(seconds), *sys.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )
        if done.returncode < 0:
            ended = signal.Signals(-done.returncode).name
            raise ValueError(f"HDF5 cannot read it: a process that tried was ended by {ended}")


def _try(path: str, seconds: int) -> None:
    """Read a file; whatever is raised is raised again where it is read for good."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(Exception):
        _read(Path(path))


def _read(path: Path) -> Stored:
    size = require_plain(path)
    with h5py.File(path, "r", locking=False) as file:
        stats = _group(file, "sample_stats")
        version = _fact(stats, "layout", int)
        if version != VERSION:
            raise OtherVersion(f"it has layout {version}, and this is version {VERSION}")
        wanted = _wanted(file)
        found = {
            name: {key: _dataset(_group(file, name), key) for key in variables}
            for name, variables in wanted.items()
        }
        names = _dataset(_group(file, "tokens"), "mechanism")
        _check(found, wanted, names, size)
        facts = {name: _fact(stats, name, kind) for name, kind in FACTS.items()}
        if found["posterior"]["route"].shape[3] != facts["groups"]:
            raise ValueError(f"groups is {facts['groups']}, and others are in the file")
        mechanisms = list(_strings(names, size))
        text = list(_strings(found["tokens"].pop("text"), size))
        groups = {
            name: {
                key: _READ.get(name, _values)(key, data, wanted[name][key])
                for key, data in variables.items()
            }
            for name, variables in found.items()
        }
    return Stored(groups, facts, mechanisms, text)


def _wanted(file: h5py.File) -> dict[str, dict[str, Variable]]:
    whole = layout("load" in _group(file, "prior"), "depth_mean" in _group(file, "tokens"))
    return {
        name: {
            key: variable for key, variable in variables.items() if key not in UNREAD.get(name, ())
        }
        for name, variables in whole.items()
    }


def _group(file: h5py.Group, name: str) -> h5py.Group:
    found = _own(file, name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{name} is no group")
    return found


def _own(group: h5py.Group, name: str) -> Any:
    """What a group holds itself: links to other names and other files are not followed."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{group.name.strip('/')} has no {name} of its own")
    return group[name]


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """A variable whose values lie in this very file."""
    found = _own(group, name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name} is no variable")
    if found.is_virtual or found.external:
        raise ValueError(f"{name} is kept in another file")
    plan = found.id.get_create_plist()
    if {plan.get_filter(index)[0] for index in range(plan.get_nfilters())} - FILTERS:
        raise ValueError(f"{name} is packed in an unknown way")
    return found


def _check(
    found: Mapping[str, Mapping[str, h5py.Dataset]],
    wanted: Mapping[str, Mapping[str, Variable]],
    names: h5py.Dataset,
    size: int,
) -> None:
    """Types, lengths and sizes, before anything is read of a file of `size` bytes."""
    lengths: dict[str, int] = {}
    for group, variables in found.items():
        drawn = "" if group == "tokens" else "drawn "  # `token` is shorter there
        for name, data in variables.items():
            dims = wanted[group][name].dims
            _check_type(name, data, wanted[group][name].dtype)
            if len(data.shape or ()) != len(dims):
                raise ValueError(f"{name} has shape {data.shape}, not one of {', '.join(dims)}")
            for dim, length in zip(dims, data.shape, strict=True):
                dim = drawn + dim if dim == "token" else dim
                if lengths.setdefault(dim, length) != length:
                    raise ValueError(f"{name} has {length} of {dim}, others {lengths[dim]}")
    _check_type("mechanism", names, TEXT)
    if names.shape != (lengths["mechanism"],):
        raise ValueError(f"mechanism has shape {names.shape}, not {lengths['mechanism']}")
    for dim, length in lengths.items():
        if length < 1 and dim != "block":
            raise ValueError(f"it holds no {dim}")
    if lengths["drawn token"] > lengths["token"]:
        raise ValueError("more tokens are drawn than there are")
    _check_sizes(names, "mechanism", Variable(("mechanism",), TEXT, ""), size)
    for group, variables in found.items():
        for name, data in variables.items():
            _check_sizes(data, name, wanted[group][name], size)


def _check_type(name: str, data: h5py.Dataset, wanted: Any) -> None:
    if wanted is TEXT:
        text = h5py.check_string_dtype(data.dtype)
        is_right = text is not None and text.length is None
    else:
        is_right = data.dtype.kind == np.dtype(wanted).kind
        is_right = is_right and data.dtype.itemsize == np.dtype(wanted).itemsize
    if not is_right:
        raise ValueError(f"{name} is of type {data.dtype}, not {wanted}")


def _check_sizes(data: h5py.Dataset, name: str, variable: Variable, size: int) -> None:
    """Whether a file of `size` bytes can hold as many values as a variable claims."""
    is_text = variable.dtype is TEXT
    claimed = math.prod(data.shape) * (POINTER if is_text else data.dtype.itemsize)
    held = size * (MOST_PACKED if data.chunks and data.compression else 1)
    if claimed > held:
        raise ValueError(f"{name} claims {claimed:,} bytes, which the file's {size:,} cannot hold")
    if data.chunks is None:
        if data.id.get_storage_size() < claimed:
            raise ValueError(f"{name} has not been written")
        return
    pairs = list(zip(variable.dims, data.shape, data.chunks, strict=True))
    fixed = math.prod(length for dim, length, _ in pairs if dim not in GROWING)
    if math.prod(data.chunks) > max(CHUNK_VALUES, fixed):
        raise ValueError(f"{name} is stored in pieces of {data.chunks}")
    pieces = math.prod(-(-length // piece) for _, length, piece in pairs)
    if claimed and not variable.has_gaps and data.id.get_num_chunks() != pieces:
        raise ValueError(f"{name} has not been written in full")


def _fact(stats: h5py.Group, name: str, kind: type) -> Any:
    """An attribute: one number or string."""
    if name not in stats.attrs:
        raise ValueError(f"sample_stats has no {name}")
    if math.prod(stats.attrs.get_id(name).shape or ()) != 1:
        raise ValueError(f"{name} is not one value")
    value = np.asarray(stats.attrs[name]).item()
    if kind is str and isinstance(value, str) and value.encode(errors="ignore").decode() == value:
        return value
    if kind is not str and isinstance(value, (int, float)) and math.isfinite(value):
        return kind(value)
    raise ValueError(f"{name} is {value!r:.40}")


def _strings(data: h5py.Dataset, size: int) -> Iterator[str]:
    """Strings, piece by piece: together they cannot be longer than the file."""
    reader, left = data.asstr(), size
    for start in range(0, len(data), STRINGS_AT_ONCE):
        for string in reader[start : start + STRINGS_AT_ONCE]:
            left -= len(string)
            if left < 0:
                raise ValueError("its text is longer than the file")
            yield str(string)


def _values(name: str, data: h5py.Dataset, variable: Variable) -> NDArray[Any]:
    """The values of a variable, all within its bounds."""
    values = np.empty(data.shape, np.dtype(variable.dtype))
    if values.size:
        data.read_direct(values)
        _require_bounds(name, values, variable)
    return values


def _require_bounds(name: str, values: NDArray[Any], variable: Variable) -> None:
    low, high = (
        (np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None))
        if variable.has_gaps
        else (values.min(), values.max())
    )
    is_empty = variable.has_gaps and np.isnan(low)
    if not (is_empty or (low >= variable.least and high <= variable.most)):
        raise ValueError(
            f"{name} holds values from {low:.3g} to {high:.3g}; possible are "
            f"{variable.least:g} to {variable.most:g}"
        )


def _by_tokens(name: str, data: h5py.Dataset, variable: Variable) -> Iterator[NDArray[Any]]:
    """The values of a variable, piece by piece along the tokens, all within its bounds."""
    axis = variable.dims.index("token")
    for start in range(0, data.shape[axis], data.chunks[axis]):
        values = np.asarray(
            data[(slice(None),) * axis + (slice(start, start + data.chunks[axis]),)]
        )
        _require_bounds(name, values, variable)
        yield values.astype(float)


def _mean_over_tokens(name: str, data: h5py.Dataset, variable: Variable) -> NDArray[Any]:
    """The mean over tokens of a variable that is large, [.., token, ..] -> [.., ..]."""
    axis = variable.dims.index("token")
    total = sum(values.sum(axis) for values in _by_tokens(name, data, variable))
    return np.asarray(total) / data.shape[axis]


def _sum_over_sites(name: str, data: h5py.Dataset, variable: Variable) -> NDArray[Any]:
    """The sum over all dimensions but draws and tokens, [1, S, M]; of loads over all, [1, S]."""
    if "token" not in variable.dims:
        return _values(name, data, variable).sum((2, 3), dtype=float)
    axis = variable.dims.index("token")
    pieces = [values.sum(tuple(range(2, axis))) for values in _by_tokens(name, data, variable)]
    return np.concatenate(pieces, -1)


_READ = {"prior": _mean_over_tokens, "log_prior": _sum_over_sites}
"""How groups are read that would take much room and are needed in sum only."""
