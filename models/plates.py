"""The plates that a model and its guide stand in, and what particles make of them.

    sequence   dim -2, of groups -3
    position   dim -1, of groups -2
    group      dim -1, where the layers' heads are routed in several groups

Sites of loads stand in `group` alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pyro
import torch
from pyro.poutine.runtime import get_plates
from torch import Tensor


class Plates:
    """The plates of tokens [B, T] that are routed in G groups of heads.

    Attributes
    ----------
    nesting
        How many there are: what `max_plate_nesting` has to be.
    leading
        Sizes of the vectorised plates that stand outside, such as particles; often none.
    """

    def __init__(self, tokens: Tensor, groups: int) -> None:
        self.nesting = 3 if groups > 1 else 2
        self.leading = _leading(self.nesting)
        B, T = tokens.shape
        self._sequence = pyro.plate("sequence", B, dim=-self.nesting)
        self._position = pyro.plate("position", T, dim=1 - self.nesting)
        self._group = pyro.plate("group", groups, dim=-1) if groups > 1 else nullcontext()

    @contextmanager
    def of_groups(self) -> Iterator[None]:
        """Inside it stands what every group has; alone, the sites of loads."""
        with self._group:
            yield

    @contextmanager
    def of_tokens(self) -> Iterator[None]:
        """Inside it stands what every token has: routes, gates and next tokens."""
        with self._sequence, self._position:
            yield


def _leading(nesting: int) -> torch.Size:
    plates = [plate for plate in get_plates() if plate.vectorized]
    sizes = {plate.dim: plate.size for plate in plates if plate.dim is not None}
    outermost = min(sizes, default=0)
    return torch.Size([sizes.get(dim, 1) for dim in range(outermost, -nesting)])
