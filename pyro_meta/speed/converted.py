"""A converted model against the model as it was, on the clock: prefill, attention, decoding.

The opponent is the same model of transformers with its own `sdpa`, loaded beside. Three ways: as it
was (`sdpa`), along the routes of a run (`routed`), and by a guide that is asked and sends every
token to full attention (`all full`), which is what the conversion itself costs. A converted model's
cache grows in place, which has nothing to do with routes. So a fourth way of decoding is the model
as it was with such a cache (`sdpa, in place`).
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pyro_meta.attention.clock import Calls, medians
from pyro_meta.attention.prices import macs_at
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.spending import price_for
from pyro_meta.pretrained.conversion import convert
from pyro_meta.pretrained.deployed import Deployed
from pyro_meta.pretrained.growing import give_room
from pyro_meta.pretrained.interface import Call, Site
from pyro_meta.pretrained.loading import load_model
from pyro_meta.pretrained.network import PretrainedNetwork
from pyro_meta.speed.scene import Scene
from pyro_meta.training.run import Run

LENGTHS = [1024, 2048, 4096, 8192]
DECODED = 8
"""Tokens in one timed piece of decoding."""
PIECES = 8
"""So many are read before the same tokens are read again."""
IN_PLACE = "sdpa, in place"
"""The model as it was, with a cache that grows in place: a way of decoding."""


def bench_converted(
    run: Run,
    scene: Scene,
    lengths: Sequence[int],
    budget: float | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds and ratios by length, on the run's own held-out text.

    Parameters
    ----------
    run
        Of a pretrained model.
    scene
        Device, precision, repetitions.
    lengths
        T.
    budget
        Share of key visits to make on the text of each length, by a price of its own; None: the
        run's price.
    tell
        Told of the progress.

    Raises
    ------
    UsageError
        The run routes no pretrained model, or its text is too short.
    """
    model, guide, _, config = run.load()
    network = model.network
    if not isinstance(network, PretrainedNetwork) or config.pretrained is None:
        raise UsageError(f"option --run: {run.folder} is of no pretrained model")
    if guide.is_mixture:
        raise UsageError(f"option --run: {run.folder} runs a mixture, and no choices to be timed")
    corpus = config.data.corpus()
    for length in lengths:
        if length <= DECODED:
            raise UsageError(f"option --lengths: {length} given; more than {DECODED} are allowed")
        corpus.require(length)
    windows = corpus.windows(max(lengths), 1)
    prices = [float(guide.execution.price)] * len(lengths)
    if budget is not None:
        for number, length in enumerate(lengths):
            tell(f"the price of {budget:g} of the visits, {length:,} tokens")
            short = windows[0][:, :length], windows[1][:, :length]
            prices[number] = price_for(model, guide, short, 1, budget)
    plain = load_model(config.pretrained, scene.dtype).to(scene.device)
    with warnings.catch_warnings():
        # another precision than that of training is asked for
        warnings.filterwarnings("ignore", message="convert: the routes were trained in")
        routed = convert(network.hf_model.to(scene.device, scene.dtype), guide, checks=False)
    guide.to(scene.device)
    full = copy.deepcopy(routed)
    passing, of_full = _deployed(routed), _deployed(full)
    _send_to_full(of_full)
    found = []
    for length, price in zip(lengths, prices, strict=True):
        passing.guide.execution.price.fill_(price)
        tokens = windows[0][:, :length].to(scene.device)
        tell(f"{length:,} tokens")
        found.append(_of_length(plain, routed, full, passing, tokens, scene))
    return {
        "run": run.folder.name,
        "model": config.pretrained
        if "/" not in config.pretrained.strip("/")
        else config.pretrained.rstrip("/").rpartition("/")[2],
        "precision": scene.precision,
        "threads": torch.get_num_threads(),
        "points": found,
    }


def _deployed(routed: PreTrainedModel) -> Deployed:
    from pyro_meta.pretrained.conversion import deployed

    return deployed(routed)


def _send_to_full(passing: Deployed) -> None:
    """Turn a guide, whichever it is, into one that is asked as before and says `full`."""
    execution = passing.guide.execution
    full = passing.network.mechanism_names.index("full")
    costs = torch.ones_like(execution.costs)
    costs[full] = -1e6
    execution.costs.copy_(costs)
    execution.price.fill_(1.0)


