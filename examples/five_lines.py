"""A model, a prior and a guide in five lines, in plain Pyro.

Run it: python examples/five_lines.py
"""

import pyro
import torch
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO

from pyro_meta import CostDirichlet, DirichletGuide, LanguageModel, Shape, Transformer

network = Transformer(Shape(vocabulary=256, context=64, width=32, layers=2, heads=2, window=8))
model = LanguageModel(network, CostDirichlet(network, rate=3.0))
guide = DirichletGuide(model)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), TraceMeanField_ELBO())
model.temperature = 0.01  # below 1: a tempered objective

text = b"To be, or not to be, that is the question: whether 'tis nobler in the mind. " * 20
tokens = torch.tensor(list(text[:1025])).unfold(0, 65, 64)  # [16, 65]
x, y = tokens[:, :-1], tokens[:, 1:]

for step in range(61):
    loss = svi.step(x, y) / y.numel()  # Pyro's own step; nats per token
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss:.3f}")

draws = Predictive(model, guide=guide, num_samples=20)(x)
for layer in range(network.shape.layers):
    mean = draws[f"route_{layer}"].mean((0, 1, 2))  # over draws, sequences and positions
    shares = ", ".join(
        f"{name} {share:.2f}"
        for name, share in zip(network.mechanism_names, mean.tolist(), strict=True)
    )
    print(f"layer {layer}: mean route {shares}")
