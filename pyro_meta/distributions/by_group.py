"""One distribution for all groups of heads, in a batch that has a dimension of groups."""

from collections.abc import Callable
from functools import singledispatch

from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.distributions.gates import PointGate
from pyro_meta.distributions.softmax import Concrete
from pyro_meta.errors import UsageError


@singledispatch
def for_each_group(dist: Distribution) -> Distribution:
    """`dist` of batch [..] as one of batch [.., 1], which expands to any number of groups.

    Raises
    ------
    UsageError
        It is not made of its parameters alone.
    """
    kind: Callable[..., Distribution] = type(dist)
    constraints = {  # a categorical names its parameter twice
        name: constraint
        for name, constraint in dist.arg_constraints.items()
        if not (name == "probs" and "logits" in dist.arg_constraints)
    }
    try:
        parameters: dict[str, Tensor] = {
            name: getattr(dist, name).unsqueeze(-1 - constraint.event_dim)
            for name, constraint in constraints.items()
        }
        return kind(**parameters, validate_args=False)
    except (AttributeError, TypeError) as error:
        raise UsageError(
            f"groups: {type(dist).__name__} speaks for all groups of heads alike, and cannot be "
            "made of its parameters; one of batch [.., groups] is needed"
        ) from error


@for_each_group.register
def _(dist: Concrete) -> Distribution:
    return Concrete(dist.temperature, dist.logits[..., None, :])


@for_each_group.register
def _(dist: PointGate) -> Distribution:
    return PointGate(dist.weights[..., None], validate_args=False)
