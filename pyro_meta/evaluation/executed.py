"""What hard routes cost when they are executed: MACs and the clock, against full attention.

The opponent are the same weights with every token pinned to `full`, which asks no router; its clock
has kicks of momenta in it, if a mechanism carries any, though nobody reads them. Read is a fixed
piece of validation text, in the precision that the run was trained in (`as_trained`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_meta.attention import is_choice, one_for_all, recorded_attention, routed_attention
from pyro_meta.attention.clock import interleaved, medians, noise
from pyro_meta.attention.dispatch import AttentionCall
from pyro_meta.evaluation.figures import batches, evaluating
from pyro_meta.guides import Guide, mean_route
from pyro_meta.models import LanguageModel
from pyro_meta.network.macs import attention_macs, counted, full_attention_macs
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.network.transformer import chosen_by_all

TOKENS, REPEATS, ENOUGH_S = 4096, 5, 20.0
CLOCK_FIGURES = (
    "tokens_per_second_routed",
    "tokens_per_second_full",
    "speed_up_model",
    "speed_up_attention",
    "clock_noise",
)
"""The figures that differ from one measurement to the next."""


def as_trained(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a run of `--precision` computes on `device`.

    `bf16-mixed` is autocast to bfloat16, and so is `auto` on CUDA; where a device cannot, and for
    all else, it stays float32.
    """
    is_cuda = device.type == "cuda"
    is_half = precision == "bf16-mixed" or (precision == "auto" and is_cuda)
    is_able = not is_cuda or torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=is_half and is_able)


def executed_figures(
    model: LanguageModel,
    guide: Guide,
    windows: tuple[Tensor, Tensor],
    batch: int,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """The section `executed` of summary.json, in the precision of the context that it is called in.

    Parameters
    ----------
    model, guide
        Walked along `mean_route(guide, hard=True)`, whether or not training has ended hard.
    windows
        Validation tokens and targets [N, T]; the first rows, about `TOKENS` tokens, are walked.
    batch
        Rows at a time.
    repeats
        Interleaved repetitions of the clock, fewer where they would take longer than `ENOUGH_S`.

    Returns
    -------
    dict
        `length` and `tokens` of what was walked, and its `precision`;
        `macs_per_token_attention` (all layers), `macs_per_token_router` and `macs_per_token_model`
        (everything, the router included); `macs_ratio_attention` and `macs_ratio_model`, over the
        same weights with full attention and no router; with hard depth gates `passed_by`, the share
        of all pairs of token and layer in which the token skips the layer; then the clock:
        tokens per second of the whole model, routed and full, and how many times faster the routed
        one is, the whole model and attention alone (on one batch), and with gates the whole model
        over itself along the same routes with every gate open; `clock_noise`, by how much that of
        the whole model varies between rounds (`attention.clock.noise`). Clock figures are None if
        `full` is not among the mechanisms; that of attention alone also for a mixture, which is not
        dispatched.
    """
    network = model.network
    shape = network.shape
    T = windows[0].shape[1]
    rows = max(1, TOKENS // T)
    device = network.device
    pieces = [
        tokens.to(device)
        for tokens, _ in batches((windows[0][:rows], windows[1][:rows]), min(batch, rows))
    ]
    count = sum(tokens.numel() for tokens in pieces)
    follow = mean_route(guide, hard=True)
    with evaluating(model, guide):
        attention, router, skipped = _count_macs(network, follow, pieces)
        clock = _clock(network, follow, pieces, repeats, bool(model.gated))
    dense = network.dense_macs()
    full = shape.layers * full_attention_macs(shape, T) / T
    whole = attention / count + router / count + network.dense_macs((skipped or 0) / count)
    gated = {} if skipped is None else {"passed_by": skipped / count / shape.layers}
    return {
        "length": T,
        "tokens": count,
        "precision": precision_of(device),
        "macs_per_token_attention": attention / count,
        "macs_per_token_router": router / count,
        "macs_per_token_model": whole,
        "macs_ratio_attention": attention / count / full,
        "macs_ratio_model": whole / (full + dense),
        **gated,
        **clock,
    }


def precision_of(device: torch.device) -> str:
    """What products of matrices are computed in here: `float32`, or the dtype of autocast."""
    is_half = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_half else torch.get_default_dtype()
    return str(dtype).removeprefix("torch.")


def _count_macs(
    network: Network, follow: Route, pieces: list[Tensor]
) -> tuple[float, int, int | None]:
    """MACs of attention and of the router, and skipped layers, summed over layers and tokens.

    None: there are no hard gates.
    """
    attention, router = 0.0, 0
    skipped: int | None = None
    heads, groups = network.shape.heads, network.shape.groups

    def route(layer: int, features: Features) -> Decision:
        nonlocal attention, router, skipped
        decision, macs = counted(lambda: follow(layer, features))
        chosen, gate = decision
        router += macs
        if gate is not None and not gate.is_floating_point():
            skipped = (skipped or 0) + int((~gate).sum())
            if not is_choice(chosen):  # who skips needs nothing of the mixture
                chosen = chosen * gate.view(*gate.shape, *(1 for _ in chosen.shape[2:]))
        if not is_choice(chosen):
            by_group = chosen if groups == 1 else chosen.transpose(1, 2).flatten(0, 1)
            attention += attention_macs(network.mechanisms, heads // groups, by_group)
        return decision

    for tokens in pieces:
        with recorded_attention() as calls:
            network(tokens, route)
        for mechanisms, _, choice, inputs in calls:
            attention += attention_macs(mechanisms, heads // groups, choice, inputs)
    return attention, router, skipped


def _clock(
    network: Network, follow: Route, pieces: list[Tensor], repeats: int, gated: bool
) -> dict[str, float | None]:
    figures: dict[str, float | None] = dict.fromkeys(CLOCK_FIGURES)
    device = network.device
    count = sum(tokens.numel() for tokens in pieces)

    def walk(route: Route) -> Callable[[], None]:
        def run() -> None:
            for tokens in pieces:
                network(tokens, route)

        return run

    calls = {"routed": walk(follow)}
    if gated:
        calls["open"] = walk(lambda *asked: follow(*asked).with_open_gate())
    if "full" in network.mechanism_names:
        calls["full"] = walk(chosen_by_all(network, "full"))
    seconds = interleaved(dict(calls), repeats, 1, device, enough_s=ENOUGH_S)
    times = medians(seconds)
    figures["tokens_per_second_routed"] = count / times["routed"]
    if "open" in times:
        figures["speed_up_depth"] = times["open"] / times["routed"]
    if "full" not in times:
        return figures
    figures["tokens_per_second_full"] = count / times["full"]
    figures["speed_up_model"] = times["full"] / times["routed"]
    figures["clock_noise"] = noise(seconds["full"], seconds["routed"])
    with recorded_attention() as routed:
        network(pieces[0], follow)
    if routed:
        index = network.mechanism_names.index("full")
        pinned = [(m, gain, one_for_all(c, index), inputs) for m, gain, c, inputs in routed]
        both = {"routed": lambda: attend_all(routed), "full": lambda: attend_all(pinned)}
        times = medians(interleaved(dict(both), repeats, 1, device, enough_s=ENOUGH_S))
        figures["speed_up_attention"] = times["full"] / times["routed"]
    return figures


def attend_all(calls: list[AttentionCall]) -> None:
    """Run what was recorded."""
    for call in calls:
        routed_attention(*call)
