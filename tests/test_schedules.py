"""Schedules are pure functions with the promised ends; the optimiser decays what it should."""

import pytest
import torch
from conftest import build

from pyro_meta.errors import UsageError
from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.optimiser import drop_resting, make_optimiser, set_lr
from pyro_meta.inference.schedules import HardeningSchedule, KLSchedule, Optimisation, ShortFirst


def test_the_kl_weight_rises_to_its_peak_and_falls_to_its_final_value() -> None:
    schedule = KLSchedule(weight=0.1, peak=5.0, begin=0.2, end=0.8)
    assert schedule(0.0) == schedule(0.2) == pytest.approx(1e-6)
    assert schedule(0.3) == pytest.approx(0.25, rel=1e-3)
    assert schedule(0.4) == schedule(0.5) == schedule(0.6) == pytest.approx(0.5)
    assert schedule(0.7) == pytest.approx(0.3)
    assert schedule(0.8) == schedule(1.0) == pytest.approx(0.1)


def test_without_a_peak_the_kl_weight_only_rises() -> None:
    schedule = KLSchedule(weight=0.5, peak=1.0, begin=0.2, end=0.8)
    values = [schedule(step / 100) for step in range(101)]
    assert values == sorted(values)
    assert schedule(0.4) == schedule(1.0) == pytest.approx(0.5)


def test_a_schedule_may_be_a_jump() -> None:
    assert KLSchedule(weight=1.0, begin=0.0, end=0.0)(0.0) == 1.0
    assert HardeningSchedule(begin=0.5, end=0.5)(0.49) == 0.0
    assert HardeningSchedule(begin=0.5, end=0.5)(0.5) == 1.0


def test_the_threshold_rises_to_one() -> None:
    schedule = HardeningSchedule(begin=0.4, end=0.8)
    assert [schedule(p) for p in (0.0, 0.4, 0.6, 0.8, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert HardeningSchedule(final=0.0)(1.0) == 0.0


def test_the_learning_rate_warms_up_and_falls_on_a_cosine() -> None:
    optim = Optimisation(lr=1.0, final_lr=0.1, warmup=0.1)
    assert optim.lr_at(0.05) == pytest.approx(0.5)
    assert optim.lr_at(0.1) == pytest.approx(1.0)
    assert optim.lr_at(0.55) == pytest.approx(0.55)
    assert optim.lr_at(1.0) == pytest.approx(0.1)


def test_only_weights_of_linear_maps_decay() -> None:
    objective = Objective(*build())
    groups = make_optimiser(Optimisation(weight_decay=0.3), objective).param_groups
    decayed, kept, tokens, offsets = groups
    names = {id(p): name for name, p in objective.named_parameters()}
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.0, 0.0]
    assert all(names[id(p)].endswith("weight") and p.dim() == 2 for p in decayed["params"])
    kept_names = " ".join(names[id(p)] for p in kept["params"])
    assert "embedding" in kept_names and "gain" in kept_names and "bias" in kept_names
    router = {names[id(p)] for group in (tokens, offsets) for p in group["params"]}
    assert router == {n for n in names.values() if "guide" in n}
    of_all_tokens = {names[id(p)] for p in offsets["params"]}
    assert of_all_tokens == {f"guide.heads.{layer}.2.bias" for layer in range(2)}
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert isinstance(decayed["params"][0], torch.nn.Parameter)


def test_the_guide_begins_later_learns_faster_and_stops() -> None:
    objective = Objective(*build())
    optim = Optimisation(router=3.0, router_begin=0.4, router_end=0.7, offsets=10.0)
    optimiser = make_optimiser(optim, objective)
    for progress, ratio in ((0.1, 0.0), (0.4, 0.0), (0.41, 3.0), (0.7, 3.0), (0.71, 0.0)):
        set_lr(optimiser, optim, progress)
        *network, router, offsets = (group["lr"] for group in optimiser.param_groups)
        assert network == [optim.lr_at(progress)] * 2
        assert router == pytest.approx(ratio * optim.lr_at(progress))
        assert offsets == pytest.approx(10 * router)


def test_a_resting_router_counts_in_no_norm_and_no_moment() -> None:
    objective = Objective(*build())
    optim = Optimisation(router_begin=0.5, router_end=0.7)
    optimiser = make_optimiser(optim, objective)
    tokens = torch.randint(13, (2, 8))
    for progress, is_resting in ((0.2, True), (0.6, False)):
        set_lr(optimiser, optim, progress)
        objective(tokens, tokens).loss.backward()
        drop_resting(optimiser)
        *network, of_tokens, offsets = optimiser.param_groups
        router = [*of_tokens["params"], *offsets["params"]]
        assert all((p.grad is None) == is_resting for p in router)
        assert all(p.grad is not None for group in network for p in group["params"])
        optimiser.step()
        assert all((not optimiser.state[p]) == is_resting for p in router)
        optimiser.zero_grad()


def test_by_default_nothing_is_straight_through() -> None:
    """The guide stops once the KL is done, and tokens turn hard once it has stopped."""
    assert KLSchedule().end <= Optimisation().router_end <= HardeningSchedule().begin


def test_sequences_are_short_first() -> None:
    short = ShortFirst(factor=4, until=0.3)
    assert [short(progress) for progress in (0.0, 0.29, 0.3, 1.0)] == [4, 4, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShortFirst(factor=0), "short.factor: 0"),
        (lambda: ShortFirst(until=1.5), "short.until: 1.5"),
        (lambda: Optimisation(router=0.0), "optim.router: 0.0"),
        (lambda: Optimisation(router_begin=2.0), "optim.router_begin, optim.router_end: 2.0, 0.45"),
        (lambda: Optimisation(router_end=1.5), "optim.router_end: 0.25, 1.5"),
        (lambda: HardeningSchedule(price=-1.0), "harden.price: -1.0"),
        (lambda: HardeningSchedule(price=1e39), "harden.price: 1e.39"),  # no number of float32
        (lambda: KLSchedule(weight=0.0), "kl.weight: 0.0"),
        (lambda: KLSchedule(peak=0.5), "kl.peak: 0.5 given; at least 1"),
        (lambda: KLSchedule(begin=0.9, end=0.1), "kl.begin"),
        (lambda: HardeningSchedule(begin=-0.1), "harden.begin"),
        (lambda: HardeningSchedule(final=1.5), "harden.final"),
        (lambda: Optimisation(lr=0.0), "optim.lr"),
        (lambda: Optimisation(beta1=1.0), "optim.beta1"),
        (lambda: Optimisation(weight_decay=-1.0), "optim.weight_decay"),
    ],
)
def test_schedules_refuse_what_is_out_of_range(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        make()
