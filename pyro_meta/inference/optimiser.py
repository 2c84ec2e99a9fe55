"""AdamW over the network, and over the guide with its prior, each at its own learning rate."""

import torch
from torch import nn

from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.schedules import Optimisation


def make_optimiser(optim: Optimisation, objective: Objective) -> torch.optim.AdamW:
    """AdamW over the network, in a decayed and an undecayed group, and guide with prior."""
    linear = [part for part in objective.modules() if isinstance(part, nn.Linear)]
    matrices = {id(part.weight) for part in linear}
    routing = [*objective.guide.parameters(), *objective.model.prior.parameters()]
    router = {id(p) for p in routing}
    of_all_tokens = {id(p) for p in objective.guide.offsets}
    offsets = [p for p in routing if id(p) in of_all_tokens]
    of_tokens = [p for p in routing if id(p) not in of_all_tokens]
    network = [p for p in objective.parameters() if id(p) not in router and p.requires_grad]
    decayed = [p for p in network if id(p) in matrices]
    kept = [p for p in network if id(p) not in matrices]
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay, "is_router": False, "times": 1.0},
        {"params": kept, "weight_decay": 0.0, "is_router": False, "times": 1.0},
        {"params": of_tokens, "weight_decay": 0.0, "is_router": True, "times": 1.0},
        {"params": offsets, "weight_decay": 0.0, "is_router": True, "times": optim.offsets},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)


def set_lr(optimiser: torch.optim.Optimizer, optim: Optimisation, progress: float) -> None:
    """Give every group its learning rate after a share `progress` in [0, 1] of training."""
    for group in optimiser.param_groups:
        lr_at = optim.router_lr_at if group["is_router"] else optim.lr_at
        group["lr"] = group["times"] * lr_at(progress)


def drop_resting(optimiser: torch.optim.Optimizer, is_refitting: bool = False) -> None:
    """Drop the gradients of what rests, so that no norm or moment holds them, and nothing moves.

    That is the router before it begins and once it has settled, and the network while the router is
    refitted to it.
    """
    for group in optimiser.param_groups:
        rests = group["lr"] == 0 if group["is_router"] else is_refitting
        if rests:
            for parameter in group["params"]:
                parameter.grad = None
