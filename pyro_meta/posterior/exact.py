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
from torch.distributions import Distribution

from pyro_meta.distributions.hardening import Place
from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.guides.walk import Latents, Router, place_of
from pyro_meta.models.language_model import Draw
from pyro_meta.network.route import Decision, Features, as_weights
from pyro_meta.posterior.drawing import has_density, in_double, log_ratios, weighed

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
        with torch.no_grad():
            walked = walk(self.model, guide, tokens[None], along_means())
        K = len(self.model.network.mechanisms)
        self.deployed = [  # by layer, [T, K]
            as_weights(one.route, K).expand(1, len(tokens), K)[0] for one in walked.decisions
        ]
        posteriors = [route for route, _ in walked.posteriors]
        self.has_density = all(map(has_density, posteriors))
        self.means = torch.stack([q.mean[0, -count:] for q in posteriors])  # [L, n, K]
        self.gates = torch.stack([gate.mean[0, -count:] for _, gate in walked.posteriors])  # [L, n]
        self.newest = torch.arange(len(tokens), device=tokens.device)[-count:]
        with torch.no_grad():  # the prior may have learned, and learns nothing here
            self.priors = [  # by layer, batch [n]
                self.model.route_dist(layer, self.newest, walked.loads[layer]).expand(
                    torch.Size([count])
                )
                for layer in range(len(posteriors))
            ]

    @property
    def shape(self) -> tuple[int, int, int]:
        """L, n, K."""
        return len(self.priors), self.count, len(self.model.network.mechanisms)

    @property
    def of_choices(self) -> bool:
        """Whether routes are choices, and the posterior is one of patterns of them."""
        return self.model.prior.of_choices

    @property
    def all_hard(self) -> bool:
        """Whether every route runs one mechanism."""
        return self.of_choices or self.model.execution.is_hard_everywhere

    @property
    def prior_logits(self) -> Tensor:
        """Those of a prior of choices, [L, n, K]."""
        return torch.stack([prior.mean.double().log() for prior in self.priors])

    def charge(self, routes: Tensor) -> Tensor:
        """What compute costs routes [S, L, n, K], nats [S]; gates are as deployed."""
        costs = [
            self.model.charge(self.newest, Draw(routes[:, layer], self.gates[layer]))
            for layer in range(routes.shape[1])
        ]
        return torch.stack(costs, 1).sum((1, 2))

    def log_likelihood(self, routes: Tensor) -> Tensor:
        """log p(y | alpha) [S] of the last tokens for routes [S, L, n, K], as they are executed."""
        execution = self.model.execution
        layers = [
            execution(one, Place(layer, self.newest)) for layer, one in enumerate(routes.unbind(1))
        ]
        run = torch.stack(layers, 1)
        return torch.cat([self._likelihood(part) for part in run.split(ROWS_AT_ONCE)])

    def _likelihood(self, routes: Tensor) -> Tensor:
        S = len(routes)

        def route(layer: int, features: Features) -> Decision:
            newest = routes[:, layer].to(features.state.dtype)
            gate = self.guide.latents(layer, features).gate
            if layer not in self.model.gated:
                return Decision(self._with_past(layer, newest))
            run = self.guide.gate_execution.of_mean(gate, place=place_of(layer, features))
            return Decision(self._with_past(layer, newest), run)

        logits = self.model.network(self.tokens.expand(S, -1), route)[:, -self.count :]
        return self._of_targets(logits)

    def _with_past(self, layer: int, newest: Tensor) -> Tensor:
        """Routes [S, n, K] of the last tokens behind those that are deployed, [S, T, K]."""
        past = self.deployed[layer][: -self.count].to(newest)
        return torch.cat([past.expand(len(newest), -1, -1), newest], 1)

    def _of_targets(self, logits: Tensor) -> Tensor:
        """log p(y) [S] of logits [S, n, V]."""
        log_p = logits.double().log_softmax(-1)
        return log_p.gather(-1, self.targets.expand(len(logits), -1)[..., None])[..., 0].sum(1)

    def log_prior(self, routes: Tensor) -> Tensor:
        """log p(alpha) [S] of routes [S, L, n, K], less what compute costs them."""
        layers = [
            in_double(prior).log_prob(routes[:, layer]) for layer, prior in enumerate(self.priors)
        ]
        return torch.stack(layers, 1).sum((1, 2)) - self.charge(routes)

    def draw_guide(self, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Routes [S, L, n, K] of the guide, their log p - log q [S], and log p(y | alpha) [S]."""
        parts = [self._drawn(len(span)) for span in torch.arange(draws).split(ROWS_AT_ONCE)]
        routes, ratio, likelihood = (torch.cat(part) for part in zip(*parts, strict=True))
        return routes, ratio, likelihood

    def _drawn(self, S: int) -> tuple[Tensor, Tensor, Tensor]:
        def how(
            guide: Router, layer: int, features: Features, posterior: Latents
        ) -> tuple[Draw, Decision]:
            draw, (run, gate) = weighed(guide, layer, features, posterior)
            newest = as_weights(run, draw.route.shape[-1])[:, -self.count :]
            return draw, Decision(self._with_past(layer, newest.to(features.state.dtype)), gate)

        with torch.no_grad():
            walked = walk(self.model, self.guide, self.tokens.expand(S, -1), how)
            ratio = log_ratios(walked, self.count)
        drawn = [draw.route[:, -self.count :].double() for draw in walked.draws]
        return torch.stack(drawn, 1), ratio, self._of_targets(walked.logits[:, -self.count :])

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
        """P(decide(alpha) = c) [L, n, K], and E[alpha], E[alpha^2] given c, [L, n, K (c), K].

        Under the prior, each route weighed by exp(-lambda c) where compute has a price.
        """
        L, n, K = self.shape
        torch.manual_seed(seed)
        share, first, second = (
            torch.zeros(shape, dtype=torch.float64) for shape in ((L, n, K), *[(L, n, K, K)] * 2)
        )
        for layer, prior in enumerate(self.priors):
            draws, chance = self._of_prior(prior)  # [S, n, K], [S, n]
            priced = self.model.charge(self.newest, Draw(draws, self.gates[layer]))
            chance = chance * torch.exp(-priced)
            choice = self.model.execution.decide(draws)
            for c in range(K):
                weight = ((choice == c).double() * chance)[..., None]  # [S, n, 1]
                total = weight.sum(0).clamp(min=1e-300)
                share[layer, :, c] = weight.sum(0)[:, 0].cpu()
                first[layer, :, c] = ((weight * draws).sum(0) / total).cpu()
                second[layer, :, c] = ((weight * draws**2).sum(0) / total).cpu()
        return share, first, second

    def _of_prior(self, prior: Distribution) -> tuple[Tensor, Tensor]:
        """Routes [S, n, K] and their probabilities [S, n]: all choices, or draws of weights."""
        if self.of_choices:
            chance = prior.mean.double()  # [n, K]
            vertices = torch.eye(chance.shape[-1], dtype=torch.float64, device=chance.device)
            return vertices[:, None].expand(-1, len(chance), -1), chance.T
        draws = in_double(prior).sample(torch.Size([PRIOR_DRAWS]))
        return draws, torch.full_like(draws[..., 0], 1 / PRIOR_DRAWS)
