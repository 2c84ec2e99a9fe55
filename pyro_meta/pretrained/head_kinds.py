"""What the heads of a model do: induction, copies, previous tokens, sinks, and how far they look.

Scores are weights of attention under full attention. Induction and copies are read on random tokens
that come twice (Olsson et al. 2022, arXiv 2209.11895): the second time, an induction head looks at
what followed the first time, a copy head at the same token. Shapes: L layers, H query heads, G
key-value heads, B texts, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_meta.errors import UsageError
from pyro_meta.pretrained import interface
from pyro_meta.pretrained.interface import Call
from pyro_meta.pretrained.network import PretrainedNetwork


@dataclass(frozen=True)
class HeadKinds:
    """Mean weights of attention by layer and query head, each [L, H]."""

    induction: Tensor
    """On what followed the same token the first time."""
    copy: Tensor
    """On the same token, the first time."""
    previous: Tensor
    """On the token before."""
    sinks: Tensor
    """On the first tokens of the text."""
    far: Tensor
    """On what a window with these sinks does not see."""

    def of_groups(self, groups: int) -> "HeadKinds":
        """Those of the strongest head in each of the groups, each [L, G]."""
        return HeadKinds(*(one.unflatten(1, (groups, -1)).amax(-1) for one in vars(self).values()))


def head_kinds(
    network: PretrainedNetwork, text: Tensor, seed: int = 0, repeated: int = 256, texts: int = 4
) -> HeadKinds:
    """Scores of every query head of the routed layers.

    Parameters
    ----------
    network
        Whose model is looked at, unrouted.
    text
        Ordinary tokens [B, T], for previous tokens, sinks and how far.
    seed
        Of the random tokens.
    repeated
        How many of them come twice: more than a window, so that only far attention finds them.
    texts
        Of random tokens.

    Raises
    ------
    UsageError
        Repeated tokens would be in the window.
    """
    window, sinks = network.shape.window, network.shape.sinks
    if repeated <= window:
        raise UsageError(f"repeated: {repeated} given; more than the window, {window}, is needed")
    draw = torch.Generator().manual_seed(seed)
    once = torch.randint(network.shape.vocabulary, (texts, repeated), generator=draw)
    twice = torch.cat([once, once], 1).to(network.device)
    second = torch.arange(repeated, 2 * repeated - 1, device=network.device)
    induction, copy = [], []
    for weights in _weights(network, twice):
        induction.append(weights[:, :, second, second - repeated + 1].mean((0, 2)))
        copy.append(weights[:, :, second, second - repeated].mean((0, 2)))
    T = text.shape[1]
    place = torch.arange(T, device=network.device)
    late = place >= min(2 * window, T // 2)
    is_far = (place[:, None] - place >= window) & (place >= sinks)
    previous, on_sinks, far = [], [], []
    for weights in _weights(network, text.to(network.device)):
        previous.append(weights[:, :, place[1:], place[:-1]].mean((0, 2)))
        on_sinks.append(weights[:, :, late, :sinks].sum(-1).mean((0, 2)))
        far.append((weights * is_far).sum(-1)[:, :, late].mean((0, 2)))
    found = (induction, copy, previous, on_sinks, far)
    return HeadKinds(*(torch.stack(one).cpu() for one in found))


def _weights(network: PretrainedNetwork, tokens: Tensor) -> Iterator[Tensor]:
    """Weights of attention of each routed layer, [B, H, T, T], in float32."""
    calls: list[Call] = []
    token = interface.recorded.set(calls)
    try:
        with torch.no_grad():
            network.hf_model.base_model(input_ids=tokens, use_cache=False)
    finally:
        interface.recorded.reset(token)
    is_routed = {id(site.module) for site in network.routing.sites if site.layer is not None}
    hidden = torch.ones(tokens.shape[1], tokens.shape[1], device=tokens.device).triu(1).bool()
    for call in calls:
        if id(call.module) in is_routed:
            shared = call.query.shape[1] // call.key.shape[1]
            key = call.key.repeat_interleave(shared, 1)
            scores = (call.query @ key.transpose(-1, -2)).float() * call.scaling
            yield scores.masked_fill(hidden, -torch.inf).softmax(-1)