def _of_length(
    plain: PreTrainedModel,
    routed: PreTrainedModel,
    full: PreTrainedModel,
    passing: Deployed,
    tokens: Tensor,
    scene: Scene,
) -> dict[str, Any]:
    ways = {"sdpa": plain, "routed": routed, "all full": full}
    with torch.no_grad():
        calls = _recorded(routed, passing, tokens)
        prefill: Calls = {name: _prefill(one, tokens) for name, one in ways.items()}
        decode: Calls = {name: _decode(one, tokens) for name, one in ways.items()}
        decode[IN_PLACE] = _decode(plain, tokens, in_place=True)
        newest = _recorded_newest(routed, passing, tokens)
        of_newest: Calls = {"sdpa": lambda: [call.plain() for _, call, _ in newest]}
        attention: Calls = {
            "sdpa": lambda: [call.plain() for _, call, _ in calls],
            "routed": lambda: [passing.along(site, call, route) for site, call, route in calls],
        }
        seconds = {
            "prefill": medians(scene.time(prefill)),
            "attention": medians(scene.time(attention)),
            "decoding": {name: one / DECODED for name, one in medians(scene.time(decode)).items()},
            "attention of a decoded token": medians(scene.time(of_newest)),
        }
    last = [(site, call, route[:, -DECODED:]) for site, call, route in calls]
    return {
        "length": tokens.shape[1],
        "visits": _visits(passing.network, calls),
        "visits_of_the_last": _visits(passing.network, last),
        "seconds": seconds,
        "times_as_fast": {
            part: {name: of["sdpa"] / one for name, one in of.items() if name != "sdpa"}
            for part, of in seconds.items()
        },
    }


def _prefill(model: PreTrainedModel, tokens: Tensor) -> Callable[[], object]:
    return lambda: model(input_ids=tokens, use_cache=False, logits_to_keep=1)


def _decode(model: PreTrainedModel, tokens: Tensor, in_place: bool = False) -> Callable[[], object]:
    """Read `DECODED` more tokens one by one, up to the last; then the same ones again."""
    kept = DynamicCache(config=model.config)
    pieces = max(1, min(PIECES, (tokens.shape[1] - 1) // DECODED))
    begin = tokens.shape[1] - pieces * DECODED
    model(input_ids=tokens[:, :begin], cache=kept, use_cache=True, logits_to_keep=1)
    if in_place:
        give_room(kept)

    def decode() -> None:
        length = kept.get_seq_length()
        if length == tokens.shape[1]:
            kept.crop(begin - length)
            length = begin
        for place in range(length, length + DECODED):
            one = tokens[:, place : place + 1]
            model(input_ids=one, cache=kept, use_cache=True, logits_to_keep=1)

    return decode


def _recorded_newest(
    routed: PreTrainedModel, passing: Deployed, tokens: Tensor
) -> list[tuple[Site, Call, Tensor]]:
    """What every routed layer is asked for by the last token alone, and its choices."""
    kept = DynamicCache(config=routed.config)
    routed(input_ids=tokens[:, :-1], cache=kept, use_cache=True, logits_to_keep=1)
    return _recorded(routed, passing, tokens[:, -1:], kept)


def _recorded(
    routed: PreTrainedModel, passing: Deployed, tokens: Tensor, kept: DynamicCache | None = None
) -> list[tuple[Site, Call, Tensor]]:
    """What every routed layer is asked for, and its choices [B, T, n], behind what is `kept`."""
    calls: list[tuple[Site, Call, Tensor]] = []
    execute = passing.execute

    def noting(site: Site, call: Call, route: Tensor) -> Tensor:
        calls.append((site, call, route))
        return execute(site, call, route)

    passing.execute = noting  # type: ignore[method-assign]
    try:
        routed(input_ids=tokens, cache=kept, use_cache=kept is not None, logits_to_keep=1)
    finally:
        del passing.execute
    return calls


def _visits(network: PretrainedNetwork, calls: list[tuple[Site, Call, Tensor]]) -> float:
    """Keys that the last tokens of a text see, of which there are routes, as a share of what
    full attention sees."""
    T, S = calls[0][2].shape[1], calls[0][1].key.shape[2]
    positions = torch.arange(S - T, S, dtype=torch.float64)
    macs = torch.stack([macs_at(one, positions) for one in network.mechanisms], -1)  # [T, K]
    full = 2.0 * network.shape.head_width * (positions + 1)
    seen = 0.0
    for _, _, route in calls:
        used = nn.functional.one_hot(route.cpu(), macs.shape[1]).double()  # [B, T, n, K]
        seen += float((used * macs[:, None]).sum((1, 3)).mean())
    return seen / len(calls) / float(full.sum())
