"""A prior that meets a compute budget: its price of cost is moved while training runs."""

import torch
from pyro.distributions import Dirichlet
from torch import Tensor

from pyro_meta.errors import UsageError
from pyro_meta.models.dual import DualController
from pyro_meta.models.priors import Prior, by_cost, require_positive
from pyro_meta.network.costs import Costs
from pyro_meta.network.transformer import Transformer

TURN = 3.0  # from this |lambda| on the strength grows with it
CHARGE = 5.0  # nats of KL per unit of cost and of lambda, about, for a decided token
MOST_RATE = 200.0
SETTLED_GAIN = 0.2  # nats by which the surcharge moves in a step, per unit of excess
MOST_SURCHARGE = 20.0
WARM = 1e-5  # under a smaller KL weight no prior can move anything


class BudgetDirichlet(Prior):
    """alpha ~ Dirichlet(s max(1, |lambda| / 3) softmax(-lambda c) + floor), lambda under control.

    A `CostDirichlet` whose strength grows where its mean has little left to say: what it charges a
    decided token for cost does not saturate. lambda is negative where routes would else be cheaper
    than the budget.

    After every step of the optimiser a `DualController` sets the price of cost in the loss, about
    5 w lambda nats per unit (w being the weight of the KL), by how far the realised cost of the
    batch is off: of what would run for a token once it is hard, averaged over layers and tokens.
    Once the guide has stopped, no price in the loss moves it: then the price that routes are
    decided at is moved instead, which they follow at once.

    Parameters
    ----------
    network
        The transformer whose routes are drawn.
    budget
        Cost to meet in the unit `cost`; `--budget` sets it.
    strength
        s, how many pseudo-draws the prior is worth up to |lambda| = 3.
    floor
        Least concentration of any mechanism.
    cost
        Unit of cost, see `CostDirichlet`.
    """

    learns_from_kl = True
    rate: Tensor
    settled_price: Tensor

    def __init__(
        self,
        network: Transformer,
        budget: float | None = None,
        strength: float = 1.0,
        floor: float = 0.05,
        cost: str | list[float] = "macs",
    ) -> None:
        super().__init__(network)
        require_positive(strength=strength, floor=floor)
        self.strength, self.floor = strength, floor
        self.costs = Costs(network, cost)
        self.register_buffer("rate", torch.zeros(()))  # lambda
        self.register_buffer("settled_price", torch.zeros((), dtype=torch.float64))  # the surcharge
        self.controller = DualController()
        self.budget: float | None = None
        if budget is not None:
            self.aim_at(budget)

    def aim_at(self, budget: float | None) -> None:
        if budget is None and self.budget is None:
            raise UsageError("budget: none given; BudgetDirichlet needs one, as in --budget 0.25")
        self.budget = self.budget if budget is None else budget
        if self.costs.spec != "measured":  # those may be this machine's, until a checkpoint is read
            self.check()

    def check(self) -> None:
        assert self.budget is not None
        costs = self.costs(torch.arange(self.network.shape.context))
        least, most = (float(end.mean()) for end in (costs.amin(-1), costs.amax(-1)))
        if not least * (1 - 1e-6) <= self.budget <= most * (1 + 1e-6):
            raise UsageError(
                f"budget: {self.budget} given; between {least:.4g} (every token takes the cheapest "
                f"mechanism) and {most:.4g} (the dearest) is allowed in the unit {self.costs.spec}"
            )

    def forward(self, layer: int, positions: Tensor) -> Dirichlet:
        strength = self.strength * (self.rate.abs() / TURN).clamp(min=1.0)
        return by_cost(self.costs(positions), self.rate, strength, self.floor)

    def measure(self, choices: Tensor) -> dict[str, float]:
        if choices.shape[2] < self.network.shape.context:
            return {}  # sequences that are short at first cost less, whatever their routes
        costs = self.costs(torch.arange(choices.shape[2], device=choices.device))
        return {"cost_budgeted": float((choices * costs).sum(-1).mean())}

    def adapt(self, figures: dict[str, float], kl_weight: float, has_settled: bool) -> None:
        if kl_weight < WARM or "cost_budgeted" not in figures:
            return
        assert self.budget is not None
        excess = figures["cost_budgeted"] - self.budget
        if has_settled:
            self.settled_price.add_(SETTLED_GAIN * excess).clamp_(-MOST_SURCHARGE, MOST_SURCHARGE)
        else:
            unit = CHARGE * kl_weight
            self.rate.fill_(self.controller.step(excess, MOST_RATE * unit) / unit)

    def surcharge(self) -> float:
        return float(self.settled_price)

    def figures(self) -> dict[str, float]:
        return {"lambda": float(self.rate), "surcharge": self.surcharge()}
