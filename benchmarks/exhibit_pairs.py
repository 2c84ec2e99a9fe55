"""Which priors and guides may train together: asked of the code, pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyro_meta import guides, models
from pyro_meta.errors import UsageError
from pyro_meta.guides import Guide, PriorGuide
from pyro_meta.models import LanguageModel, LoadPrior, Prior
from pyro_meta.study.plan import settle_layers
from pyro_meta.training.options import Options

PRIORS = [
    one
    for one in map(vars(models).get, models.__all__)
    if isinstance(one, type) and issubclass(one, Prior) and one not in (Prior, LoadPrior)
]
GUIDES = [
    one
    for one in map(vars(guides).get, guides.__all__)
    if isinstance(one, type) and issubclass(one, Guide) and one is not Guide
]


@dataclass(frozen=True)
class Pair:
    """A prior and a guide that may train together."""

    prior: str
    guide: str

    @property
    def name(self) -> str:
        return f"{self.prior} {self.guide}"

    @property
    def options(self) -> Options:
        return {"prior": self.prior, "guide": self.guide}


@dataclass(frozen=True)
class Refused:
    """A prior and a guide that do not fit each other."""

    prior: str
    guide: str
    why: str


@dataclass(frozen=True)
class Pairs:
    """What there is to train, and what there is not."""

    trained: list[Pair]
    refused: list[Refused]
    same: dict[str, str]
    """Names of pairs in which the prior plays no part, and of the pair that is trained for each."""


def find_pairs(base: Sequence[Options]) -> Pairs:
    """Build every pair once over the options of `base`.

    A guide whose KL is always 0 trains alike beside every prior that charges nothing: it is trained
    once.
    """
    found, first = Pairs([], [], {}), dict[str, Pair]()
    for prior in PRIORS:
        for guide in GUIDES:
            pair = Pair(prior.__name__, guide.__name__)
            try:
                model, built = settle_layers([*base, pair.options])[0].build(2)
            except UsageError as error:
                found.refused.append(Refused(pair.prior, pair.guide, str(error)))
                continue
            if _is_without_prior(model, built):
                known = first.setdefault(pair.guide, pair)
                if known is not pair:
                    found.same[pair.name] = known.name
                    continue
            found.trained.append(pair)
    return found


def _is_without_prior(model: LanguageModel, guide: Guide) -> bool:
    """Whether the prior moves neither the guide nor what it says."""
    learns = any(one.requires_grad for one in guide.parameters())
    is_charged = learns and model.compute is not None
    return not guide.pays_kl and not is_charged and not isinstance(guide, PriorGuide)
