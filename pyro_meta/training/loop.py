"""The training loop: SVI steps on one device or many, checkpoints, validation, interruption.

Randomness is a function of (seed, step, micro-batch) and of nothing else. So a resumed run repeats
the killed one bit for bit, and two processes draw what one process with two micro-batches draws.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyro
import torch
from lightning_fabric import Fabric
from torch import Tensor

from pyro_meta.data.corpus import Corpus
from pyro_meta.distributions.simplex import entropy
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import evaluate
from pyro_meta.guides import Guide
from pyro_meta.inference.controllers import Controllers, Step
from pyro_meta.inference.elbo import ELBOTerms, Objective, RouteELBO
from pyro_meta.inference.optimiser import drop_resting, make_optimiser, set_lr
from pyro_meta.inference.warm_start import warm_start
from pyro_meta.models import LanguageModel
from pyro_meta.network.costs import costs_at
from pyro_meta.terminal.progress import Watch
from pyro_meta.terminal.signals import stop_signals
from pyro_meta.training.config import Config
from pyro_meta.training.devices import micro_batches, shares_model
from pyro_meta.training.run import Run
from pyro_meta.training.sharding import gathered, whole


class Interrupted(Exception):
    """Training was asked to stop; everything up to `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


@dataclass
class Outcome:
    """What training leaves in memory."""

    tokens_seen: int
    seconds: float


def train(
    config: Config,
    corpus: Corpus,
    run: Run,
    fabric: Fabric,
    model: LanguageModel,
    guide: Guide,
    controllers: Controllers,
    watch: Watch,
    is_resumed: bool = False,
    has_begun: bool = False,
    config_yaml: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train `model` and `guide` in place, from the run's newest checkpoint if it is resumed.

    Parameters
    ----------
    has_begun
        Whether the guide has weights of another run, and so no warm start.
    config_yaml
        What config.yaml is to hold; None: it stays as it is.
    say
        Called with what a person should know of a run that is resumed.

    Raises
    ------
    Interrupted
        By a signal that asks to stop, after a checkpoint was written.
    UsageError
        The loss or the gradient is not finite; the last checkpoint stands.
    """
    elbo = RouteELBO(second_order=config.optim.second_order)
    teaches = config.target == "model"
    objective, shares = Objective(model, guide, elbo, teaches), shares_model(fabric)
    if not shares:  # else a device may not hold all of it
        objective.to(fabric.device)
    parts = {"model": model, "guide": guide, "controllers": controllers}
    is_resumed = is_resumed and run.latest_checkpoint() is not None
    if not is_resumed and not has_begun and config.starts_warm(guide):
        _start_warm(config, corpus, fabric, guide, say)
    if config.compile:
        model.network.compile_blocks()
    module = fabric.setup_module(objective)
    optimiser = make_optimiser(config.optim, objective)
    fabric_optimiser: Any = fabric.setup_optimizers(optimiser)
    if config_yaml is None:
        config_yaml = run.config_yaml()
    first, seconds, counted, begun = 0, 0.0, None, None
    if is_resumed:
        state = run.state()
        run.require_same(state, config_yaml)
        _require_same_text(state, corpus)
        state = run.load_checkpoint(parts, optimiser)
        first, seconds, counted = state["step"], state["seconds"], state.get("metrics")
        begun = begun_with(config, state)
    controllers.require_reachable()
    if fabric.is_global_zero:
        if missing := run.reopen(first, counted, config_yaml):
            say(missing)
    per_step = _Parts(config, fabric, begun)
    if begun not in (None, per_step.parts):
        say(
            f"a batch is read in {per_step.parts} parts, and was in {begun}: from step {first} on, "
            "routes are drawn otherwise"
        )
    windows = corpus.windows(config.context, config.validation_tokens)
    costs = {
        unit: costs_at(model.network, unit, torch.arange(config.context, device=fabric.device))
        for unit in ("nominal", "macs")
    }

    def save(step: int) -> None:
        if not (shares or fabric.is_global_zero):
            return
        state = {
            "step": step,
            "seconds": seconds,
            "corpus": corpus.sha256,
            "processes": fabric.world_size,
            "micro_batches": per_step.parts,
            **run.circumstances(),
        }
        if shares:
            run.save_checkpoint_together(parts, optimiser, state, gathers=step == config.steps)
        else:
            run.save_checkpoint(parts, optimiser, state)

    module.train()
    with pyro.validation_enabled(config.debug), stop_signals() as is_asked_to_stop:
        if not is_resumed:
            save(0)
        for step in range(first, config.steps):
            started = time.perf_counter()
            progress = config.progress(step + 1)
            _set_schedules(config, progress, model, guide, controllers, optimiser)
            terms = _accumulate(config, corpus, fabric, module, per_step, step)
            drop_resting(optimiser, config.optim.is_refitting(progress))
            norm = _clipped(config, fabric, module, fabric_optimiser)
            figures = _figures(model, terms, costs)
            figures |= {"grad_norm": float(norm), "stop": float(is_asked_to_stop())}
            figures = _average(fabric, figures)
            _require_finite(figures, step + 1, run)
            fabric_optimiser.step()
            fabric_optimiser.zero_grad()
            must_stop = figures.pop("stop") > 0
            figures |= controllers.step(
                Step(
                    _choices(guide, terms),
                    _means(terms),
                    progress,
                    model.temperature,
                    config.optim.has_begun(progress),
                    config.optim.has_settled(progress),
                    partial(_average, fabric),
                )
            )
            elapsed = time.perf_counter() - started
            seconds += elapsed
            record = {
                "step": step + 1,
                **figures,
                **controllers.figures(),
                "entropy_by_layer": _entropy_by_layer(_means(terms)),
                **_schedules(model, guide, optimiser),
                **({"is_refitting": True} if config.optim.is_refitting(progress) else {}),
                "tokens": (step + 1) * config.batch * config.context,
                "tokens_per_second": config.batch * config.context / elapsed,
            }
            is_last = step + 1 == config.steps
            is_due = config.validate_every and (step + 1) % config.validate_every == 0
            if is_due and not is_last and (shares or fabric.is_global_zero):
                with gathered(objective):
                    record |= evaluate(model, guide, windows, config.batch)
            if fabric.is_global_zero:
                run.append_metrics(record)
                watch(record)
            if is_last or must_stop or (step + 1) % config.checkpoint_every == 0:
                _require_finite_after(objective, corpus, config, fabric, step, run, per_step.parts)
                save(step + 1)
                fabric.barrier()  # nobody ends, and has the others ended, before it is saved
            if must_stop:
                raise Interrupted(step + 1)
    return Outcome(config.steps * config.batch * config.context, seconds)


def _start_warm(
    config: Config, corpus: Corpus, fabric: Fabric, guide: Guide, say: Callable[[str], None]
) -> None:
    """Fit the guide to what each choice is worth, on texts behind those that are trained on.

    Every process reads them all, and finds the same.
    """
    began = time.perf_counter()

    def texts() -> Iterator[Tensor]:
        for number in range(config.warm.texts):
            if number and number % max(1, config.warm.texts // 6) == 0:
                left = (time.perf_counter() - began) * (config.warm.texts / number - 1)
                say(f"warm start: {number} of {config.warm.texts} texts, {left:.0f} s left")
            step = config.steps + number
            tokens, _ = corpus.batch(config.seed, step, config.batch, config.context)
            torch.manual_seed(micro_batch_seed(config.seed, step, 0))
            yield fabric.to_device(tokens)

    with pyro.validation_enabled(config.debug), fabric.autocast():
        warm_start(guide, texts(), config.warm)
    seconds = time.perf_counter() - began
    say(f"warm start: {config.warm.texts} texts in {seconds:.0f} s")


def _set_schedules(
    config: Config,
    progress: float,
    model: LanguageModel,
    guide: Guide,
    controllers: Controllers,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Set what changes from step to step: functions of the step, and of where controllers stand."""
    model.temperature = config.kl(progress)
    guide.harden_below(config.harden(progress))
    model.execution.price.fill_(config.harden.price + controllers.surcharge)
    guide.is_resting = config.optim.is_resting(progress)
    set_lr(optimiser, config.optim, progress)


def _schedules(
    model: LanguageModel, guide: Guide, optimiser: torch.optim.Optimizer
) -> dict[str, float]:
    """The values that `_set_schedules` has set, for the log."""
    return {
        "kl_weight": model.temperature,
        "threshold": float(model.execution.threshold),
        "lr": optimiser.param_groups[0]["lr"],
    }


class _Parts:
    """Which part of a global batch each micro-batch of this process reads."""

    def __init__(self, config: Config, fabric: Fabric, begun: int | None) -> None:
        self.parts = micro_batches(config, fabric.world_size, begun)
        own = self.parts // fabric.world_size
        first = fabric.global_rank * own
        self.indices = range(first, first + own)


def begun_with(config: Config, state: dict[str, Any]) -> int:
    """In how many micro-batches a run read its batches when a checkpoint's `state` was saved."""
    return int(state.get("micro_batches", state["processes"] * config.accumulate))


def _accumulate(
    config: Config,
    corpus: Corpus,
    fabric: Fabric,
    module: Any,
    parts: _Parts,
    step: int,
) -> list[ELBOTerms]:
    """Backward through every micro-batch of this process; gradients average over all of them."""
    factor = config.short(config.progress(step))
    size, context = config.batch * factor, config.context // factor
    tokens, targets = corpus.batch(config.seed, step, size, context)
    collected = []
    for index in parts.indices:
        rows = slice(index * size // parts.parts, (index + 1) * size // parts.parts)
        x, y = fabric.to_device((tokens[rows], targets[rows]))
        torch.manual_seed(micro_batch_seed(config.seed, step, index))
        is_last = index == parts.indices[-1]
        # Of a share, gradients are summed as shares: whole ones would take what sharing saves.
        waits = not is_last and not shares_model(fabric)
        with fabric.no_backward_sync(module, enabled=waits):
            terms = module(x, y)
            if terms.loss.requires_grad:  # else nobody learns: neither network nor guide
                fabric.backward(terms.loss / len(parts.indices))
        collected.append(terms)
    return collected


def micro_batch_seed(seed: int, step: int, index: int) -> int:
    """Seed of the draws and the dropout of one micro-batch."""
    return int(np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)[0])


def _clipped(config: Config, fabric: Fabric, module: Any, optimiser: Any) -> Tensor:
    """Clip the gradients; the norm that they had, 0 where nobody learns."""
    if not any(one.requires_grad for one in module.parameters()):
        return torch.zeros(())
    norm = fabric.clip_gradients(
        module, optimiser, max_norm=config.optim.clip, error_if_nonfinite=False
    )
    assert norm is not None
    return whole(norm)


def _figures(
    model: LanguageModel, collected: list[ELBOTerms], costs: dict[str, Tensor]
) -> dict[str, float]:
    """Figures of a step on this process: means over its micro-batches."""
    routes = torch.cat([terms.routes for terms in collected], 1)  # [L, B, T, K]
    gates = torch.cat([terms.gates for terms in collected], 1)  # [L, B, T]
    T, of_groups = routes.shape[2], routes.dim() == 5
    open_gates = gates[..., None, None] if of_groups else gates[..., None]
    run = routes * open_gates  # who skips a layer pays nothing there
    costs = {unit: one[:T, None] if of_groups else one[:T] for unit, one in costs.items()}
    nll = float(torch.stack([terms.nll.detach() for terms in collected]).mean())
    kl = float(torch.stack([terms.kl.detach().sum() for terms in collected]).mean())
    depth_kl, load_kl, compute = (
        sum(float(getattr(terms, name).detach().sum()) for terms in collected) / len(collected)
        for name in ("depth_kl", "load_kl", "compute")
    )
    of_loads = {"load_kl": load_kl} if model.has_loads else {}
    of_compute = {} if model.compute is None else {"compute": compute}
    of_gates = {"depth_kl": depth_kl, "gate_open": float(gates.mean())} if model.gated else {}
    return {
        "loss": float(torch.stack([terms.loss.detach() for terms in collected]).mean()),
        "nll": nll,
        "kl": kl,
        "penalty": sum(float(terms.penalty.detach()) for terms in collected) / len(collected),
        "elbo": -(nll + kl + depth_kl + load_kl + compute),
        "cost_nominal": float((run * costs["nominal"]).sum(-1).mean()),
        "cost_macs": float((run * costs["macs"]).sum(-1).mean()),
        "hard_share": float((routes.amax(-1) == 1).float().mean()),
        **of_loads,
        **of_compute,
        **of_gates,
    }


def _choices(guide: Guide, collected: list[ELBOTerms]) -> Tensor:
    """What would run if everything were hard, [L, B, T, K]: zeros where a token skips the layer.

    Of groups [L, B, T, G, K].
    """
    gates = torch.cat([terms.gate_means for terms in collected], 1)  # [L, B, T]
    shares = guide.shares(_means(collected))
    runs = guide.gate_execution.decide(gates)
    return shares * runs.view(*runs.shape, *(1 for _ in shares.shape[runs.dim() :]))


def _means(collected: list[ELBOTerms]) -> Tensor:
    """Posterior means of a step on this process, [L, B, T, K]."""
    return torch.cat([terms.means for terms in collected], 1)


def _entropy_by_layer(means: Tensor) -> list[float]:
    """Mean H(m) / log K of each layer's posterior means [L, B, T, K]."""
    K = means.shape[-1]
    normalised = entropy(means).flatten(1).mean(1) / (math.log(K) if K > 1 else 1.0)
    return [round(value, 6) for value in normalised.tolist()]


def _average(fabric: Fabric, figures: dict[str, float]) -> dict[str, float]:
    """Means of the figures over all processes."""
    if fabric.world_size == 1:
        return figures
    packed = torch.tensor(list(figures.values()), dtype=torch.float64, device=fabric.device)
    reduced = fabric.all_reduce(packed, reduce_op="mean")
    return dict(zip(figures, cast(Tensor, reduced).tolist(), strict=True))


def _require_finite(figures: dict[str, float], step: int, run: Run) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(figures[name]):
            raise UsageError(
                f"{name} is {figures[name]} at step {step}; checkpoint {run.latest_checkpoint()} "
                "stands; begin a new run with a lower --optim.lr"
            )


def _require_finite_after(
    objective: Objective,
    corpus: Corpus,
    config: Config,
    fabric: Fabric,
    step: int,
    run: Run,
    parts: int,
) -> None:
    """Refuse to save weights on which the next step would fail: the last checkpoint stays good."""
    rows = config.batch // parts
    tokens, targets = fabric.to_device(corpus.batch(config.seed, step, rows, config.context))
    torch.manual_seed(micro_batch_seed(config.seed, step, 0))  # all processes judge alike
    with torch.no_grad(), fabric.autocast(), gathered(objective):
        loss = float(objective(tokens, targets).loss)
    _require_finite({"loss": loss, "grad_norm": 0.0}, step + 1, run)


def _require_same_text(state: dict[str, Any], corpus: Corpus) -> None:
    """Refuse to resume on another text."""
    if state["corpus"] != corpus.sha256:
        raise UsageError(
            f"data: the run began on a text of sha256 {state['corpus'][:12]}; "
            f"now it is {corpus.description}"
        )
