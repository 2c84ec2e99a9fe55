"""FSDP2 by block: a process keeps a share of every parameter, and gathers a block where it runs.

What stands in no block (embedding, readout, prior, guide) is gathered together, for a whole step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from pyro_meta.inference.elbo import Objective

OUTSIDE_FORWARD = ("begin", "look", "extend")
"""Methods of a block that the network calls beside its forward pass."""


def shard(objective: Objective, mesh: DeviceMesh) -> Objective:
    """Share the parameters of an objective out among the processes of a mesh, in place."""
    processes = mesh["data_parallel"]
    for block in objective.model.network.layers:
        fully_shard(block, mesh=processes)
        for name in OUTSIDE_FORWARD:
            register_fsdp_forward_method(block, name)
    fully_shard(objective, mesh=processes, reshard_after_forward=False)
    return objective


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds only a share of its parameters."""
    return any(isinstance(one, DTensor) for one in module.parameters())


@contextmanager
def gathered(objective: Objective) -> Iterator[None]:
    """What stands in no block is whole within, as outside the objective's forward pass it is not.

    All processes enter together, and then do the same.
    """
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a share; all ask for it together."""
    return cast(Tensor, tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor
