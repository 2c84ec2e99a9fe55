"""A handful of tokens at the end of a text, few enough for exact answers.

The routes of all tokens before them stay as deployed. Then the tempered posterior

    p_w(alpha | x, y)  proportional to  p(alpha) p(y | alpha)^(1/w)

has few dimensions, and what the guide says can stand beside what is so. Where routes are hard, the
likelihood depends on which mechanism each token chose and on nothing else, so that posterior and
evidence are finite sums over choices:

    p_w(c | x, y)  proportional to  P(decide(alpha) = c) p(y | c)^(1/w),   alpha | c from the prior.

Shapes: S draws, L layers, n tokens, K mechanisms, P = K^(L n) patterns of choices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Dirichlet, Distribution

from pyro_meta.distributions.simplex import is_hard, straight_through, uncertainty
from pyro_meta.guides import Guide
from pyro_meta.network.route import Decision, Features, as_weights
from pyro_meta.posterior.drawing import draw_and_weigh, executed, gated, has_density

ROWS_AT_ONCE = 256
MOST_PATTERNS = 10_000
PRIOR_DRAWS = 50_000
"""Draws of the prior, from which P(decide(alpha) = c) and the moments given c are taken."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the routes, [L, n, K] each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> "Moments":
        """From draws [S, L, n, K]."""
        return cls(draws.double().mean(0), draws.double().std(0))


@dataclass(frozen=True)
class Exact:
    """The posterior by enumeration."""

    moments: Moments
    log_evidence: float
    """log sum_c P(c) p(y | c)^(1/w), nats."""
    patterns: int


class Handful:
    """The last `count` tokens of one text.

    Parameters
    ----------
    guide
        Gives the deployed routes of the tokens before, and which of the last run hard.
    tokens, targets
        The text, [T]; only the targets of the last tokens count.
    count
        n.
    kl_weight
        w.
    """

    def __init__(
        self, guide: Guide, tokens: Tensor, targets: Tensor, count: int, kl_weight: float
    ) -> None:
        self.guide, self.model = guide, guide.model
        self.tokens, self.targets = tokens, targets[-count:]
        self.count, self.kl_weight = count, kl_weight
        self.deployed: list[Tensor] = []  # by layer, [T, K]
        self.priors: list[Distribution] = []  # by layer, batch [n]
        hard: list[Tensor] = []
        means: list[Tensor] = []
        self.has_density = True

        def route(layer: int, features: Features) -> Tensor | Decision:
            law = guide.posterior(layer, features)
            chosen = guide.follow_route(law)
            K = law.event_shape[-1]
            self.deployed.append(as_weights(chosen, K).expand(*features.tokens.shape, K)[0])
            self.has_density = has_density(law)
            means.append(law.mean[0, -count:])
            hard.append(is_hard(uncertainty(law), guide.hard_below)[0, -count:])
            prior = self.model.prior(layer, features.positions[-count:])
            self.priors.append(prior.expand(torch.Size([count])))
            return gated(chosen, guide.gate(layer, features))

        with torch.no_grad():
            self.model.network(tokens[None], route)
        self.is_hard = torch.stack(hard)  # [L, n]
        self.means = torch.stack(means)  # [L, n, K]

    @property
    def shape(self) -> tuple[int, int, int]:
        """L, n, K."""
        return len(self.priors), self.count, len(self.model.network.mechanisms)

    @property
    def all_hard(self) -> bool:
        return bool(self.is_hard.all())

    def log_likelihood(self, routes: Tensor) -> Tensor:
        """log p(y | alpha) [S] of the last tokens for routes [S, L, n, K], as they are executed."""
        rounded = straight_through(routes, self.guide.decide(routes))
        run = torch.where(self.is_hard[..., None], rounded, routes)
        return torch.cat([self._likelihood(part) for part in run.split(ROWS_AT_ONCE)])

    def _likelihood(self, routes: Tensor) -> Tensor:
        S = len(routes)

        def route(layer: int, features: Features) -> Tensor | Decision:
            past = self.deployed[layer][: -self.count].to(features.state)
            newest = routes[:, layer].to(features.state.dtype)
            route = torch.cat([past.expand(S, -1, -1), newest], 1)
            return gated(route, self.guide.gate(layer, features))

        logits = self.model.network(self.tokens.expand(S, -1), route)[:, -self.count :]
        return self._of_targets(logits)

    def _of_targets(self, logits: Tensor) -> Tensor:
        """log p(y) [S] of logits [S, n, V]."""
        log_p = logits.double().log_softmax(-1)
        return log_p.gather(-1, self.targets.expand(len(logits), -1)[..., None])[..., 0].sum(1)

    def log_prior(self, routes: Tensor) -> Tensor:
        """log p(alpha) [S] of routes [S, L, n, K]."""
        layers = [
            in_double(prior).log_prob(routes[:, layer]) for layer, prior in enumerate(self.priors)
        ]
        return torch.stack(layers, 1).sum((1, 2))

    def draw_guide(self, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Routes [S, L, n, K] of the guide, their log p - log q [S], and log p(y | alpha) [S]."""
        parts = [self._drawn(len(span)) for span in torch.arange(draws).split(ROWS_AT_ONCE)]
        routes, ratio, likelihood = (torch.cat(part) for part in zip(*parts, strict=True))
        return routes, ratio, likelihood

    def _drawn(self, S: int) -> tuple[Tensor, Tensor, Tensor]:
        drawn: list[Tensor] = []
        ratio = torch.zeros(S, dtype=torch.float64, device=self.tokens.device)

        def route(layer: int, features: Features) -> Tensor | Decision:
            law = self.guide.posterior(layer, features)
            draw, log_ratio = draw_and_weigh(law, self.model.prior(layer, features.positions))
            drawn.append(draw[:, -self.count :].double())
            ratio.add_(log_ratio[:, -self.count :].sum(1))
            run = as_weights(executed(self.guide, law, draw), draw.shape[-1])
            past = self.deployed[layer][: -self.count].to(features.state)
            route = torch.cat([past.expand(S, -1, -1), run[:, -self.count :].to(past)], 1)
            return gated(route, self.guide.gate(layer, features))

        with torch.no_grad():
            logits = self.model.network(self.tokens.expand(S, -1), route)[:, -self.count :]
        return torch.stack(drawn, 1), ratio, self._of_targets(logits)

    def enumerate(self, seed: int = 0) -> Exact | None:
        """The exact posterior; None where routes are soft or there are too many patterns."""
        L, n, K = self.shape
        sites = L * n
        if not self.all_hard or K**sites > MOST_PATTERNS:
            return None
        patterns = torch.cartesian_prod(*[torch.arange(K)] * sites).view(-1, L, n)
        one_hot = torch.nn.functional.one_hot(patterns, K).double().to(self.tokens.device)
        with torch.no_grad():
            likelihood = self.log_likelihood(one_hot).cpu()  # [P]
        share, first, second = self._given_choice(seed)
        at = torch.arange(L)[:, None], torch.arange(n)[None], patterns
        log_weight = share.log()[at].sum((1, 2)) + likelihood / self.kl_weight
        weight = log_weight.softmax(0)[:, None, None, None]  # [P, 1, 1, 1]
        mean = (weight * first[at]).sum(0)
        square = (weight * second[at]).sum(0)
        deviation = (square - mean**2).clamp(min=0).sqrt()
        return Exact(Moments(mean, deviation), float(log_weight.logsumexp(0)), len(patterns))

    def _given_choice(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """P(decide(alpha) = c) [L, n, K], and E[alpha], E[alpha^2] given c, [L, n, K (c), K]."""
        L, n, K = self.shape
        torch.manual_seed(seed)
        share, first, second = (
            torch.zeros(shape, dtype=torch.float64) for shape in ((L, n, K), *[(L, n, K, K)] * 2)
        )
        for layer, prior in enumerate(self.priors):
            draws = in_double(prior).sample(torch.Size([PRIOR_DRAWS])).cpu()  # [S, n, K]
            choice = self.guide.decide(draws.to(self.tokens.device)).cpu()
            for c in range(K):
                chosen = (choice == c).double()[..., None]  # [S, n, 1]
                count = chosen.sum(0).clamp(min=1e-300)
                share[layer, :, c] = chosen.mean(0)[:, 0]
                first[layer, :, c] = (chosen * draws).sum(0) / count
                second[layer, :, c] = (chosen * draws**2).sum(0) / count
        return share, first, second


def in_double(law: Distribution) -> Distribution:
    """A Dirichlet in float64; another law as it is."""
    return Dirichlet(law.concentration.double()) if isinstance(law, Dirichlet) else law
