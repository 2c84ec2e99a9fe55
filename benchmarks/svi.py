"""An SVI step through Pyro against the same network and loss in plain PyTorch.

    python benchmarks/svi.py [benchmarks/results/svi.json]

Only the ratio of the two means anything.
"""

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from scripts import Parser, a_file_to_write, run_script
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from pyro_meta.attention.clock import interleaved, medians
from pyro_meta.guides import DirichletGuide
from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.optimiser import make_optimiser
from pyro_meta.inference.schedules import Optimisation
from pyro_meta.models import CostDirichlet, LanguageModel
from pyro_meta.network.route import Decision, Features
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import Transformer
from pyro_meta.terminal.measured import measured_by, write_measured

LAYERS, REPEATS = 4, 15


def bench_svi(layers: int, repeats: int) -> dict[str, Any]:
    """Time of an SVI step over that of the plain PyTorch step (L, D128, H4, T=256, batch 16)."""
    torch.manual_seed(0)
    T, B = 256, 16
    shape = Shape(vocabulary=256, context=T, width=128, layers=layers, heads=4, window=64)
    network = Transformer(shape)
    model = LanguageModel(network, CostDirichlet(network))
    guide = DirichletGuide(model)
    objective = Objective(model, guide)
    optimiser = make_optimiser(Optimisation(), objective)
    both = torch.randint(256, (B, T + 1))
    tokens, targets = both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def step(loss: Callable[[], Tensor]) -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    def with_pyro() -> Tensor:
        return objective(tokens, targets).loss

    def without_pyro() -> Tensor:
        return plain_loss(model, guide, tokens, targets)

    with pyro.validation_enabled(False):
        seconds = interleaved(
            {"svi": lambda: step(with_pyro), "plain": lambda: step(without_pyro)}, repeats
        )
    ratios = [a / b for a, b in zip(seconds["svi"], seconds["plain"], strict=True)]
    times = medians(seconds)
    return {
        "setting": {"layers": layers, "width": 128, "heads": 4, "context": T, "batch": B},
        "median_seconds": times,
        "ratio_of_medians": times["svi"] / times["plain"],
        "median_of_ratios": statistics.median(ratios),
        "target_ratio_at_most": 1.05,
    }


def plain_loss(
    model: LanguageModel, guide: DirichletGuide, tokens: Tensor, targets: Tensor
) -> Tensor:
    """The same network and objective, with torch.distributions and no Pyro."""
    kls = []

    def route(layer: int, features: Features) -> Decision:
        q = Dirichlet(guide.posterior(layer, features).concentration, validate_args=False)
        prior = model.prior(layer, features.positions).concentration
        kls.append(kl_divergence(q, Dirichlet(prior, validate_args=False)).mean())
        return Decision(q.rsample())

    logits = model.network(tokens, route)
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return nll + model.temperature * torch.stack(kls).sum()


def main() -> None:
    parser = Parser(__doc__)
    default = "benchmarks/results/svi.json"
    parser.add_argument("target", type=a_file_to_write, nargs="?", default=default)
    target = parser.parse_args().target
    facts = measured_by(["python", "benchmarks/svi.py", *sys.argv[1:]])
    facts |= bench_svi(LAYERS, REPEATS)
    write_measured(target, facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    run_script(main)
