"""Write your own mechanism: attention to the first token and the current one.

Run it: python examples/my_mechanism.py
Train with it, from this folder:
    python -m pyro_meta.train --mechanisms "[full,window,my_mechanism.Ends]"
Test it: python -m pyro_meta.contracts my_mechanism.Ends
"""

import torch
from torch import Tensor

from pyro_meta import Mechanism, Shape, Transformer, pinned
from pyro_meta.attention import Queries
from pyro_meta.contracts.admission import require_sound_network


class Ends(Mechanism):
    """Softmax over two keys, the first token's and one's own: 4 d MACs per head."""

    nominal_cost = 0.02

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, k, v, k[:, :, :1].expand_as(k), v[:, :, :1].expand_as(v))

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        """Optional: where routes are hard, only the tokens that chose this mechanism pay for it."""
        group = q.shape[1] // k.shape[1]  # query heads that share a key-value head
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        first = Queries(queries.sequence, torch.zeros_like(queries.position))
        return self.attend(q, queries.of(k), queries.of(v), first.of(k), first.of(v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, first_k: Tensor, first_v: Tensor) -> Tensor:
        """All [.., d], one key and value of one's own and one of the first token: [.., d]."""
        keys, values = torch.stack([first_k, k], -2), torch.stack([first_v, v], -2)  # [.., 2, d]
        scores = (keys @ q[..., None])[..., 0] / self.head_width**0.5  # [.., 2]
        return (scores.softmax(-1)[..., None] * values).sum(-2)

    def macs(self, position: Tensor) -> Tensor:
        return torch.full_like(position, 4.0 * self.head_width)


def main() -> None:
    shape = Shape(vocabulary=256, context=64, width=32, layers=2, heads=2, window=8)
    network = Transformer(shape, ["full", "my_mechanism.Ends"])
    require_sound_network(network)  # training refuses a mechanism that sees the future
    logits = network(torch.randint(256, (1, 64)), pinned(network, "ends"))
    print(f"mechanisms {network.mechanism_names}, logits {list(logits.shape)}")


if __name__ == "__main__":
    main()
