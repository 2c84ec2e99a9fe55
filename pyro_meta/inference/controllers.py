"""What is moved from step to step so that a target is met: the price of cost, the price of a gate.

A controller stands beside the prior or the guide whose number it moves, and is told of each step.
Its own state is in buffers, which a checkpoint keeps.

Shapes: L layers, B sequences, T tokens, K mechanisms.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pyro_meta.distributions import GateExecution
from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide
from pyro_meta.inference.dual_ascent import DualController
from pyro_meta.inference.schedules import Tightening
from pyro_meta.models import ComputePotential

Figures = dict[str, float]

MOST_RATE = 1000.0  # nats per unit of cost
SETTLED_GAIN = 0.2  # nats by which the surcharge moves in a step, per unit of excess
MOST_SURCHARGE = 20.0
STRIDE, LONGEST_STRIDE = 0.5, 6.0  # share of a Newton step, and most nats of it
LEAST_SLOPE = 0.02  # units of cost per nat of price: below, routes hardly answer
WARM = 1e-5  # under a smaller KL weight no prior can move anything
GATE_GAIN = 0.5  # nats by which a gate's price moves in a step, per unit of the share that is off
MOST_GATE_PRICE = 20.0


@dataclass(frozen=True)
class Step:
    """What a controller is told after a step of the optimiser."""

    choices: Tensor
    """What would run if everything were hard, [L, B, T, K] or [L, B, T, G, K] of groups: one-hot
    (weights of a mixture), and zeros where a token skips the layer."""
    means: Tensor
    """Posterior means of the routes, weights of the same shape."""
    progress: float
    """The share of training that is done, in [0, 1]."""
    temperature: float
    """w in that step: what a nat of the prior counts in the loss."""
    has_begun: bool
    """Whether the guide has begun to learn."""
    has_settled: bool
    """Whether the guide has stopped for good."""
    average: Callable[[Figures], Figures]
    """Means of figures over all processes."""


class Controller(nn.Module):
    """Moves one number towards a target; subclass it and define `step`."""

    @property
    def surcharge(self) -> float:
        """What is added to the price that routes are decided at, the same unit."""
        return 0.0

    def step(self, seen: Step) -> Figures:
        """Take note of a step, move the number, and tell what was seen, for the log."""
        raise NotImplementedError

    def require_reachable(self) -> None:
        """Raise `UsageError` if the target cannot be met; asked once all that was saved is read."""

    def figures(self) -> Figures:
        """Where the controller stands, for the log and the summary."""
        return {}


class BudgetController(Controller):
    """Meets a compute budget with hard routes, by the price lambda of compute.

    After every step it sees how far the realised cost of the batch is off: of what would run for a
    token once it is hard, averaged over layers and tokens. What it moves depends on the guide:

    * one that learns the price: a `DualController` sets what a unit of cost is charged in the loss,
      w lambda nats. Once it has stopped, no price in the loss moves it: then a surcharge on the
      price that routes are decided at is moved instead, which they follow at once;
    * one that follows the price at once: lambda moves by half a Newton step, since the slope of the
      expected cost is known, d E[c] / d lambda = - Var[c].

    The prior beside it may be any.

    Parameters
    ----------
    compute
        Whose `rate` is moved, and in whose unit of cost the budget is.
    budget
        Mean cost of a token and layer, where full attention is 1.
    tighten
        How it falls to that in training; by default it holds from the start.
    is_followed
        Whether the guide follows the price.
    """

    settled_price: Tensor

    def __init__(
        self,
        compute: ComputePotential,
        budget: float,
        tighten: Tightening = Tightening(),
        is_followed: bool = False,
    ) -> None:
        super().__init__()
        self._compute = (compute,)  # in a tuple: known, but no submodule
        self.budget = budget
        self.tighten, self.is_followed = tighten, is_followed
        self.start = float(compute.rate)
        self.dual = DualController()
        self.register_buffer("settled_price", torch.zeros((), dtype=torch.float64))
        # Measured costs may be this machine's, until a checkpoint is read.
        if compute.costs.spec != "measured":
            self.require_reachable()

    @property
    def compute(self) -> ComputePotential:
        return self._compute[0]

    @property
    def surcharge(self) -> float:
        return float(self.settled_price)

    @property
    def reachable(self) -> tuple[float, float]:
        """Cost where every token takes the cheapest mechanism, and where it takes the dearest."""
        costs = self.compute.costs(torch.arange(self.compute.costs.network.shape.context))
        return float(costs.amin(-1).mean()), float(costs.amax(-1).mean())

    def require_reachable(self) -> None:
        least, most = self.reachable
        if not least * (1 - 1e-6) <= self.budget <= most * (1 + 1e-6):
            raise UsageError(
                f"budget: {self.budget} given; between {least:.4g} (every token takes the cheapest "
                f"mechanism) and {most:.4g} (the dearest) is allowed in the unit "
                f"{self.compute.costs.spec}"
            )

    def step(self, seen: Step) -> Figures:
        T = seen.choices.shape[2]
        if self.compute.costs.network.shape.context > T:
            return {}  # sequences that are short at first cost less, whatever their routes
        costs = self.compute.costs(torch.arange(T, device=seen.choices.device))  # [T, K]
        if seen.choices.dim() == 5:
            costs = costs[:, None]  # each group's share of a layer counts as much
        cost = float((seen.choices * costs).sum(-1).mean())
        expected = (seen.means * costs).sum(-1, keepdim=True)
        variance = float((seen.means * (costs - expected).square()).sum(-1).mean())
        found = seen.average({"cost_budgeted": cost, "variance": variance})
        figures = {"cost_budgeted": found["cost_budgeted"]}
        allowed = self.tighten(self.budget, seen.progress, self.reachable[1])
        excess = found["cost_budgeted"] - allowed
        if self.is_followed:
            slope = found["variance"] / self.compute.costs.network.shape.groups
            stride = STRIDE * excess / max(slope, LEAST_SLOPE)
            self.compute.rate.add_(min(max(stride, -LONGEST_STRIDE), LONGEST_STRIDE))
            self.compute.rate.clamp_(-MOST_RATE, MOST_RATE)
            return figures
        if seen.temperature < WARM:
            return figures
        if seen.has_settled:
            self.settled_price.add_(SETTLED_GAIN * excess)
            self.settled_price.clamp_(-MOST_SURCHARGE, MOST_SURCHARGE)
        else:
            unit = seen.temperature
            moved = self.dual.step(excess, MOST_RATE * unit) / unit
            self.compute.rate.fill_(self.start + moved)
        return figures

    def figures(self) -> Figures:
        return {"lambda": float(self.compute.rate), "surcharge": self.surcharge}


class GateController(Controller):
    """Meets a share of token-layer pairs to skip, by the price of running a block.

    Parameters
    ----------
    execution
        Of the gates: its price is moved.
    layers
        L.
    target
        Share of all pairs of token and layer to skip; None: the price stays, and the share is told.

    Raises
    ------
    UsageError
        The target cannot be met.
    """

    def __init__(self, execution: GateExecution, layers: int, target: float | None = None) -> None:
        super().__init__()
        most = 1 - 1 / layers
        if target is not None and not 0 < target < most:
            raise UsageError(
                f"gate.skip: {target} given; above 0 and below {most:.4g} is allowed, since every "
                f"token runs the first of {layers} layers"
            )
        self._execution = (execution,)  # in a tuple: known, but no submodule
        self.target = target

    def step(self, seen: Step) -> Figures:
        shut = float((seen.choices.sum(-1) == 0).float().mean())
        figures = seen.average({"gate_shut": shut})
        price = self._execution[0].price
        if self.target is not None and seen.has_begun:
            price.add_(GATE_GAIN * (self.target - figures["gate_shut"]))
            price.clamp_(-MOST_GATE_PRICE, MOST_GATE_PRICE)
        return figures | {"gate_price": float(price)}


class Controllers(nn.ModuleList):
    """All controllers of a run, as one."""

    def __iter__(self) -> Iterator[Controller]:
        return (cast(Controller, one) for one in super().__iter__())

    @property
    def surcharge(self) -> float:
        return sum(one.surcharge for one in self)

    def step(self, seen: Step) -> Figures:
        return {name: value for one in self for name, value in one.step(seen).items()}

    def require_reachable(self) -> None:
        for one in self:
            one.require_reachable()

    def figures(self) -> Figures:
        return {name: value for one in self for name, value in one.figures().items()}


def budget_controller(
    guide: Guide, budget: float | None, tighten: Tightening = Tightening()
) -> BudgetController | None:
    """The controller of `--budget` for a guide and its model, if there is one to meet.

    Raises
    ------
    UsageError
        A budget is given to a guide that learns nothing, or it cannot be met.
    """
    if budget is None:
        return None
    compute = guide.model.compute
    if compute is None or not any(one.requires_grad for one in guide.parameters()):
        raise UsageError(
            f"budget: {budget} given, and {type(guide).__name__} learns nothing that a price could "
            "move; a guide that learns, such as DirichletGuide, can meet one"
        )
    return BudgetController(compute, budget, tighten, guide.follows)
