"""At settled routes training runs each token's own mechanism: the loss is the mixture's."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT, train
from conftest import GUIDES, build, text
from torch import Tensor

from pyro_meta import DirichletGuide, FixedGuide, Guide, PointGuide
from pyro_meta.guides import settled
from pyro_meta.inference.elbo import ELBOTerms, Objective

walk_module = sys.modules["pyro_meta.guides.walk"]  # whose name a function has, too
MIXING = {PointGuide, FixedGuide}
"""Guides whose routes are weights to the end: moved by them alone, or never hard."""


def both(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> list[tuple[ELBOTerms, Any]]:
    """Terms and gradients as they are, and as of the mixture."""
    found = []
    for runs in (settled.runs_choices, lambda model, guide: False):
        monkeypatch.setattr(walk_module, "runs_choices", runs)
        objective.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        terms = objective(*text())
        if terms.loss.requires_grad:
            terms.loss.backward()
        grads = {name: p.grad for name, p in objective.model.network.named_parameters()}
        found.append((terms, grads))
    return found


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("guide", GUIDES)
def test_losses_and_gradients_are_those_of_the_mixture(
    guide: type[Guide], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, built = build(guide=guide, groups=groups)
    for parameter in built.parameters():  # untrained, it sends all tokens one way
        torch.nn.init.normal_(parameter)
    for block in model.network.blocks:
        torch.nn.init.normal_(block.attention.gain)
    built.harden_below(1.0)
    built.is_resting = True
    (ours, our_grads), (theirs, their_grads) = both(Objective(model, built), monkeypatch)
    for name, one, other in zip(ours._fields, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=name)
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("threshold", [0.9, 1.0])
@pytest.mark.parametrize("rests", [False, True])
def test_what_is_settled(guide: type[Guide], threshold: float, rests: bool) -> None:
    """A guide that rests, where every token is hard: no sooner, since it learns from the others."""
    model, built = build(guide=guide)
    built.harden_below(threshold)
    built.is_resting = rests
    seen: list[bool] = []
    network = model.network
    attend = network.blocks[0].attention.dispatch

    def noting(*args: Any) -> Tensor:
        seen.append(True)
        return attend(*args)

    for block in network.blocks:
        block.attention.dispatch = noting
    Objective(model, built)(*text())
    executes = rests and threshold == 1.0 and guide not in MIXING
    assert seen == [True] * (2 if executes else 0)


def test_gradients_reach_a_guide_that_still_learns_from_hard_routes() -> None:
    """Straight through, where it is hard everywhere and does not rest."""
    model, guide = build(guide=DirichletGuide)
    guide.harden_below(1.0)
    objective = Objective(model, guide)
    terms = objective(*text())
    wanted = list(guide.parameters())
    grads = torch.autograd.grad(terms.nll, wanted, materialize_grads=True)
    assert any(grad.abs().max() > 0 for grad in grads)


def test_every_parameter_has_a_gradient_where_routes_are_settled() -> None:
    """As processes in parallel need: also those that nobody's route reaches."""
    for guide in (DirichletGuide, PointGuide):
        model, built = build(guide=guide)
        built.harden_below(1.0)
        built.is_resting = True
        objective = Objective(model, built)
        objective(*text()).loss.backward()
        assert all(p.grad is not None for p in objective.parameters())


def test_a_mechanism_that_learns_goes_on_being_mixed() -> None:
    model, guide = build(guide=DirichletGuide)
    guide.harden_below(1.0)
    assert settled.runs_choices(model, guide)
    model.network.blocks[0].attention.mechanisms[1].own = torch.nn.Parameter(torch.ones(1))
    assert not settled.runs_choices(model, guide)


def test_a_run_executes_from_the_guides_rest_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path
) -> None:
    """12 steps of 2 layers: it rests for 3, learns for 2, rests; all is hard after the 7th."""
    executed: list[bool] = []

    def noting(*args: Any) -> bool:
        runs = settled.runs_choices(*args)
        if torch.is_grad_enabled():  # else the next step is only tried
            executed.append(runs)
        return runs

    monkeypatch.setattr(walk_module, "runs_choices", noting)
    options = [*MOMENT, f"--data.path={text_file}", "--optim.router_end=0.45", "--harden.end=0.6"]
    assert train(*options, f"--out={tmp_path / 'run'}") == 0
    assert executed == [False] * 2 * (3 + 2) + [True] * 2 * 5
