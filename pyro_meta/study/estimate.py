"""How long the runs of a study will take, from a few steps and passes of each setting.

    seconds = steps s + passes p,      s of a step of training, p of a forward pass of one batch

A text of a warm start counts as a step. Passes are those of validation, soft and hard, and of the
draws of the read-out. What a run does besides, such as starting and timing itself, is left out.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
import yaml

from pyro_meta.data.corpus import Corpus
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import along_means, walk
from pyro_meta.inference.elbo import Objective, RouteELBO
from pyro_meta.inference.optimiser import make_optimiser
from pyro_meta.study.plan import Group
from pyro_meta.training.config import Config
from pyro_meta.training.devices import make_fabric

IDLE = ("seed", "steps", "kl", "harden", "tighten", "short", "readout", "validate_every",
        "validation_tokens", "checkpoint_every")  # fmt: skip
"""Options that do not move how long a step takes."""
STEPS = 3
LONG = 20.0
"""Seconds after which one step is enough."""


def seconds_of(groups: list[Group]) -> dict[str, float]:
    """Seconds that one run of each group will take on this machine, by label."""
    known: dict[str, tuple[float, float]] = {}
    found = {}
    for group in groups:
        key = _key(group.config_yaml)
        if key not in known:
            known[key] = _timed(group.config, group.config.data.corpus())
        found[group.label] = seconds_of_run(group.config, *known[key])
    return found


def seconds_of_run(config: Config, step: float, forward: float) -> float:
    """Seconds of a run, of those of a step and of a forward pass of one batch."""
    validations = 1 + (config.steps - 1) // config.validate_every if config.validate_every else 1
    tokens = 2 * validations * config.validation_tokens
    tokens += config.readout.draws * config.readout.tokens
    steps = config.steps + (config.warm.texts if config.pretrained is not None else 0)
    return steps * step + tokens / (config.batch * config.context) * forward


def _key(config_yaml: str) -> str:
    options: dict[str, Any] = yaml.safe_load(config_yaml)
    return yaml.safe_dump({name: value for name, value in options.items() if name not in IDLE})


def _timed(config: Config, corpus: Corpus) -> tuple[float, float]:
    """Seconds of a training step, and of a forward pass, of one batch."""
    fabric = make_fabric(replace(config, devices=1))
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(config.seed)
        model, guide = config.build(corpus.vocabulary.size, corpus.vocabulary.separators)
        elbo = RouteELBO(second_order=config.optim.second_order)
        objective = Objective(model, guide, elbo, config.target == "model").to(fabric.device)
        module, optimiser = fabric.setup(objective, make_optimiser(config.optim, objective))
        model.temperature = config.kl(1.0)
        rows = config.batch // config.accumulate
        tokens, targets = fabric.to_device(
            corpus.batch(config.seed, 0, config.batch, config.context)
        )

        def step() -> None:
            for x, y in zip(tokens.split(rows), targets.split(rows), strict=True):
                loss = module(x, y).loss
                if loss.requires_grad:
                    fabric.backward(loss / config.accumulate)
            optimiser.step()
            optimiser.zero_grad()
            _synchronise(fabric.device)

        def forward() -> None:
            with evaluating(model, guide), fabric.autocast():
                walk(model, guide, tokens, along_means(False))
            _synchronise(fabric.device)

        objective.train()
        return _least(step), _least(forward)


def _least(act: Callable[[], None]) -> float:
    """The least seconds of a few turns, the first of which warms up."""
    found: list[float] = []
    while len(found) < STEPS and sum(found) < LONG:
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return min(found)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
