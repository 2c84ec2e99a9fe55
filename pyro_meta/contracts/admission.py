"""The door of training: somebody's own classes keep the clauses that a run rests on.

Of a contract, those whose breach ruins a run without a word, or stops it once there is a folder:
shapes, numbers, what sees the future or other sequences, what depends on the call before. They are
put to the very model and guide of the run, and to mechanisms and blocks of its sizes. Classes that
this package ships are held to all clauses by its tests, and pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from pyro_meta.contracts import blocks, distributions, guides, mechanisms, priors
from pyro_meta.contracts.checks import ROUNDING, Broken, DoesNotApply, quiet_room
from pyro_meta.contracts.subjects import (
    SHAPE,
    BlockSubject,
    DepthGuideSubject,
    DepthPriorSubject,
    GuideSubject,
    MechanismSubject,
    PriorSubject,
    Router,
    Size,
)
from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide
from pyro_meta.models import LanguageModel
from pyro_meta.network.transformer import Transformer
from pyro_meta.own_classes import blame, is_own, passes, said

OF_MECHANISMS = (
    mechanisms.nominal_cost_is_a_number,
    mechanisms.macs_are_a_price_of_the_position,
    mechanisms.what_is_learned_is_registered,
    mechanisms.output_has_the_shape_and_dtype_of_v,
    mechanisms.evaluation_is_deterministic,
    mechanisms.sequences_do_not_meet,
    mechanisms.later_values_move_nothing_earlier,
    mechanisms.cutting_the_text_moves_nothing_earlier,
    mechanisms.training_mixes_no_tokens,
    mechanisms.chosen_queries_get_their_rows,
    mechanisms.grouped_queries_get_their_rows,
    mechanisms.continued_text_gets_its_rows,
    mechanisms.kicked_momenta_see_no_later_token,
)
OF_BLOCKS = (
    blocks.what_is_learned_is_registered,
    blocks.a_layer_keeps_its_shape,
    blocks.evaluation_is_deterministic,
    blocks.each_token_is_worked_on_by_itself,
    blocks.sequences_do_not_meet,
    blocks.later_tokens_move_nothing_earlier,
    blocks.training_mixes_no_tokens,
    blocks.continued_text_gets_its_logits,
)
OF_DEPTH = (blocks.a_shut_gate_lets_a_token_skip, blocks.an_open_gate_changes_nothing)
"""Of blocks, where tokens may skip layers."""
OF_DISTRIBUTIONS = (
    distributions.what_is_learned_is_registered,
    distributions.distribution_has_one_weight_per_mechanism,
    distributions.what_is_given_is_left_as_it_is,
    distributions.distribution_is_reparameterised,
    distributions.mean_lies_on_the_simplex,
    distributions.draws_lie_on_the_simplex,
    distributions.evaluation_is_deterministic,
)
OF_PRIORS = (*OF_DISTRIBUTIONS, priors.prior_is_of_the_position_alone)
OF_GUIDES = (
    *OF_DISTRIBUTIONS,
    guides.sequences_do_not_meet,
    guides.later_tokens_move_nothing_earlier,
    guides.cutting_the_text_moves_nothing_earlier,
    guides.training_mixes_no_tokens,
    guides.posterior_of_own_token_needs_no_other,
    guides.targets_are_not_looked_at,
)
ENDS = (1, 7, 63, 64, 130)  # where a text is cut
LENGTH = 200  # tokens of a text, no more than the context

Clauses = tuple[Callable[[Any], None], ...]


def require_sound(model: LanguageModel, guide: Guide) -> None:
    """Raise `UsageError` if an own class of a model, or its guide, breaks what a run rests on.

    Nothing is left behind: no gradient, no state of a module, no draw of a global generator, no
    parameter in Pyro's store. Where there is no class of one's own it returns at once.

    Parameters
    ----------
    model, guide
        As they are built: on the CPU, and not yet trained.

    Raises
    ------
    UsageError
        The class, the call, what it gave, and what is needed, in one line.
    """
    network = cast(Transformer, model.network)
    require_sound_network(network, has_gates=model.depth is not None)
    size = _size_of(model)
    routers: list[tuple[str, object, type[Router], Clauses]] = [
        ("prior", model.prior, PriorSubject, OF_PRIORS),
        ("guide", guide, GuideSubject, OF_GUIDES),
        ("depth", model.depth, DepthPriorSubject, OF_PRIORS),
        ("depth", guide.depth, DepthGuideSubject, OF_GUIDES),
    ]
    own: list[type] = [type(one) for one in (*network.mechanisms, network.layers[0]) if is_own(one)]
    with _untouched(model, guide):
        for option, instance, kind, clauses in routers:
            if is_own(instance):
                own.append(type(instance))
                subject = kind(lambda: (model, guide), size)
                _require(subject, clauses, own[-1].__name__, option, size.dtype)
        if own:
            subject = GuideSubject(lambda: (model, guide), size)
            names = ", ".join(one.__name__ for one in own)
            steps: Clauses = (distributions.a_first_step_can_be_taken,)
            _require(subject, steps, names, "a first step", size.dtype)


def require_sound_network(network: Transformer, has_gates: bool = False) -> None:
    """Raise `UsageError` if an own mechanism or block of a network breaks what a run rests on.

    `has_gates` says whether tokens may skip layers.
    """
    shape = network.shape
    for mechanism in filter(is_own, network.mechanisms):
        kind = type(mechanism)
        make = partial(kind.of_sizes, shape.of_mechanisms)
        _require(MechanismSubject(make), OF_MECHANISMS, kind.__name__, "mechanisms")
    block = type(network.layers[0])
    if is_own(network.layers[0]):
        small = replace(shape, vocabulary=SHAPE.vocabulary, layers=2, context=SHAPE.context)
        clauses = (*OF_BLOCKS, *(OF_DEPTH if has_gates else ()))
        _require(BlockSubject(block, small), clauses, block.__name__, "block")


def _size_of(model: LanguageModel) -> Size:
    """What a model is tested on: a text no longer than its context, as exactly as it computes."""
    network = cast(Transformer, model.network)
    length = min(LENGTH, network.shape.context)
    return Size(
        shape=network.shape,
        mechanisms=len(network.mechanisms),
        rows=2,
        length=length,
        ends=tuple(end for end in ENDS if end < length),
        dtype=next(model.parameters()).dtype,
        tolerance=ROUNDING,
        ways=(False,),  # a hard choice between two that are alike turns on rounding
    )


def _require(
    subject: Any,
    clauses: Clauses,
    name: str,
    option: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Put a subject to clauses, and name its class where it breaks one."""
    for clause in clauses:
        try:
            with quiet_room(dtype):
                clause(subject)
        except DoesNotApply:
            continue
        except BaseException as error:
            reason = _reason(error, clause.__name__)
            if reason is None:
                raise
            reason = reason.removeprefix(f"{option}: ")
            who = "" if reason.startswith(f"{name}.") else f"{name}: "
            raise UsageError(f"{option}: {who}{reason}") from error


def _reason(error: BaseException, clause: str) -> str | None:
    """Why a class is refused; None if the class is not what stopped the clause."""
    if isinstance(error, Broken | UsageError):
        return str(error)
    if (line := blame(error)) is not None:
        return line
    if passes(error) or not isinstance(error, Exception):
        return None
    return f"{said(error)}, where it is tried whether {clause.replace('_', ' ')}"


@contextmanager
def _untouched(*wholes: nn.Module) -> Iterator[None]:
    """Leave modules as they were: modes, buffers, gradients, and whatever else they hold."""
    modules = list(dict.fromkeys(one for whole in wholes for one in whole.modules()))
    held = [(one, dict(vars(one)), dict(one._buffers)) for one in modules]
    values = {
        one: one.clone() for _, _, buffers in held for one in buffers.values() if one is not None
    }
    grads = [(one, one.grad) for whole in wholes for one in whole.parameters()]
    try:
        yield
    finally:
        for module, before, buffers in held:
            vars(module).clear()
            vars(module).update(before)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values.items():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad
