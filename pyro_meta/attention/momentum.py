"""The mechanism `linear_momentum`: attention whose values are momenta, carried through depth.

Everything else that has to know of momenta asks `carries`: what such a mechanism reads as values
(`Inputs.read_by`), what the cache keeps for it and for its kicks (`pyro_meta.attention.cache`), and
who kicks the tokens of a layer (`pyro_meta.network.blocks.routed_attention`).
"""

import torch
from torch import Tensor

from pyro_meta.attention.mechanisms import Attend, Mechanism
from pyro_meta.attention.ops import gathered
from pyro_meta.attention.ops.momentum import (
    damping,
    mean_attention,
    mean_attention_after,
    mean_state,
)
from pyro_meta.attention.ops.queries import Queries


class LinearMomentum(Mechanism):
    """Linear attention whose values are momenta, carried through depth: 4 d^2 MACs per head.

    A damped Hamiltonian system in the conformal symplectic step of SympFormer (arXiv 2603.16535;
    equations in `pyro_meta.attention.ops.momentum`), a layer a step, on the q, k and v that all
    mechanisms share: x A is q / sqrt(d), x is k, x V^T is v, head by head.

        p+ = s (p + v - A(p, p, q / sqrt(d)))      every token is kicked, in O(T)
        A(q / sqrt(d), k, p+)                      what a token that chose this attends to

    It is a mechanism, and not a block, since both forces are attention that a token may choose or
    not, with momenta as values; what a block adds is the drift, x + W_o g A(..). The step lengths
    are in the learned scales: that of the drift in W_o and g, that of the kick in W_v and in the
    scale of W_q against W_k.

    The momenta start at zero, so that the first layer reads values, damped. Without a mask and with
    q linear in k the step maps every particle (x, p) by one matrix of second moments. It is
    conformally symplectic up to second order in its length, as the kick is explicit in p, and a
    layer is a long step. Causally masked it is no Hamiltonian flow any more: later tokens do not
    push back.
    """

    nominal_cost = 0.30
    rotary = False
    of_keys = 0.5

    @property
    def name(self) -> str:
        return "linear_momentum"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mean_attention(self._scaled(q), k, v)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        return gathered.mean_attention_of(self._scaled(q), k, v, queries)

    def state_of(
        self, k: Tensor, v: Tensor, past: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        new = mean_state(k, v, is_token)
        return new if past is None else past + new

    def resume(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
        return mean_attention_after(self._scaled(q), k, v, past)

    def kick(
        self, q: Tensor, v: Tensor, momentum: Tensor | None, layer: int, attend: Attend
    ) -> Tensor:
        kept = damping(layer)
        if momentum is None:
            return kept * v
        return kept * (momentum + v - attend(momentum, momentum, q))

    def macs(self, position: Tensor) -> Tensor:
        return torch.full_like(position, 4.0 * self.head_width**2, dtype=torch.get_default_dtype())

    def kick_macs(self, position: Tensor) -> Tensor:
        return self.macs(position) / 2

    def _scaled(self, q: Tensor) -> Tensor:
        return q * self.head_width**-0.5
