"""The routes of a trained run on its own validation text: prefill, training step and decoding.

The opponent are the same weights with every token pinned to `full`. All in the precision that the
run was trained in.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_meta.attention.clock import Calls, interleaved, medians
from pyro_meta.evaluation.executed import ENOUGH_S, as_trained, executed_figures
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import Guide, along_means, mean_route, walk
from pyro_meta.models import LanguageModel
from pyro_meta.network.route import Route
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.speed.scene import Scene
from pyro_meta.speed.timed_parts import DECODED, decode, train_once
from pyro_meta.training.run import Run


def trained_run(run: Run, scene: Scene) -> dict[str, Any]:
    """What the routes of a run cost, at its own context and batch.

    Parameters
    ----------
    run
        The run, which has finished or not.
    scene
        Gives the device and the repetitions.

    Returns
    -------
    dict
        `run`, its name; the figures of `executed_figures`, which read the text forward; and
        `training` and `decoding`, each with tokens per second of either way and `speed_up`, how
        many times as fast as full (None where `full` is not among the mechanisms).
    """
    model, guide, _, config = run.load()
    windows = config.data.corpus().windows(config.context, config.validation_tokens)
    model.to(scene.device)
    guide.to(scene.device)
    tokens = windows[0][: config.batch].to(scene.device)
    with as_trained(config.precision, torch.device(scene.device)):
        figures = executed_figures(model, guide, windows, config.batch, scene.repeats)
        return {
            "run": run.folder.name,
            **figures,
            "training": training(model, guide, tokens, scene),
            "decoding": decoding(model, guide, tokens[:1], scene),
        }


def training(
    model: LanguageModel, guide: Guide, tokens: Tensor, scene: Scene
) -> dict[str, float | None]:
    """Loss and gradients of tokens [B, T], along routes that the router gave beforehand."""
    with evaluating(model, guide):
        decisions = walk(model, guide, tokens, along_means(hard=True)).decisions

    def step(route: Route) -> Callable[[], None]:
        return lambda: train_once(model, tokens, route)

    was_training = model.training
    model.train()
    try:
        return _raced(model, step(lambda layer, _: decisions[layer]), step, tokens.numel(), scene)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def decoding(
    model: LanguageModel, guide: Guide, tokens: Tensor, scene: Scene
) -> dict[str, float | None]:
    """`DECODED` tokens one by one, after the first half of tokens [1, T]; the router is asked.

    Each call goes on where the last one ended, if need be behind the run's context.
    """
    network = model.network
    half = (tokens.shape[1] + 1) // 2

    def after(route: Route, keeps_features: bool) -> Callable[[], None]:
        cache = network.new_cache(1, keeps_features)
        network.states(tokens[:, :half], route, cache)
        return lambda: decode(network, tokens, route, cache)

    with evaluating(model, guide):
        routed = after(mean_route(guide, hard=True), not guide.is_of_own_token)
        return _raced(model, routed, lambda route: after(route, False), DECODED, scene)


def _raced(
    model: LanguageModel,
    routed: Callable[[], None],
    along: Callable[[Route], Callable[[], None]],
    tokens: int,
    scene: Scene,
) -> dict[str, float | None]:
    """Tokens per second of a call of so many, and of the same with all tokens pinned to `full`."""
    network = model.network
    calls: Calls = {"routed": routed}
    if "full" in network.mechanism_names:
        calls["full"] = along(chosen_by_all(network, "full"))
    seconds = interleaved(calls, scene.repeats, 1, scene.device, enough_s=ENOUGH_S)
    times = medians(seconds)
    full = times.get("full")
    return {
        "tokens_per_second_routed": tokens / times["routed"],
        "tokens_per_second_full": tokens / full if full else None,
        "speed_up": full / times["routed"] if full else None,
    }
