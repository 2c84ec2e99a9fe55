"""Whether hard routes cost what was asked for, and what brings them nearer if not."""

from collections.abc import Mapping
from typing import Any

import torch

from pyro_meta.inference.controllers import BudgetController

TOLERANCE = 0.03
"""How far the cost may be off, where full attention of every token is 1."""
UNITS = {
    "macs": "MACs of attention",
    "nominal": "nominal cost",
    "measured": "time of attention",
}
"""What a cost is, by its unit; a list of numbers is a cost of its own."""


def budget_figures(
    controller: BudgetController, figures: Mapping[str, Any], is_frozen: bool = False
) -> dict[str, Any]:
    """The section `budget` of summary.json.

    Parameters
    ----------
    controller
        What was to meet the budget.
    figures
        Of `evaluate`, on held-out text.
    is_frozen
        Whether the network is a pretrained one that stays as it is.

    Returns
    -------
    dict
        `asked` and `reached`, costs of hard routes where full attention is 1; `of`, what is
        counted; `tolerance` and `is_met`.
    """
    spec = controller.compute.costs.spec
    unit = spec if isinstance(spec, str) else ""
    reached = _cost(controller, unit, figures)
    what = UNITS.get(unit, "cost")
    return {
        "asked": controller.budget,
        "reached": reached,
        "of": "key visits" if is_frozen and unit == "macs" else what,
        "tolerance": TOLERANCE,
        "is_met": abs(reached - controller.budget) <= TOLERANCE,
    }


def _cost(controller: BudgetController, unit: str, figures: Mapping[str, Any]) -> float:
    """Mean cost of hard routes over tokens and layers, in the controller's unit."""
    if unit in ("macs", "nominal"):
        return float(figures[f"cost_{unit}_hard"])
    (costs,) = controller.compute.costs(torch.zeros(1, dtype=torch.long)).tolist()  # of any token
    shares = [[*layer.values()] for layer in figures["load_by_layer"]]
    by_layer = [sum(map(float.__mul__, costs, layer)) for layer in shares]
    runs = 1 - figures["depth"]["skipped_hard"] if "depth" in figures else 1.0
    return runs * sum(by_layer) / len(by_layer)


def missed(found: Mapping[str, Any], steps: int, tighten_end: float) -> str | None:
    """The line that says by how much a budget was missed, and what helps; None if it was met.

    Parameters
    ----------
    found
        Of `budget_figures`.
    steps, tighten_end
        Those of the run.
    """
    if found["is_met"]:
        return None
    ways = [f"more --steps than {steps}"]
    if tighten_end > 0 and found["reached"] > found["asked"]:
        ways.append(f"a --tighten.end before {tighten_end:g}")
    if found["of"] == "key visits":
        ways.append(
            f"without training pyro_meta.pretrained.convert(..., budget={found['asked']:g})"
        )
    return (
        f"budget: {found['asked']:g} asked, {found['reached']:.3f} reached ({found['of']} along "
        f"hard routes, full attention = 1), which is more than {found['tolerance']:g} apart; what "
        f"helps: {', or '.join(ways)}"
    )
