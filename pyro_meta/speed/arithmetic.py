"""What multiply-accumulates (MACs) alone would give: the limit that times are held against.

Shapes: T tokens, L layers, H heads, d head width.
"""

from collections.abc import Sequence

import torch

from pyro_meta.attention.prices import macs_at
from pyro_meta.guides import mean_route
from pyro_meta.network.macs import attention_macs, counted
from pyro_meta.network.route import Decision, Features
from pyro_meta.speed.scene import FULL, Attention, Scene

ByShare = dict[str, float]
"""MACs over those of full attention, by the share of full attention."""


def attention_ratios(
    scene: Scene, length: int, shares: Sequence[float], layers: int = 1
) -> ByShare:
    """Attention of the first `layers` over `length` tokens, along the routes that are timed."""
    mechanisms = Attention.of(scene, 1).mechanisms
    macs = {
        share: sum(
            attention_macs(mechanisms, scene.heads, choice)
            for choice in scene.choices(share, length)[:layers]
        )
        for share in {*shares, 1.0}
    }
    return {f"{share:g}": macs[share] / macs[1.0] for share in shares}


def newest_ratios(scene: Scene, length: int, shares: Sequence[float]) -> ByShare:
    """Attention of one token after `length` others: the mean over mechanisms, by their shares."""
    mechanisms = Attention.of(scene, 1).mechanisms
    at = torch.tensor([float(length)], dtype=torch.float64)
    each = [float(macs_at(one, at)) for one in mechanisms]
    others = (sum(each) - each[FULL]) / (len(each) - 1)
    return {f"{share:g}": share + (1 - share) * others / each[FULL] for share in shares}


def router_macs(scene: Scene) -> float:
    """MACs of asking the router, per token, all layers; it reads each token by itself."""
    model, guide = scene.network(16)
    ask, tokens, found = mean_route(guide, hard=True), scene.tokens(16), 0

    def asked(layer: int, features: Features) -> Decision:
        nonlocal found
        decision, macs = counted(lambda: ask(layer, features))
        found += macs
        return decision

    with torch.no_grad(), scene.autocast():
        model.network(tokens, asked)
    return found / tokens.numel()


def ratios_of_parts(
    scene: Scene, length: int, shares: Sequence[float], parts: Sequence[str]
) -> dict[str, ByShare]:
    """MACs of each part over those with full attention and no router, by share of full.

    Training is given its routes; prefill and decoding ask the router, see `timed_parts`.
    """
    mechanisms = Attention.of(scene, 1).mechanisms
    everyone = torch.full((1, length), FULL)
    whole = scene.layers * attention_macs(mechanisms, scene.heads, everyone) / length
    at = torch.tensor([float(length)], dtype=torch.float64)
    newest = scene.layers * scene.heads * float(macs_at(mechanisms[FULL], at))
    dense, router = scene.network(16)[0].network.dense_macs(), router_macs(scene)
    along = attention_ratios(scene, length, shares, scene.layers)

    def of_model(ratios: ByShare, attention: float, asking: float) -> ByShare:
        before = dense + attention
        return {
            share: (dense + asking + ratio * attention) / before for share, ratio in ratios.items()
        }

    found = {
        "attention": attention_ratios(scene, length, shares),
        "prefill": of_model(along, whole, router),
        "training": of_model(along, whole, 0.0),
        "decoding": of_model(newest_ratios(scene, length, shares), newest, router),
    }
    return {part: found[part] for part in parts}
