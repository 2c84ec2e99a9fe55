"""When training runs hard routes as such, in place of the mixture that has their value.

While a guide learns, the gradient of a route needs what the other mechanisms would have said. Once
the guide rests it drops that gradient, and once every token is hard all but one weight is 0: to run
the one mechanism that a token chose then gives the same loss, and the same gradients.

Two kinds go on mixing, since processes in parallel need a gradient of every parameter, if only a
zero: a guide that pays no KL, whose parameters a route alone moves, and mechanisms that learn
something of their own (`chunk_learned`), which nobody may have chosen. So do depth gates: parts of
a layer that nobody runs would have none.
"""

from typing import Any

from pyro_meta.models.language_model import LanguageModel


def runs_choices(model: LanguageModel, guide: Any) -> bool:
    """Whether the routes of `guide`, which rests, are settled: every token is hard from now on.

    They may still drift, with the features that the guide reads; each step runs what it decides.
    """
    if not model.execution.is_hard_everywhere:
        return False
    moved_by_routes = [] if guide.pays_kl else [*guide.parameters(), *model.prior.parameters()]
    learning = [one for part in model.network.mechanisms for one in part.parameters()]
    return not moved_by_routes and not learning
