"""What is reckoned from a few tensors, and kept until one of them moves."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class UntilMoved:
    """Keeps values by key. None is kept while gradients are wanted, or a graph is compiled."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[list[tuple[int, int]], Tensor]] = {}

    def __call__(self, key: int, moved: Sequence[Tensor], reckon: Callable[[], Tensor]) -> Tensor:
        """The value of `key`, reckoned anew if a tensor was written to or replaced since.

        What is written through `.data` is not seen.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return reckon()
        if any(x.is_inference() for x in moved):  # of which nobody knows whether they have moved
            return reckon()
        state = [(x._version, x.data_ptr()) for x in moved]
        kept = self._kept.get(key)
        if kept is None or kept[0] != state:
            kept = self._kept[key] = state, reckon()
        return kept[1]
