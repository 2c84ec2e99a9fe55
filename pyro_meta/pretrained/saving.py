"""Routes in a small folder of their own, which names the model that they belong to.

    routes.json           the model and its hash, the network, and the classes of prior and guide
    routes.safetensors    their weights

The model's own weights stay where they are.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

import pyro_meta
from pyro_meta.errors import UsageError
from pyro_meta.folders import replacing, write_whole
from pyro_meta.guides import Guide
from pyro_meta.guides.spending import Spending
from pyro_meta.models import LanguageModel, Prior
from pyro_meta.own_classes import said
from pyro_meta.pretrained.conversion import convert, deployed
from pyro_meta.pretrained.fingerprint import fingerprint
from pyro_meta.pretrained.hooking import hooked
from pyro_meta.pretrained.network import PretrainedNetwork
from pyro_meta.terminal.naming import find_class, public_name
from pyro_meta.terminal.trust import is_trusted_here, require_shipped_options

DESCRIPTION, WEIGHTS, VERSION = "routes.json", "routes.safetensors", 1


def save_routes(routed: PreTrainedModel, folder: str | Path) -> Path:
    """Save the routes of a converted model; returns the folder.

    Raises
    ------
    UsageError
        The model is not converted, or an argument of its prior or guide is no plain value.
    """
    guide, folder = deployed(routed).guide, Path(folder)
    model = guide.model
    network = model.network
    assert isinstance(network, PretrainedNetwork)
    description = {
        "format": VERSION,
        "model": {
            "name": routed.config._name_or_path,
            "kind": type(routed).__name__,
            "sha256": fingerprint(routed),
            "trained_in": str(network.trained_in).removeprefix("torch."),
        },
        "network": network.arguments,
        "prior": _named(model.prior),
        "guide": _named(guide),
        "temperature": model.temperature,
        "text_tokens": model.text_tokens,
        "spending": None if guide.spending is None else asdict(guide.spending),
        "version": pyro_meta.__version__,
    }
    try:
        text = json.dumps(description, indent=1)
    except TypeError as error:
        raise UsageError(
            f"save_routes: an argument of prior or guide cannot be written down: {error}"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: x.detach().cpu().contiguous() for name, x in _parts(model, guide).items()}
    with replacing(folder / WEIGHTS) as partial:
        save_file(state, partial)
    write_whole(folder / DESCRIPTION, text + "\n")
    return folder


def load_routes(
    hf_model: PreTrainedModel,
    folder: str | Path,
    trust: bool = False,
    checks: bool = True,
    budget: float | None = None,
) -> PreTrainedModel:
    """Convert a model by routes that `save_routes` saved; the model is changed in place.

    Parameters
    ----------
    hf_model
        The very model that the routes were made for, in float32 or bfloat16 (or float64); best in
        the dtype that they were trained in, which `routes.json` names `trained_in` (see `convert`).
    folder
        Of `save_routes`.
    trust
        Whether classes that pyro_meta does not ship may be imported.
    checks, budget
        See `convert`.

    Raises
    ------
    UsageError
        The folder holds no routes, or those of another model.
    """
    folder = Path(folder)
    try:
        found = json.loads((folder / DESCRIPTION).read_text())
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: there are no routes; {error.filename} is missing") from error
    except (ValueError, OSError, SafetensorError) as error:
        raise UsageError(f"{folder}: the routes are damaged: {said(error)}") from error
    _require_whole(found, folder)
    base = found["model"]
    if fingerprint(hf_model) != base["sha256"]:
        raise UsageError(
            f"{folder}: the routes belong to {base['name']} ({base['kind']}, weights "
            f"{base['sha256'][:12]}), and this model has other weights"
        )
    if not (trust or is_trusted_here()):
        named = {part: found[part]["class"] for part in ("prior", "guide")}
        named["mechanisms"] = found["network"]["mechanisms"]
        require_shipped_options([named], folder, "routes")
    with hooked(hf_model):  # and as it was, if anything is wrong
        try:
            network = PretrainedNetwork(hf_model, **found["network"])
            network.trained_in = _dtype(base.get("trained_in"), network.trained_in)
            model = LanguageModel(network, _made(Prior, found["prior"], network))
            if any(name.startswith("compute.") for name in state):
                model.charge_compute()
            model.temperature = float(found.get("temperature", 1.0))
            model.text_tokens = found.get("text_tokens")
            guide: Guide = _made(Guide, found["guide"], model)
            if (spent := found.get("spending")) is not None:
                guide.spending = Spending(**spent)
        except Exception as error:  # whatever a damaged description leads to
            told = str(error) if isinstance(error, UsageError) else said(error)
            raise UsageError(f"{folder}: the routes cannot be built: {told}") from error
        wanted = _parts(model, guide)
        if wanted.keys() != state.keys():
            raise UsageError(f"{folder}: the routes are those of another version")
        for name, x in wanted.items():
            if x.shape != state[name].shape:
                raise UsageError(
                    f"{folder}: {name} is {list(state[name].shape)}; {list(x.shape)} is needed"
                )
            x.data.copy_(state[name])
        return convert(hf_model, guide, checks, budget)


def _dtype(name: object, otherwise: torch.dtype) -> torch.dtype:
    """The dtype of a name, as float32; of none, as earlier files have it, another."""
    if name is None:
        return otherwise
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise UsageError(f"trained_in is {str(name)[:40]!r}, no dtype of torch")
    return found


SAID: Mapping[str, set[str]] = {
    "model": {"name", "kind", "sha256"},
    "network": {"mechanisms"},
    "prior": {"class", "arguments"},
    "guide": {"class", "arguments"},
}
"""What a description has to say, and of what."""


def _require_whole(found: Any, folder: Path) -> None:
    """Raise `UsageError` unless a description says all that is needed, in the format we know."""
    known = found.get("format") if isinstance(found, dict) else None
    if known != VERSION:
        raise UsageError(f"{folder}: {DESCRIPTION} is of format {known}; {VERSION} is known")
    for part, needed in SAID.items():
        said_of = found.get(part)
        if not isinstance(said_of, dict) or not needed <= said_of.keys():
            raise UsageError(
                f"{folder}: the routes are damaged: {DESCRIPTION} does not say of its {part} what "
                f"it should ({', '.join(sorted(needed))})"
            )


def _parts(model: LanguageModel, guide: Guide) -> dict[str, Any]:
    """All that is saved, by name: neither weights of the model, nor anything twice."""
    parts: dict[str, nn.Module] = {
        "prior": model.prior,
        "execution": model.execution,
        "attentions": model.network.attentions,  # type: ignore[attr-defined]
        "guide": guide,
    }
    if model.compute is not None:
        parts = parts | {"compute": model.compute}
    return {
        f"{part}.{name}": x
        for part, module in parts.items()
        for name, x in module.state_dict(keep_vars=True).items()
    }


def _named(made: Prior | Guide) -> dict[str, Any]:
    name = public_name(type(made))
    if unnamed := [one for one in made.arguments if one.startswith("*")]:
        raise UsageError(
            f"save_routes: {name} was made with {unnamed[0]}, which has no names; give them names"
        )
    return {"class": name, "arguments": made.arguments}


def _made(base: type, named: Mapping[str, Any], first: Any) -> Any:
    ours = {name: getattr(pyro_meta, name) for name in pyro_meta.NAMED_BY_FILES}
    kind = find_class(named["class"], ours, base.__name__.lower())
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise UsageError(f"{named['class']} is no {base.__name__}")
    return cast(Callable[..., Any], kind)(first, **named["arguments"])
