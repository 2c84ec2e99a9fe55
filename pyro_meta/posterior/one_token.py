"""Every choice that one token could have made, tried, with all other tokens left as deployed.

Where routes are hard the likelihood of a text depends on which mechanism each token chose, and on
nothing else. So the posterior of one token's choice, given all others, is a finite sum:

    p_w(z_t | x, y, rest)  proportional to  p(z_t) exp(-price) p(y | z_t, rest)^(1/w)

It is found by as many forward passes as there are choices: all K^S of a token's S layers and groups
where these are few (`Whole`), and always those of one layer and group alone, the others deployed.
A forward pass begins at the token, behind a cache of what stands before it, and ends with the text
or `horizon` tokens on.

Shapes: B texts, n places in each, N = B n tokens, text by text, L layers, G groups of heads,
S = L G sites, K mechanisms, P = K^S patterns, M tokens whose whole route is tried, D width, R rows.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from pyro_meta.attention import Cache
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import by_group, token_nll
from pyro_meta.guides import Guide, along_means, walk
from pyro_meta.guides.walk import Latents, Router, Walked
from pyro_meta.models.language_model import Draw
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features
from pyro_meta.posterior.drawing import has_density, in_double

Array = NDArray[np.floating]
Index = NDArray[np.integer]

TEXTS, PLACES, WHOLE_PLACES, HORIZON = 16, 32, 2, 128
FEW_TEXTS, FEW_PLACES, LEAST_HORIZON = 8, 2, 8
"""Of a network that is too large for the above."""
MOST_MACS = 2e12
"""Outside attention, in all forward passes together: a minute or two on two cores."""
MOST_PATTERNS = 100
TOKENS_AT_ONCE = 8192
KEPT_AT_ONCE = 1 << 26
"""Numbers in caches of keys and values."""
LOGITS_AT_ONCE = 1 << 25
DRAWS = 2000
"""Draws of weights, from which the chance of each choice is taken."""
LEAST = 1e-30
"""Of a probability, before its logarithm."""


@dataclass(frozen=True)
class Effort:
    """How many tokens are tried, and how far."""

    texts: int
    places: int
    """In each text; the same in all."""
    whole_places: int
    """Those of them at which whole routes are tried; 0: there are too many patterns."""
    horizon: int
    """Tokens from the tried one on, whose targets count."""


@dataclass(frozen=True)
class Whole:
    """Whole routes of M tokens: all layers and groups at once."""

    token: Index
    """Which of the N tokens, [M]."""
    choices: Index
    """Of each pattern, [P, S]."""
    log_likelihood: Array
    """[M, P], nats."""
    log_guide: Array
    """log q(z_t | x): each layer given what the lower ones chose, [M, P]."""
    log_prior: Array
    """log p(z_t) - price, up to a constant, [M, P]."""


@dataclass(frozen=True)
class Tried:
    """The choices of N tokens, one layer and group at a time."""

    text: Index
    """Which text, [N]."""
    position: Index
    """[N]."""
    log_likelihood: Array
    """Of the text from the token on, [N, S, K], nats."""
    log_guide: Array
    """log q(z | x), [N, S, K]."""
    log_prior: Array
    """log p(z) - price, up to a constant, [N, S, K]."""
    features: Array
    """What the guide sees of the token in each layer, [N, L, D]."""
    chosen: Index
    """The deployed choice, [N, S]."""
    nll: Array
    """Loss along deployed routes by text, [B], nats per token."""
    groups: int
    """G."""
    whole: Whole | None
    """None: there are too many patterns."""


def is_tried(guide: Guide) -> bool:
    """Whether a guide pays a KL and its tokens run one mechanism each, as a cache can follow."""
    is_hard = guide.execution.is_hard_everywhere and not guide.is_mixture
    return guide.pays_kl and is_hard and _is_cached(guide.model.network)


def _is_cached(network: Network) -> bool:
    """Whether a network can go on from what it has read; not every pretrained one can."""
    try:
        network.new_cache(1)
    except UsageError:
        return False
    return True


def effort_for(network: Network, length: int) -> Effort:
    """What can be afforded of a network, on texts of `length` tokens."""
    K, S = len(network.mechanisms), network.shape.layers * network.shape.groups
    rows, of_token = 1 + S * (K - 1), network.dense_macs()
    is_few = S * math.log(K) <= math.log(MOST_PATTERNS)
    whole = WHOLE_PLACES if is_few else 0
    passes = TEXTS * (PLACES * rows + (whole * K**S if is_few else 0))
    horizon = min(length, HORIZON)
    if passes * of_token * horizon <= MOST_MACS:
        return Effort(TEXTS, PLACES, whole, horizon)
    affordable = MOST_MACS / (FEW_TEXTS * FEW_PLACES * rows * of_token)
    return Effort(FEW_TEXTS, FEW_PLACES, 0, min(horizon, max(LEAST_HORIZON, int(affordable))))


def try_all(
    guide: Guide, windows: tuple[Tensor, Tensor], effort: Effort, seed: int = 0
) -> Tried | None:
    """Try the choices of some tokens of the first texts of tokens and targets [B, T].

    To be called in evaluation mode, of a guide that `is_tried`. None without a density, or where
    there is a single mechanism.
    """
    network = guide.model.network
    device = network.device
    tokens, targets = (part[: effort.texts].to(device) for part in windows)
    K = len(network.mechanisms)
    at = _places(tokens.shape[1], effort, seed).to(device)
    torch.manual_seed(seed)
    with torch.no_grad():
        scene = _Scene(guide, tokens, targets, at, effort.horizon)
        if K < 2 or not scene.has_density:
            return None
        S = network.shape.layers * network.shape.groups
        one = torch.zeros(1 + S * (K - 1), S, dtype=torch.long)
        for row, (site, shift) in enumerate(itertools.product(range(S), range(1, K))):
            one[row + 1, site] = shift
        is_whole = _spread(len(at), effort.whole_places)
        every = _patterns(S, K) if any(is_whole) else None
        likelihoods, of_whole = [], []
        for place, whole in enumerate(is_whole):
            scene.read_up_to(place)
            if whole and every is not None:
                found = scene.try_rows(every, asks=True)
                of_whole.append((place, *found))
                likelihoods.append(_slices(found[0], one, K))
            else:
                likelihoods.append(scene.try_rows(one)[0])
        tables = torch.stack([_table(rows, one, K) for rows in likelihoods], 1)  # [B, n, S, K]
        return scene.gathered(tables, every, of_whole)


def _places(length: int, effort: Effort, seed: int) -> Tensor:
    """Places spread over a text, each anywhere in a stretch of its own."""
    count = min(effort.places, length)
    edges = np.linspace(0, length, count + 1)
    shares = np.random.default_rng(seed).random(count)
    return torch.tensor((edges[:-1] + shares * np.diff(edges)).astype(np.int64)).unique()


def _spread(count: int, chosen: int) -> list[bool]:
    """`chosen` of `count`, evenly."""
    picked = set(np.linspace(0, count - 1, min(chosen, count) + 2)[1:-1].round().astype(int))
    return [index in picked for index in range(count)]


def _patterns(S: int, K: int) -> Tensor:
    """All K^S of them, [P, S]: of a deep network too many to be written down."""
    return torch.cartesian_prod(*[torch.arange(K)] * S).view(-1, S)


def _slices(every: Tensor, one: Tensor, K: int) -> Tensor:
    """The rows of `one` [R, S] among those of all patterns, [B, P] -> [B, R]."""
    powers = K ** torch.arange(one.shape[1] - 1, -1, -1)
    return every[:, (one * powers).sum(1).to(every.device)]


def _table(rows: Tensor, one: Tensor, K: int) -> Tensor:
    """By how far a choice is shifted from the deployed one: [B, R] -> [B, S, K]."""
    S = one.shape[1]
    shifted = rows[:, 1:].view(len(rows), S, K - 1)
    return torch.cat([rows[:, :1, None].expand(-1, S, -1), shifted], -1)


class _Scene:
    """Texts, what is deployed in them, and what has been read of them."""

    def __init__(
        self, guide: Guide, tokens: Tensor, targets: Tensor, at: Tensor, horizon: int
    ) -> None:
        self.guide, self.model, self.horizon = guide, guide.model, horizon
        self.tokens, self.targets, self.at = tokens, targets, at
        self.network = guide.model.network
        shape = self.network.shape
        self.S, self.K = shape.layers * shape.groups, len(self.network.mechanisms)
        self.features: list[Tensor] = []
        follow = along_means(hard=True)

        def noting(
            router: Router, layer: int, features: Features, posterior: Latents
        ) -> tuple[Draw, Decision]:
            self.features.append(features.normed[:, at])
            return follow(router, layer, features, posterior)

        walked = walk(self.model, guide, tokens, noting)
        self.has_density = all(has_density(one.route) for one in walked.posteriors)
        self.nll = token_nll(walked.logits, targets).double().mean(1)  # [B]
        self.deployed = torch.stack(  # [L, B, T, G]
            [by_group(one.route, 3) for one in walked.decisions]
        )
        if self.has_density:
            of_layers = [by_group(self._log_chance(one.route), 4) for one in walked.posteriors]
            self.log_guide = self._by_site(of_layers)
            self.log_prior = self._by_site(self._log_priors(walked))
        self._past = self._new_cache(len(tokens))
        self._read = 0

    def _by_site(self, layers: list[Tensor]) -> Tensor:
        """Of L layers [B, n or T, G, K]: [B, n, S, K], at the places alone."""
        kept = [one if one.shape[1] == len(self.at) else one[:, self.at] for one in layers]
        return torch.stack(kept, 2).flatten(2, 3)

    def _log_chance(self, dist: Distribution, log_weight: Any = None) -> Tensor:
        """log of the chance of each choice, [.., K]: of weights by draws, each with a weight.

        Half a draw is added to each choice, so that none is impossible.
        """
        if self.model.prior.of_choices:
            return dist.mean.double().clamp(min=LEAST).log()
        total: Any = 0.0
        for count in [DRAWS // 10] * 10:
            draws = in_double(dist).sample(torch.Size([count]))
            decided = torch.nn.functional.one_hot(self.model.execution.decide(draws), self.K)
            chance = 1.0 if log_weight is None else log_weight(draws).exp()[..., None]
            total = total + (decided * chance).sum(0)
        even = total.sum(-1, keepdim=True) / DRAWS / 2
        return ((total + even) / DRAWS).clamp(min=LEAST).log()

    def _log_priors(self, walked: Walked) -> list[Tensor]:
        """log p(z) - price of each layer, [B, n, G, K]."""
        found, at = [], self.at
        G, B, n = self.network.shape.groups, len(self.tokens), len(self.at)
        of_groups = self.network.shape.of_groups
        for layer, latents in enumerate(walked.posteriors):
            gate = latents.gate.mean.expand(self.tokens.shape)[:, at]  # [B, n]
            prior = self.model.route_dist(layer, at, walked.loads[layer])
            prior = prior.expand(torch.Size([B, n, *of_groups]))

            def charge(routes: Tensor, gate: Tensor = gate) -> Tensor:
                return -self.model.charge(at, Draw(routes, gate))

            if self.model.prior.of_choices:
                vertices = torch.eye(self.K, device=at.device)
                vertices = vertices.view(self.K, 1, 1, *[1] * (G > 1), self.K)
                vertices = vertices.expand(-1, B, n, *of_groups, -1)
                log_p = self._log_chance(prior) + charge(vertices).double().movedim(0, -1)
            else:
                log_p = self._log_chance(prior, charge)
            found.append(log_p.view(B, n, G, self.K))
        return found

    def _new_cache(self, rows: int) -> Cache:
        return self.network.new_cache(rows, keeps_features=not self.guide.is_of_own_token)

    def read_up_to(self, place: int) -> None:
        """Read what stands before a place, along deployed routes."""
        end = int(self.at[place])
        if end > self._read:
            tokens = self.tokens[:, self._read : end]
            self.network.states(tokens, self._route(self.deployed), self._past)
            self._read = end

    def _route(self, choices: Tensor, asked: Any = None) -> Any:
        """The route of choices [L, R, T, G]; `asked` is told the features of every layer."""

        def route(layer: int, features: Features) -> Decision:
            chosen = choices[layer][:, features.positions]
            if asked is not None:
                asked(layer, features)
            gate = None
            if layer in self.model.gated:
                latents = self.guide.latents(layer, features)
                gate = self.guide.gate_execution.of_mean(latents.gate, hard=True)
            return Decision(chosen if chosen.shape[-1] > 1 else chosen[..., 0], gate)

        return route

    def try_rows(self, shifts: Tensor, asks: bool = False) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the next token's choices, shifted by [R, S] from the deployed ones.

        [B, R]; and log q of them, as the guide says where it is asked in the midst of them, else 0.
        """
        span = min(self.horizon, self.tokens.shape[1] - self._read)
        B, shape = len(self.tokens), self.network.shape
        kept = 2 * shape.layers * shape.width * (self._read + span)
        at_once = max(1, min(TOKENS_AT_ONCE // (span * B), KEPT_AT_ONCE // (kept * B)))
        found = [self._try_some(part, span, asks) for part in shifts.split(at_once)]
        likelihood, log_q = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return likelihood, log_q

    def _try_some(self, shifts: Tensor, span: int, asks: bool) -> tuple[Tensor, Tensor]:
        B, R, L = len(self.tokens), len(shifts), self.network.shape.layers
        t, end = self._read, self._read + span
        choices = self.deployed[:, None, :, :end].repeat(1, R, 1, 1, 1)  # [L, R, B, end, G]
        shift = shifts.to(choices.device).view(R, L, -1).movedim(0, 1)[:, :, None]  # [L, R, 1, G]
        choices[:, :, :, t] = (choices[:, :, :, t] + shift) % self.K
        choices = choices.flatten(1, 2)  # [L, R B, end, G]
        past = self._new_cache(R * B)
        if t:
            for row in range(R):
                past.replace(list(range(row * B, (row + 1) * B)), self._past)
        log_q = torch.zeros(R * B, dtype=torch.float64, device=choices.device)

        def ask(layer: int, features: Features) -> None:
            own = features if not self.guide.is_of_own_token else _first(features)
            index = 0 if self.guide.is_of_own_token else t
            dist = self.guide.routes(layer, own)
            table = by_group(self._log_chance(dist), 4)
            of_chosen = table[:, index].gather(-1, choices[layer][:, t, :, None])[..., 0]
            log_q.add_(of_chosen.sum(-1))

        route = self._route(choices, ask if asks else None)
        states = self.network.states(self.tokens[:, t:end].repeat(R, 1), route, past)
        likelihood = self._of_targets(states, self.targets[:, t:end].repeat(R, 1))
        return likelihood.view(R, B).T, log_q.view(R, B).T

    def _of_targets(self, states: Tensor, targets: Tensor) -> Tensor:
        """log p(y) of states [R, span, D], [R]."""
        rows = max(1, LOGITS_AT_ONCE // (self.network.shape.vocabulary * targets.shape[1]))
        pairs = zip(states.split(rows), targets.split(rows), strict=True)
        return torch.cat([-token_nll(self.network.readout(h), y).double().sum(1) for h, y in pairs])

    def gathered(
        self, tables: Tensor, every: Tensor | None, of_whole: list[tuple[int, Tensor, Tensor]]
    ) -> Tried:
        """All of it as arrays; tables [B, n, S, K] are by shift. None: no whole route was tried."""
        B, n, S, K = tables.shape
        chosen = self.deployed[:, :, self.at].permute(1, 2, 0, 3).flatten(2)  # [B, n, S]
        back = (torch.arange(K, device=chosen.device) - chosen[..., None]) % K
        likelihood = tables.gather(-1, back)
        whole = None
        if every is not None:
            whole = self._whole(chosen, every.to(chosen.device), of_whole)
        features = torch.stack(self.features, 2)  # [B, n, L, D]
        return Tried(
            text=np.repeat(np.arange(B), n),
            position=np.tile(self.at.cpu().numpy(), B),
            log_likelihood=_numpy(likelihood).reshape(B * n, S, K),
            log_guide=_numpy(self.log_guide).reshape(B * n, S, K),
            log_prior=_numpy(self.log_prior).reshape(B * n, S, K),
            features=_numpy(features).reshape(B * n, *features.shape[2:]),
            chosen=chosen.cpu().numpy().reshape(B * n, S),
            nll=_numpy(self.nll),
            groups=self.network.shape.groups,
            whole=whole,
        )

    def _whole(
        self, chosen: Tensor, every: Tensor, of_whole: list[tuple[int, Tensor, Tensor]]
    ) -> Whole:
        B, n, S = chosen.shape
        parts: list[list[Tensor]] = [[], [], [], []]
        powers = self.K ** torch.arange(S - 1, -1, -1, device=every.device)
        for place, likelihood, log_q in of_whole:
            shifts = (every[None] - chosen[:, place, None]) % self.K  # [B, P, S]: of each pattern
            index = (shifts * powers).sum(-1)  # [B, P]
            prior = self.log_prior[:, place].gather(  # [B, S, K] by patterns [B, S, P]
                -1, every.T[None].expand(B, -1, -1)
            )
            token = torch.arange(B, device=index.device) * n + place
            values = (token, likelihood.gather(1, index), log_q.gather(1, index), prior.sum(1))
            for part, value in zip(parts, values, strict=True):
                part.append(value)
        of_tokens, *of_patterns = (torch.cat(part).cpu().numpy() for part in parts)
        return Whole(of_tokens, every.cpu().numpy(), *of_patterns)


def _first(features: Features) -> Features:
    """Those of the first token alone."""
    tokens, state, normed, positions, ask = features
    near = None if ask is None else (lambda: ask()[:, :1])
    return type(features)(tokens[:, :1], state[:, :1], normed[:, :1], positions[:1], near)


def _numpy(x: Tensor) -> Array:
    found: Array = x.double().cpu().numpy()
    return found
