"""How much of routed attention is bookkeeping: sorting, gathering, masks, putting back.

Every arithmetic operation of one routed call is recorded with its inputs as it happens - attention
kernels, products of matrices, and what is computed of queries, keys and values element by element -
and then replayed: the same arithmetic, already gathered and masked. What the routed call takes
longer is bookkeeping. It errs on the high side: padding, joining and Python's own time count as
bookkeeping, and the replay finds its inputs and no interpreter in its way.

Recorded are operations that return a new floating-point tensor. Masks and tables are made in place
or of integers, so that they are told apart by the operation itself. A test asserts it. On CUDA the
profiler tells kernels apart instead. `targets.py` writes it down.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from pyro_meta.attention import routed_attention
from pyro_meta.attention.clock import medians
from pyro_meta.attention.ops import flex
from pyro_meta.speed.scene import MIX, Attention, Scene

ARITHMETIC: dict[Any, Any] = {
    F.scaled_dot_product_attention: F.scaled_dot_product_attention,
    Tensor.matmul: torch.matmul,
    Tensor.__matmul__: torch.matmul,
    F.relu: F.relu,
    Tensor.clamp: torch.clamp,
    Tensor.exp_: torch.exp,  # in place: replayed into a new tensor, so that it can be repeated
    Tensor.add: torch.add,
    Tensor.__add__: torch.add,
    Tensor.mul: torch.mul,
    Tensor.__mul__: torch.mul,
    Tensor.div: torch.div,
    Tensor.__truediv__: torch.div,
    Tensor.sum: torch.sum,
    Tensor.tril: torch.tril,
}
"""Recorded function -> what is replayed."""
KERNELS = (
    "softmax_program",
    "states_program",
    "linear_program",
    "tensor_kernel_scan",
    "flex_attention",
)
"""In the names of the kernels that are attention on CUDA; the scan sums states."""
Recorded = list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]


class _Recorder(TorchFunctionMode):
    def __init__(self, calls: Recorded) -> None:
        self.calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        again = ARITHMETIC.get(func)
        if again is not None and args[0].is_floating_point():
            kept = (args[0].clone(), *args[1:]) if again is torch.exp else args
            self.calls.append((again, kept, kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded_arithmetic() -> Iterator[Recorded]:
    """The arithmetic of what runs meanwhile, on either way of executing hard routes."""
    calls: Recorded = []
    recorder = _Recorder(calls)
    original = flex._compiled

    def recording(function: Any, device_type: str) -> Any:
        kernel = original(function, device_type)
        if function is not flex_attention:
            return kernel

        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append((kernel, args, kwargs))
            recorder.__exit__(None, None, None)  # the compiler wants no mode about it
            try:
                return kernel(*args, **kwargs)
            finally:
                recorder.__enter__()

        return run

    flex._compiled = recording  # type: ignore[assignment]
    try:
        with recorder:
            yield calls
    finally:
        flex._compiled = original


def bookkeeping(scene: Scene, length: int, share: float = MIX) -> dict[str, Any]:
    """The share of routed attention's time that is not arithmetic, at one length."""
    attention = Attention.of(scene, length)
    choice = scene.choices(share, length)[0]

    def run() -> None:
        with torch.no_grad():
            routed_attention(attention.mechanisms, attention.gain, choice, attention.inputs)

    run()  # compiled, where there is something to compile
    common = {"length": length, "share_of_full": share}
    if scene.device == "cuda":
        return common | _by_kernel(run)
    with recorded_arithmetic() as calls:
        run()

    def replay() -> None:
        with torch.no_grad():
            for function, args, kwargs in calls:
                function(*args, **kwargs)

    repeats = 2 * scene.repeats  # a small difference of two large times
    times = medians(scene.time({"routed": run, "arithmetic": replay}, repeats))
    return common | {
        "routed_seconds": times["routed"],
        "arithmetic_seconds": times["arithmetic"],
        "share_of_time": max(0.0, 1 - times["arithmetic"] / times["routed"]),
        "how": "1 - replay of the recorded arithmetic / routed attention; an upper bound",
    }


def _by_kernel(run: Callable[[], None], repeats: int = 5) -> dict[str, Any]:
    """On CUDA the device's own record tells attention from the rest."""
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    seconds = {
        event.key: event.self_device_time_total / repeats / 1e6 for event in record.key_averages()
    }
    whole = sum(seconds.values())
    attention = sum(s for name, s in seconds.items() if any(one in name for one in KERNELS))
    return {
        "routed_seconds": whole,
        "arithmetic_seconds": attention,
        "share_of_time": 1 - attention / whole,
        "how": "1 - time in kernels of attention / in all kernels, by the device's profiler",
    }
