"""Turning a model into one that routes itself, and back."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyro_meta.attention import Full, Window
from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide
from pyro_meta.pretrained.checks import require_faithful
from pyro_meta.pretrained.deployed import Deployed
from pyro_meta.pretrained.hooking import drop_hooks, hooked, unhook
from pyro_meta.pretrained.interface import Routing, routing_of
from pyro_meta.pretrained.network import PretrainedNetwork


def convert(
    hf_model: PreTrainedModel, guide: Guide, checks: bool = True, budget: float | None = None
) -> PreTrainedModel:
    """Have a model route itself, by the posterior means of a guide, every token hard.

    The model is changed in place and returned; `restore` undoes it, and `convert` with the same
    guide does it again. It generates, is trained and evaluated as ever, by whatever takes a model
    of transformers. The guide is not copied. To compile the model into one graph
    (`fullgraph=True`), switch the checks of distributions off first, by
    `pyro.enable_validation(False)`.

    Convert the model in the dtype that its routes were trained in, `network.trained_in`: bfloat16
    for a run of `--precision bf16-mixed`, which `auto` takes where a machine multiplies in it
    faster. In another one some choices lie on the other side of their threshold by rounding alone,
    and the text is another than that of `python -m pyro_meta.generate`; a warning says so.

    Parameters
    ----------
    hf_model
        The model that the guide was made for, or one of the same weights: see `load_routes`.
    guide
        Routes among `full` and `window`. Its posteriors look at each token's own features.
    checks
        Whether to check on a text of two windows that nothing is lost: with all routes full the
        logits are those of the model before; padding changes none, nor does what follows a token.
        In bfloat16 and float16, where rounding may turn a choice, only what is more than that is
        found.
    budget
        Share of key visits to make on text like that of training, without training anew: the price
        that the guide's routes are decided at is moved, and stays so. None: it is left as it is.

    Raises
    ------
    UsageError
        The guide was made for another model, or cannot be deployed; or a check failed; or nobody
        knows what the budget costs, or it cannot be met.
    """
    network = guide.model.network
    if not isinstance(network, PretrainedNetwork) or network.hf_model is not hf_model:
        raise UsageError("convert: the guide was made for another model")
    if not guide.is_of_own_token:
        raise UsageError(
            f"convert: {type(guide).__name__} looks at more than each token's own features, which "
            "a cache of transformers does not keep"
        )
    for one in network.mechanisms:
        if type(one) not in (Full, Window):
            raise UsageError(f"convert: {one.name} is routed; full and window can be converted")
    with hooked(hf_model):  # again, where `restore` undid it
        routing = network.routing
        if routing.passing is not None:
            raise UsageError("convert: the model is converted already; restore it first")
        if hf_model.dtype != network.trained_in:
            warnings.warn(of_another_dtype(hf_model.dtype, network.trained_in), stacklevel=2)
        price = guide.execution.price.clone()
        if budget is not None:
            move_to(guide, budget)
        guide.eval()
        passing = Deployed(guide)
        base = hf_model.base_model
        seeing = base.register_forward_pre_hook(SeeTokens(routing), with_kwargs=True)
        if checks:
            try:
                require_faithful(hf_model, passing)
            except BaseException:
                seeing.remove()
                guide.execution.price.copy_(price)
                raise
    routing.passing = passing
    hf_model.register_state_dict_pre_hook(say_that_routes_are_lost)
    return hf_model


def of_another_dtype(found: torch.dtype, trained: torch.dtype) -> str:
    """What a model in another precision than that of its routes leads to."""
    ours, theirs = (str(one).removeprefix("torch.") for one in (found, trained))
    return (
        f"convert: the routes were trained in {theirs}, and the model is in {ours}; rounding turns "
        f"some choices, and so the text; hf_model.to({trained}) first keeps it"
    )


def move_to(guide: Guide, budget: float) -> None:
    """Have a guide's hard routes make so many key visits; raises `UsageError` as `convert`."""
    if guide.spending is None:
        raise UsageError(
            f"budget: {budget} given, and nobody measured what this guide's routes spend; set "
            "guide.spending to pyro_meta.pretrained.measured_spending(model, guide, windows, "
            "batch), as the end of training does"
        )
    guide.execution.price.fill_(guide.spending.price_for(budget))


def is_converted(hf_model: PreTrainedModel) -> bool:
    """Whether a model routes itself."""
    routing = routing_of(hf_model)
    return routing is not None and isinstance(routing.passing, Deployed)


def deployed(hf_model: PreTrainedModel) -> Deployed:
    """What routes a converted model; raises `UsageError` for another."""
    routing = routing_of(hf_model)
    if routing is None or not isinstance(routing.passing, Deployed):
        raise UsageError("pretrained: the model is not converted; see pyro_meta.pretrained.convert")
    return routing.passing


def restore(hf_model: PreTrainedModel) -> PreTrainedModel:
    """Undo `convert` and `wrap`: the model is as it was before, but that its weights are frozen."""
    routing = routing_of(hf_model)
    if routing is not None:
        routing.passing = None
        drop_hooks(hf_model.base_model, SeeTokens)
        for key, found in list(hf_model._state_dict_pre_hooks.items()):
            if found is say_that_routes_are_lost:
                del hf_model._state_dict_pre_hooks[key]
        unhook(hf_model)
    return hf_model


@dataclass
class SeeTokens:
    """Pre-hook of a model without its head, which can be called by itself: keeps its tokens."""

    routing: Routing

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passing = self.routing.passing
        if isinstance(passing, Deployed):
            tokens = kwargs.get("input_ids", args[0] if args else None)
            passing.tokens = tokens if isinstance(tokens, Tensor) else None


def say_that_routes_are_lost(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Hook of `state_dict`: the routes of a converted model are none of its weights."""
    warnings.warn(
        "the weights of a converted model do not hold its routes; save them with "
        "pyro_meta.pretrained.save_routes(model, folder)",
        UserWarning,
        stacklevel=3,
    )
