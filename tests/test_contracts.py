"""Every built-in class keeps its contract, and the contract catches what breaks it."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken as broken_classes
import pytest
from commands import environment, error_line
from leaky import LateLeak, Leaky, LeakyGuide

import pyro_meta.contracts.suite as suite
from pyro_meta import (
    CostDirichlet,
    DirichletGuide,
    Guide,
    Mechanism,
    PaperDirichlet,
    PaperGuide,
    Prior,
    UsageError,
)
from pyro_meta.attention import BUILT_IN
from pyro_meta.contracts import broken, built_in, clauses, contract
from pyro_meta.contracts.suite import Clause

# What constructors ask for that have no default.
NEEDED: dict[str, Any] = {"loads": [0.2, 0.3, 0.5]}


def arguments_of(found: type) -> dict[str, Any]:
    return {name: value for name, value in NEEDED.items() if is_needed(found, name)}


def is_needed(found: type, name: str) -> bool:
    argument = inspect.signature(found).parameters.get(name)
    return argument is not None and argument.default is inspect.Parameter.empty


def cases() -> Iterator[Any]:
    for found in built_in():
        for clause in clauses(found, **arguments_of(found)):
            yield pytest.param(clause, id=f"{found.__name__}-{clause}")


@pytest.mark.parametrize("clause", cases())
def test_a_built_in_class_keeps_its_contract(clause: Clause) -> None:
    clause.check()


test_any_pair_of_ours = contract(PaperGuide, prior=PaperDirichlet, hidden=3)
test_a_users_prior = contract("my_prior.CheapBelow", cheap=2)
test_a_users_mechanism = contract("my_mechanism.Ends")


def test_no_built_in_class_is_left_out() -> None:
    found = set(built_in())
    assert found >= set(BUILT_IN.values())
    for base in (Prior, Guide, Mechanism):
        assert {one for one in _subclasses(base) if one.__module__.startswith("pyro_meta.")} <= found


def _subclasses(base: type) -> set[type]:
    return {one for child in base.__subclasses__() for one in {child, *_subclasses(child)}}


CAUGHT = broken_classes.MECHANISMS | broken_classes.PRIORS | broken_classes.GUIDES
LEAKS = {
    "later_values_move_nothing_earlier",
    "cutting_the_text_moves_nothing_earlier",
    "gradients_reach_no_later_input",
}
GUIDE_LEAKS = {
    "later_tokens_move_nothing_earlier",
    "cutting_the_text_moves_nothing_earlier",
    "gradients_reach_no_later_token",
}
CAUGHT |= {Leaky: LEAKS, LateLeak: LEAKS, LeakyGuide: GUIDE_LEAKS}


@pytest.mark.parametrize("found", CAUGHT, ids=lambda found: found.__name__)
def test_a_broken_class_breaks_the_clauses_it_should(found: type) -> None:
    failures = broken(found)
    assert failures.keys() == CAUGHT[found], failures
