"""Any Pyro model and guide, fitted by SVI, as what ArviZ reads.

ArviZ's own `from_pyro` takes an MCMC run. A guide is asked for draws instead; the model, replayed
along each of them, says what the data and the latents are worth:

    posterior              z ~ q(z), and what the model computes of it (`pyro.deterministic`)
    posterior_predictive   y ~ p(y | z)
    prior, prior_predictive    z ~ p(z), y ~ p(y | z)
    log_likelihood         log p(y | z), by site and element of its plates
    log_prior              log p(z), likewise
    sample_stats           lp = log p(y, z), as the model counts it, and log_guide = log q(z)
    observed_data          y

Draws are taken one by one, so that the model may be any program. Dimensions are named by plates.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_meta.analysis.arviz_versions import from_datasets
from pyro_meta.errors import UsageError
from pyro_meta.terminal.machine import versions

Site = Mapping[str, Any]
"""A site of a trace, as Pyro keeps it."""


def from_pyro_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    coords: Mapping[str, ArrayLike] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    constant_data: Mapping[str, ArrayLike] | None = None,
    **kwargs: Any,
) -> Any:
    """Draws of a guide and all that ArviZ wants to know of them.

    Parameters
    ----------
    model, guide
        As `pyro.infer.SVI` takes them, fitted. Their modes and parameters are left as they are.
    *args, **kwargs
        What both are called with, all data observed.
    num_samples
        S, draws of posterior and of prior; they make one chain.
    coords
        Names of the elements of dimensions, such as those of a plate.
    dims
        Names of a site's dimensions, where others are wanted than its plates' and, of an event,
        `SITE_dim_0` and so on.
    constant_data
        Data that is not modelled, kept beside what is observed.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        What the installed ArviZ (0.23, 1.x) works on. `log_likelihood` and `log_prior` are not
        scaled; where the model scales a site, such as a tempered likelihood, its attribute `scale`
        says by how much, and `lp` is scaled. `pyro.factor` counts in `lp` alone.

    Raises
    ------
    UsageError
        A plate is subsampled, the guide leaves a latent of the model out, or an option is not
        possible.

    Examples
    --------
    >>> svi.step(y)  # doctest: +SKIP
    >>> data = from_pyro_svi(model, guide, y, coords={"school": names})  # doctest: +SKIP
    >>> arviz.summary(data, kind="stats")  # doctest: +SKIP
    """
    if num_samples < 1:
        raise UsageError(f"num_samples: {num_samples} given; at least 1 is allowed")
    collected = _Collected()
    with torch.no_grad():
        for _ in range(num_samples):
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
            _require_whole(drawn, replayed)
            collected.add_posterior(drawn, replayed)
            predicting = poutine.replay(poutine.uncondition(model), trace=drawn)
            predicted = poutine.trace(predicting).get_trace(*args, **kwargs)
            collected.add_sites("posterior_predictive", _observed(predicted))
            from_prior = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
            collected.add_sites("prior", _latent(from_prior))
            collected.add_sites("prior_predictive", _observed(from_prior))
    datasets = collected.datasets(dims or {}, coords or {})
    if constant_data:
        datasets["constant_data"] = _unmodelled(constant_data, dims or {}, coords or {})
    return from_datasets(datasets, _attributes(model, guide))


def _attributes(model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, str]:
    known = versions()
    names = [getattr(one, "__name__", type(one).__name__) for one in (model, guide)]
    return {
        "inference_library": "pyro",
        "inference_library_version": known["pyro-ppl"],
        "creation_library": "pyro-meta",
        "creation_library_version": known["pyro-meta"],
        "model": names[0],
        "guide": names[1],
    }


def _sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Sites with a value that somebody may want to know: no plates, and no factors."""
    for name, site in trace.nodes.items():
        is_sample = site["type"] == "sample" and not site_is_subsample(site)
        if is_sample and not isinstance(site["fn"], Unit):
            yield name, site


def _is_deterministic(site: Site) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _was_observed(site: Site) -> bool:
    return bool(site["is_observed"] or site["infer"].get("was_observed"))


def _latent(trace: Trace) -> dict[str, Site]:
    """Latents of a model, and what it computes of them."""
    return {
        name: site
        for name, site in _sites(trace)
        if _is_deterministic(site) or not _was_observed(site)
    }


def _observed(trace: Trace) -> dict[str, Site]:
    """Sites of the data, whether they hold it or were sampled in its place."""
    return {
        name: site
        for name, site in _sites(trace)
        if _was_observed(site) and not _is_deterministic(site)
    }


def _require_whole(drawn: Trace, replayed: Trace) -> None:
    """Raise `UsageError` unless guide and model are of all data and of the same latents."""
    for trace in (drawn, replayed):
        for name, plate in trace.nodes.items():
            if plate["type"] == "sample" and site_is_subsample(plate):
                site: Any = plate
                size, shown = site["fn"].size, len(site["value"])
                if shown < size:
                    raise UsageError(
                        f"plate {name}: {shown} of {size} are subsampled, so that every draw is of "
                        "other data; call it without subsample_size, with all of the data"
                    )
    for name, latent in _latent(replayed).items():
        if name not in drawn.nodes and not _is_deterministic(latent):
            raise UsageError(
                f"site {name}: the model samples it and the guide does not, so that it has no "
                "posterior; a guide of all latents is needed, or one that marginalises it"
            )


class _Collected:
    """Values by group and site, draw by draw."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[NDArray[Any]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._dims: dict[str, dict[str, list[str]]] = defaultdict(dict)
        self._scales: dict[str, dict[str, float]] = defaultdict(dict)
        self._observed: dict[str, tuple[NDArray[Any], list[str]]] = {}

    def add_posterior(self, drawn: Trace, replayed: Trace) -> None:
        """Take in a draw of a guide and the model that was replayed along it."""
        replayed.compute_log_prob()
        latent, observed = _latent(replayed), _observed(replayed)
        self.add_sites("posterior", latent)
        sampled = {name: site for name, site in latent.items() if not _is_deterministic(site)}
        for group, sites in (("log_prior", sampled), ("log_likelihood", observed)):
            for name, site in sites.items():
                density = _array(site["unscaled_log_prob"])
                self._add(group, name, density, _batch_dims(name, site, density.ndim))
                if isinstance(site["scale"], (int, float)) or site["scale"].dim() == 0:
                    self._scales[group][name] = float(site["scale"])
        lp, log_guide = float(replayed.log_prob_sum()), float(drawn.log_prob_sum())
        self._add("sample_stats", "lp", np.array(lp), [])
        self._add("sample_stats", "log_guide", np.array(log_guide), [])
        for name, site in observed.items():
            self._observed[name] = _array(site["value"]), _all_dims(name, site)

    def add_sites(self, group: str, sites: Mapping[str, Site]) -> None:
        """Take in a draw of some sites."""
        for name, site in sites.items():
            self._add(group, name, _array(site["value"]), _all_dims(name, site))

    def _add(self, group: str, name: str, value: NDArray[Any], dims: list[str]) -> None:
        known = self._values[group][name]
        if known and known[0].shape != value.shape:
            raise UsageError(
                f"site {name}: it has shape {list(known[0].shape)} in one draw and "
                f"{list(value.shape)} in another; ArviZ needs the same in all"
            )
        known.append(value)
        self._dims[group][name] = dims

    def datasets(
        self, dims: Mapping[str, Sequence[str]], coords: Mapping[str, ArrayLike]
    ) -> dict[str, xr.Dataset]:
        """Groups of one chain, [1, S, ..], and the data."""
        found = {}
        for group, values in self._values.items():
            variables = {}
            for name, draws in values.items():
                of_site = _named(name, self._dims[group][name], dims)
                scale = self._scales[group].get(name, 1.0)
                variables[name] = xr.Variable(
                    ("chain", "draw", *of_site),
                    np.stack(draws)[None],
                    {} if scale == 1.0 else {"scale": scale},
                )
            found[group] = _dataset(variables, coords)
        observed = {
            name: xr.Variable(_named(name, own, dims), value)
            for name, (value, own) in self._observed.items()
        }
        return found | ({"observed_data": _dataset(observed, coords)} if observed else {})


def _array(value: torch.Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy().copy()


def _batch_dims(name: str, site: Site, length: int) -> list[str]:
    """Names of `length` batch dimensions of a site: those of its plates, which count from right."""
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    return [plates.get(at - length, f"{name}_dim_{at}") for at in range(length)]


def _all_dims(name: str, site: Site) -> list[str]:
    """Names of all dimensions of a site's value."""
    total, events = site["value"].dim(), site["fn"].event_dim
    batch = _batch_dims(name, site, total - events)
    return [*batch, *(f"{name}_dim_{at}" for at in range(total - events, total))]


def _named(name: str, own: Sequence[str], dims: Mapping[str, Sequence[str]]) -> list[str]:
    """The wanted names of a site's dimensions; those of its first ones, where it has fewer."""
    wanted = list(dims.get(name, own))
    if len(wanted) < len(own):
        raise UsageError(f"dims: {name} has {len(own)} dimensions, and {len(wanted)} are named")
    return wanted[: len(own)]


def _dataset(variables: Mapping[str, xr.Variable], coords: Mapping[str, ArrayLike]) -> xr.Dataset:
    """Variables with coordinates for each of their dimensions."""
    sizes: dict[str, int] = {}
    for name, variable in variables.items():
        for dim, size in variable.sizes.items():
            if sizes.setdefault(str(dim), size) != size:
                raise UsageError(
                    f"dims: {dim} is {size} long in {name}, and {sizes[str(dim)]} elsewhere"
                )
    along = {dim: np.asarray(coords.get(dim, np.arange(size))) for dim, size in sizes.items()}
    for dim, values in along.items():
        if len(values) != sizes[dim]:
            raise UsageError(f"coords: {dim} has {len(values)} names, and is {sizes[dim]} long")
    return xr.Dataset(dict(variables), coords={dim: (dim, v) for dim, v in along.items()})


def _unmodelled(
    data: Mapping[str, ArrayLike],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, ArrayLike],
) -> xr.Dataset:
    arrays = {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in data.items()
    }
    variables = {
        name: xr.Variable(_named(name, [f"{name}_dim_{i}" for i in range(one.ndim)], dims), one)
        for name, one in arrays.items()
    }
    return _dataset(variables, coords)
