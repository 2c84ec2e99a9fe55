"""FSDP2 by block: a process keeps a share of every parameter, and gathers a block where it runs.

What stands in no block (embedding, readout, prior, guide) is gathered together, for a whole step.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from pyro_meta.errors import UsageError
from pyro_meta.inference.elbo import Objective
from pyro_meta.training.together import is_first

FORWARD_FOLLOWS = ("begin", "look")
"""Methods of a block that the network calls before its forward pass, or before `extend`."""


def shard(objective: Objective, mesh: DeviceMesh) -> Objective:
    """Share the parameters of an objective out among the processes of a mesh, in place."""
    # Blocks never write into the stream, so that a view of it (`Block.begin`) is as good.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    processes = mesh["data_parallel"]
    for index, block in enumerate(objective.model.network.layers):
        fully_shard(block, mesh=processes)
        register_fsdp_forward_method(block, "extend")
        for name in FORWARD_FOLLOWS if index == 0 else FORWARD_FOLLOWS[1:]:
            register_fsdp_forward_method(block, name)
            _stay_gathered_after(cast(FSDPModule, block), name)
    fully_shard(objective, mesh=processes, reshard_after_forward=False)
    return objective


def _stay_gathered_after(block: FSDPModule, name: str) -> None:
    """Have a block stay gathered after a method, so that what follows need not gather it again."""
    method = getattr(block, name)

    @wraps(method)
    def staying(*args: Any, **kwargs: Any) -> Any:
        block.set_reshard_after_forward(False, recurse=False)
        try:
            return method(*args, **kwargs)
        finally:
            block.set_reshard_after_forward(True, recurse=False)

    setattr(block, name, staying)


def require_shardable(*modules: nn.Module) -> None:
    """Raise `UsageError` if a parameter cannot be shared out, since it has no dimension."""
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.dim():
                raise UsageError(
                    f"strategy: fsdp given, and {type(module).__name__} has a parameter without "
                    f"dimensions, {name}, which cannot be shared out; one of size [1] is allowed, "
                    "or ddp"
                )


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
    """A tensor of which a process may hold a share; all ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_by_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the memory of the first process; nothing in the others'.

    All call it together, and one tensor after the other is gathered.
    """
    found = {}
    for name, tensor in tensors.items():
        one = whole(tensor)
        if is_first():
            found[name] = one.cpu()
    return found
