"""Whether the future leaks into the predictions of a model, as it was trained."""

from collections.abc import Iterable

from torch import Tensor

from pyro_meta.attention import backend
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import Guide, mean_route
from pyro_meta.models import LanguageModel


def prefix_gap(model: LanguageModel, guide: Guide, tokens: Tensor, ends: Iterable[int]) -> float:
    """Largest change of a log-probability when the text after a token is cut off, in nats.

    Compares the predictions for tokens [B, T], read as a whole, with those read as prefixes that
    end at each of `ends`, along soft and along hard routes; the latter as they are deployed, and
    with every mechanism on its own tokens even where running it on all is faster. Anything but
    rounding means that the future leaks.
    """
    gap = 0.0
    with evaluating(model, guide):
        for hard, way in ((False, "auto"), (True, "auto"), (True, "gather")):
            route = mean_route(guide, hard)
            with backend(way):
                whole = model.network(tokens, route).float().log_softmax(-1)
                for end in ends:
                    cut = model.network(tokens[:, :end], route).float().log_softmax(-1)
                    gap = max(gap, float((cut - whole[:, :end]).abs().max()))
    return gap
