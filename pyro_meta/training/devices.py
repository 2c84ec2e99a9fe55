"""The devices and processes of a run: Fabric, and who started us."""

import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn

from pyro_meta.errors import UsageError
from pyro_meta.terminal.launchers import PARENT, Place, place
from pyro_meta.training.config import Config
from pyro_meta.training.sharding import shard

ENVIRONMENTS = {
    "torchrun": TorchElasticEnvironment,
    "srun": SLURMEnvironment,
    "pyro-meta": LightningEnvironment,
    "python": LightningEnvironment,
}
"""What Fabric is told of who started us; by itself it takes a batch job's traces for a launcher."""


def make_fabric(config: Config, begun: int | None = None) -> Fabric:
    """The devices that `config` asks for; under torchrun, those that it was given.

    `begun` is in how many micro-batches a run read its batches that is gone on with.

    Raises
    ------
    UsageError
        There is no such device here, what started us has started another number of processes, or
        the batch cannot be shared out evenly.
    """
    here = place()
    devices, nodes = _shared_out(config.devices, here)
    processes = devices * nodes
    parts = micro_batches(config, processes, begun)
    if config.batch % parts:
        raise UsageError(
            f"batch: {config.batch} given; it must be divisible by devices x accumulate = {parts}"
        )
    accelerator: str = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cuda" else "32-true"
    strategy: str | Strategy = "auto"
    if processes > 1:
        strategy = (
            ModelParallelStrategy(shard, processes, 1) if config.strategy == "fsdp" else "ddp"
        )
    try:
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=precision,
            strategy=strategy,
            plugins=[ENVIRONMENTS[here.launcher]()],
        )
    except Exception as error:  # Fabric raises several kinds, by accelerator
        raise UsageError(
            f"option --accelerator, --devices: {config.accelerator}, {devices} given; {error}"
        ) from error


def micro_batches(config: Config, processes: int, begun: int | None = None) -> int:
    """Parts of a batch over all processes, each of which has draws of its own.

    They stay as many as a run `begun` with, so that its draws are the same, wherever they can be
    shared out among the processes.
    """
    if begun is not None and begun % processes == 0:
        return begun
    return processes * config.accumulate


def shares_model(fabric: Fabric) -> bool:
    """Whether each process holds a share of the model, and not all of it."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def has_room(device: torch.device, module: nn.Module) -> bool:
    """Whether a device has room for a module, and as much again to run it."""
    if device.type != "cuda":
        return True
    size = sum(one.numel() * one.element_size() for one in module.parameters())
    return bool(torch.cuda.mem_get_info(device)[0] > 2 * size)


def launch(fabric: Fabric) -> None:
    """Start the other processes, or join them.

    Raises
    ------
    UsageError
        Fabric and the environment disagree on which process this is.
    """
    here = place()
    if here.launcher == "python" and fabric.world_size > 1:
        os.environ[PARENT] = str(os.getpid())  # the processes that Fabric starts know us by it
    try:
        fabric.launch()
    finally:
        if here.launcher == "python":
            os.environ.pop(PARENT, None)
    if fabric.global_rank != here.rank:
        raise UsageError(
            f"environment: {here.launcher} says that this is process {here.rank}, and Fabric that "
            f"it is {fabric.global_rank}"
        )


def _shared_out(devices: int, here: Place) -> tuple[int, int]:
    """Devices on each node, and nodes; says to Fabric what it needs to know of Slurm."""
    if here.launcher == "torchrun":
        assert here.world is not None
        return max(1, here.world // here.nodes), here.nodes
    if here.launcher == "srun":
        if here.world != devices * here.nodes:
            raise UsageError(
                f"option --devices: {devices} given, and Slurm has {here.world} tasks on "
                f"{here.nodes} node{'s' * (here.nodes > 1)}; a device for each of them is allowed: "
                f"--devices {max(1, (here.world or 1) // here.nodes)}"
            )
        local = {"SLURM_NTASKS_PER_NODE": devices, "SLURM_LOCALID": here.rank % devices,
                 "SLURM_NODEID": here.rank // devices}  # fmt: skip
        for name, value in local.items():
            os.environ.setdefault(name, str(value))
    if here.launcher == "python" and devices > 1:
        for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
            if name in os.environ:
                raise UsageError(
                    f"environment: {name} is {os.environ[name]!r}, and no launcher has started "
                    f"this process; unset it, or use torchrun instead of --devices {devices}"
                )
    return devices, here.nodes
