"""What a route makes of a layer's queries, keys and values: sum_k alpha_k g_k A_k(q, k, v).

Shapes: B sequences, T tokens, H query heads, G key-value heads, d head width, D = H d, K
mechanisms, n groups of heads.
"""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from pyro_meta.attention.dispatch import folded, is_choice, routed_attention, unfolded
from pyro_meta.attention.inputs import Inputs
from pyro_meta.attention.mechanisms import Mechanism

Dispatch = Callable[[Sequence[Mechanism], Tensor, Tensor, Inputs], Tensor]
"""What runs hard routes; see `routed_attention`."""


def mixed_attention(
    mechanisms: Sequence[Mechanism],
    gain: Tensor,
    route: Tensor,
    inputs: Inputs,
    groups: int = 1,
    dispatch: Dispatch = routed_attention,
) -> Tensor:
    """What every token attends to, [B, T, D].

    Parameters
    ----------
    mechanisms
        K of them.
    gain
        [K, D], one factor per channel.
    route
        Weights [B, T, K], by which every mechanism runs on all tokens; or choices [B, T], by which
        each token runs its own alone. Of n groups of heads [B, T, n, K] or [B, T, n].
    inputs
        Queries, keys and values of all tokens.
    groups
        n.
    dispatch
        Runs choices.
    """
    route, inputs = folded(route, inputs, groups)
    if is_choice(route):
        return unfolded(dispatch(mechanisms, gain, route, inputs), groups)
    shared = inputs.q.shape[1] // inputs.v.shape[1]
    if shared > 1:
        inputs = inputs.with_repeated_heads(shared)
    mixed: Tensor | None = None
    for index, mechanism in enumerate(mechanisms):
        attended = mechanism(*inputs.read_by(mechanism))
        attended = attended.transpose(1, 2).flatten(2)  # [B n, T, D / n]
        part = route[..., index, None] * (_by_row(gain[index], attended, groups) * attended)
        mixed = part if mixed is None else mixed + part
    return unfolded(cast(Tensor, mixed), groups)


def _by_row(gain: Tensor, like: Tensor, groups: int) -> Tensor:
    """A gain [D] for rows [B n, T, D / n]."""
    if groups == 1:
        return gain
    return gain.view(groups, 1, -1).repeat(len(like) // groups, 1, 1)
