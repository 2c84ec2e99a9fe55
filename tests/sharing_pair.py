"""One of two processes that share models, and check them against whole ones.

python sharing_pair.py RANK FOLDER: they meet in the folder, and leave checkpoints in it.
"""

import sys
from pathlib import Path
from typing import Any

import one_thread  # noqa: F401

# isort: split

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from pyro_meta import (
    CategoricalGuide,
    DepthPrior,
    DirichletGuide,
    Guide,
    LanguageModel,
    LoadCategorical,
    LoadDirichlet,
    LoadGuide,
    Prior,
    Shape,
    Transformer,
)
from pyro_meta.evaluation.figures import evaluate
from pyro_meta.guides.depth import BetaDepthGuide
from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.optimiser import make_optimiser
from pyro_meta.inference.schedules import Optimisation
from pyro_meta.training.checkpoint import Checkpoints
from pyro_meta.training.sharding import gathered, is_sharded, shard, whole

STATE = {"seconds": 0.0, "corpus": "", "processes": 2}
MEASURED = 1e-5  # RMS of a difference over that of what is right: sums in another order


def build(prior: type[Prior], make: type[Guide], groups: int, block: str = "residual") -> Objective:
    """Of momentum blocks, tokens may skip layers, too."""
    torch.manual_seed(0)
    shape = Shape(vocabulary=13, context=24, width=16, layers=2, heads=2, window=5, groups=groups)
    network = Transformer(shape, ("full", "window", "linear"), block)
    has_gates = block == "momentum"
    depth = DepthPrior(network, 0.3, 1.0) if has_gates else None
    model = LanguageModel(network, prior(network), depth)
    guide = make(model)
    if has_gates:
        guide.depth = BetaDepthGuide(model)
    guide.harden_below(0.3)
    return Objective(model, guide)


def require_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    off = (ours - theirs).square().mean().sqrt()
    right = theirs.square().mean().sqrt()
    assert off <= MEASURED * right + 1e-12, f"{what}: off by {off / right:.1e}"


def train_both(
    one: Objective, shared: Objective, rank: int
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Three steps of each, on the same micro-batches: two by one process, one by each of two."""
    generator = torch.Generator().manual_seed(1)
    both = torch.randint(13, (4, 21), generator=generator)
    tokens, targets = both[:, :-1], both[:, 1:]

    def loss(objective: Objective, index: int) -> Tensor:
        torch.manual_seed(index)
        rows = slice(2 * index, 2 * index + 2)
        return objective(tokens[rows], targets[rows]).loss

    optimisers = [make_optimiser(Optimisation(), objective) for objective in (one, shared)]
    for step in range(3):
        of_one = torch.stack([loss(one, index) for index in range(2)]).mean()
        of_one.backward()
        own = loss(shared, rank)
        own.backward()
        mean = own.detach().clone()
        dist.all_reduce(mean)
        require_close(mean / 2, of_one, f"loss of step {step}")
        pairs = zip(one.named_parameters(), shared.named_parameters(), strict=True)
        for (name, ours), (_, theirs) in pairs:
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None and theirs.grad is not None:
                require_close(whole(theirs.grad), ours.grad, f"gradient of {name} in step {step}")
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    with gathered(shared):
        figures = evaluate(shared.model, shared.guide, (tokens, targets), 2)
    expected = evaluate(one.model, one.guide, (tokens, targets), 2)
    for key in ("val_nll_soft", "val_nll_hard", "kl_per_token", "cost_macs_hard"):
        require_close(torch.tensor(figures[key]), torch.tensor(expected[key]), key)
    return optimisers[0], optimisers[1]


def require_half(shared: Objective) -> None:
    """Between steps a process holds about half of every block."""
    for block in shared.model.network.layers:
        held = total = 0
        for parameter in block.parameters():
            assert isinstance(parameter, DTensor)
            held, total = held + parameter.to_local().numel(), total + parameter.numel()
        assert 0.4 < held / total < 0.6


def parts(objective: Objective) -> dict[str, Any]:
    return {"model": objective.model, "guide": objective.guide}


def require_same(ours: Objective, theirs: Objective) -> None:
    for name, value in theirs.state_dict().items():
        found = whole(ours.state_dict()[name])
        if isinstance(value, Tensor):
            assert torch.equal(found, whole(value)), name


def require_kept(
    shared: Objective, optimiser: torch.optim.Optimizer, fresh: Objective, like: Objective,
    folder: Path, gathers: bool,
) -> None:  # fmt: skip
    """A checkpoint is read by as many processes, and by one, whole."""
    store = Checkpoints(folder)
    store.save_together(parts(shared), optimiser, {**STATE, "step": 3}, gathers)
    anew = make_optimiser(Optimisation(), fresh)
    store.load(parts(fresh), anew)
    require_same(fresh, shared)
    require_same_moments(fresh, anew, shared, optimiser)
    alone = make_optimiser(Optimisation(), like)
    store.load(parts(like), alone)
    require_same(like, shared)
    require_same_moments(like, alone, shared, optimiser)


def require_same_moments(
    ours: Objective, our_optimiser: torch.optim.Optimizer,
    theirs: Objective, their_optimiser: torch.optim.Optimizer,
) -> None:  # fmt: skip
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    for (name, our), their in pairs:
        found, expected = our_optimiser.state[our], their_optimiser.state[their]
        assert found.keys() == expected.keys() and len(expected) == 3, name
        for key, value in expected.items():
            assert torch.equal(whole(found[key]), whole(value)), (name, key)


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    cases: list[tuple[Any, ...]] = [
        (LoadCategorical, CategoricalGuide, 1),
        (LoadCategorical, CategoricalGuide, 2),
        (LoadDirichlet, LoadGuide, 1),
        (LoadDirichlet, DirichletGuide, 1, "momentum"),
    ]
    for number, case in enumerate(cases):
        one, shared = build(*case), shard(build(*case), mesh)
        _, optimiser = train_both(one, shared, rank)
        assert is_sharded(shared)
        require_half(shared)
        if number == 1:
            for gathers in (False, True):
                at = folder / ("gathered" if gathers else "shards")
                fresh = shard(build(*case), mesh)
                require_kept(shared, optimiser, fresh, build(*case), at, gathers)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
