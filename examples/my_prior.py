"""Write your own prior: cheap early layers, and no preference above.

Run it: python examples/my_prior.py
Train with it, from this folder:
    python -m pyro_meta.train --prior my_prior.CheapBelow --prior.cheap 2
Test it: python -m pyro_meta.contracts "my_prior.CheapBelow(cheap=2)"
"""

import torch
from pyro.distributions import Dirichlet
from torch import Tensor

from pyro_meta import (
    DirichletGuide,
    LanguageModel,
    Prior,
    RouteELBO,
    Shape,
    Transformer,
    UsageError,
)
from pyro_meta.network.costs import costs_at


class CheapBelow(Prior):
    """alpha ~ Dirichlet(1 + s softmax(-rate c)) in the first layers, Dirichlet(1, ..., 1) above.

    Every argument after `network` becomes an option of the command line.

    Parameters
    ----------
    network
        Gives layers, mechanisms and costs.
    cheap
        How many layers, from below, prefer cheap mechanisms.
    rate
        Nats paid there per unit of cost.
    """

    def __init__(self, network: Transformer, cheap: int = 1, rate: float = 3.0) -> None:
        super().__init__(network)
        if not 0 <= cheap <= network.shape.layers:
            raise UsageError(
                f"prior.cheap: {cheap} given; 0 to {network.shape.layers} layers are allowed"
            )
        self.cheap, self.rate = cheap, rate

    def forward(self, layer: int, positions: Tensor) -> Dirichlet:
        costs = costs_at(self.network, "macs", positions)  # [T, K]
        rate = self.rate if layer < self.cheap else 0.0
        return Dirichlet(1.0 + 8.0 * torch.softmax(-rate * costs, -1))


def main() -> None:
    torch.manual_seed(0)
    network = Transformer(Shape(vocabulary=256, context=64, width=32, layers=2, heads=2, window=8))
    model = LanguageModel(network, CheapBelow(network, cheap=1))
    guide = DirichletGuide(model)
    tokens = torch.randint(256, (4, 65))
    terms = RouteELBO().terms(model, guide, tokens[:, :-1], tokens[:, 1:])
    positions = torch.arange(64)
    for layer in range(2):
        mean = model.prior(layer, positions).mean.mean(0).tolist()
        shares = ", ".join(
            f"{name} {share:.2f}" for name, share in zip(network.mechanism_names, mean, strict=True)
        )
        print(
            f"layer {layer}: prior mean {shares}; KL of the untrained guide {terms.kl[layer]:.2f}"
        )


if __name__ == "__main__":
    main()
