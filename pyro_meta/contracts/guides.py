"""The contract of a guide: a posterior that sees the prefix of each token, and no target."""

from itertools import pairwise
from typing import Any, cast

import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_meta.contracts import distributions
from pyro_meta.contracts.checks import (
    ROUNDING,
    applies,
    default_dtype,
    require,
    require_close,
    reseed,
)
from pyro_meta.contracts.subjects import Pair, Router
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import mean_route
from pyro_meta.inference.elbo import RouteELBO
from pyro_meta.network.route import Decision, Features, as_weights
from pyro_meta.network.transformer import Transformer


def sequences_do_not_meet(subject: Router) -> None:
    with default_dtype(subject.size.dtype):
        pair = subject.build()
        tokens = subject.size.text()[0]
        with evaluating(*pair):
            together, alone = _means(subject, pair, tokens), _means(subject, pair, tokens[:1])
        what = "the posterior of a sequence depends on those beside it"
        require_close(alone, together[:, :1], subject.size.tolerance, what)


def later_tokens_move_nothing_earlier(subject: Router) -> None:
    """Neither posteriors nor predictions, along soft and hard routes."""
    with default_dtype(subject.size.dtype):
        pair = subject.build()
        tokens = subject.size.text()[0]
        with evaluating(*pair):
            for hard in subject.size.ways:
                whole = _walked(subject, pair, tokens, hard)
                for end in subject.size.ends:
                    changed = tokens.clone()
                    changed[:, end:] = subject.size.others(changed[:, end:])
                    what = f"the future is seen: changing what follows token {end} moves earlier "
                    _require_same_past(
                        subject, _walked(subject, pair, changed, hard), whole, end, what
                    )


def cutting_the_text_moves_nothing_earlier(subject: Router) -> None:
    """Neither posteriors nor predictions, along soft and hard routes."""
    with default_dtype(subject.size.dtype):
        pair = subject.build()
        tokens = subject.size.text()[0]
        with evaluating(*pair):
            for hard in subject.size.ways:
                whole = _walked(subject, pair, tokens, hard)
                for end in subject.size.ends:
                    what = f"the length is seen: cutting the text after token {end} moves earlier "
                    cut = _walked(subject, pair, tokens[:, :end], hard)
                    _require_same_past(subject, cut, whole, end, what)


def training_mixes_no_tokens(subject: Router) -> None:
    """In training mode, neither sequences nor later tokens move the posterior of a token."""
    model, guide = subject.build()
    were = model.training, guide.training
    tokens = subject.size.text()[0]
    end = tokens.shape[1] // 2
    others, later = tokens.clone(), tokens.clone()
    others[1:] = subject.size.others(tokens[1:])
    later[:, end:] = subject.size.others(tokens[:, end:])

    def read(tokens: Tensor) -> Tensor:
        reseed()
        with torch.no_grad():
            return _means(subject, (model, guide), tokens)

    model.train(), guide.train()
    whole = read(tokens)
    what = "in training mode, the posterior of a sequence depends on those beside it"
    require_close(read(others)[:, :1], whole[:, :1], ROUNDING, what)
    what = (
        f"in training mode, the future is seen: what follows token {end} moves earlier posteriors"
    )
    require_close(read(later)[:, :, :end], whole[:, :, :end], ROUNDING, what)
    model.train(were[0]), guide.train(were[1])


def gradients_reach_no_later_token(subject: Router) -> None:
    """Of posterior means and predictions, with respect to the embeddings."""
    with default_dtype(subject.size.dtype):
        pair = model, _ = subject.build()
        embedded: list[Tensor] = []

        def keep(_module: nn.Module, _args: object, out: Tensor) -> None:
            embedded.append(out)

        hook = cast(Transformer, model.network).embedding.register_forward_hook(keep)
        means, logits = _walked(subject, pair, subject.size.text()[0])
        hook.remove()
        for end in subject.size.ends:
            past = [means[:, :, :end], logits[:, :end]]
            projection = torch.stack([(x * torch.randn_like(x)).sum() for x in past]).sum()
            (grad,) = torch.autograd.grad(projection, embedded[0], retain_graph=True)
            later = grad[:, end:]
            what = f"the gradient of routes up to token {end} reaches later tokens"
            require_close(later, torch.zeros_like(later), subject.size.tolerance, what)


def mean_routes_are_valid(subject: Router) -> None:
    """Soft: the posterior mean; hard: its likeliest mechanism; by threshold: either.

    A hard route may give choices [B, T] or one-hot weights, which is slower.
    A mixture (`is_mixture`) is the same throughout.
    """
    model, guide = subject.build()

    def route(layer: int, features: Features) -> Decision:
        mean = guide.posterior(layer, features).mean
        shares = guide.shares(mean)
        for name, hard, threshold, expected in (
            ("hard=False", False, 0.0, mean),
            ("hard=True", True, 0.0, shares),
            ("threshold 0", None, 0.0, mean),
            ("threshold 1", None, 1.0, shares),
        ):
            guide.harden_below(threshold)
            found = as_weights(
                mean_route(guide, hard)(layer, features).route, subject.size.mechanisms
            )
            require_close(found, expected, 1e-6, f"mean_route at {name} is another route")
        return Decision(mean)

    with evaluating(model, guide):
        model.network(subject.size.text()[0], route)


def mean_gates_are_valid(subject: Router) -> None:
    """Soft: the posterior mean; hard: whether it is decided to run; by threshold: either."""
    model, guide = subject.build()

    def route(layer: int, features: Features) -> Decision:
        routes, gates = guide.latents(layer, features)
        if layer not in model.gated:
            return Decision(routes.mean)
        mean, runs = gates.mean, guide.gate_execution.decide(gates.mean)
        for name, hard, threshold, expected in (
            ("hard=False", False, 0.0, mean),
            ("hard=True", True, 0.0, runs),
            ("threshold 0", None, 0.0, mean),
            ("threshold 1", None, 1.0, runs),
        ):
            guide.harden_below(threshold)
            gate = mean_route(guide, hard)(layer, features).gate
            assert gate is not None
            require(gate.dtype == expected.dtype, f"gates at {name} are {gate.dtype}")
            require_close(gate.float(), expected.float(), 1e-6, f"gates at {name} are others")
        return Decision(routes.mean, mean)

    with evaluating(model, guide):
        model.network(subject.size.text()[0], route)


def posterior_of_own_token_needs_no_other(subject: Router) -> None:
    """If it is declared `of_own_token`: tokens read in pieces, without those before, give the same.

    Predictions are compared, along soft and hard routes.
    """
    with default_dtype(subject.size.dtype):
        model, guide = subject.build()
        applies(guide.is_of_own_token, "it is not declared of_own_token")
        tokens = subject.size.text()[0]
        with evaluating(model, guide):
            for hard in subject.size.ways:
                route = mean_route(guide, hard)
                cache = model.network.new_cache(len(tokens), keeps_features=False)
                pieces = _pieces(tokens)
                found = torch.cat([model.network(piece, route, cache) for piece in pieces], 1)
                what = (
                    "it is declared of_own_token, and other tokens are looked at: a text read in "
                    "pieces gets other predictions"
                )
                require_close(found, model.network(tokens, route), subject.size.tolerance, what)


def particles_stand_in_front(subject: Router) -> None:
    """Of features [S, B, T, ..] the posterior is that of each particle by itself."""
    with default_dtype(subject.size.dtype):
        model, guide = subject.build()
        alone = [subject.size.features(seed) for seed in (7, 8)]
        pairs = zip(*(one.tensors[:3] for one in alone), strict=True)
        tokens, state, normed = (torch.stack(pair) for pair in pairs)
        together = Features(tokens, state, normed, alone[0].positions)
        with evaluating(model, guide):
            for layer in subject.layers:
                found = subject.distribution_at(model, guide, layer, together).mean
                each = [subject.distribution_at(model, guide, layer, one).mean for one in alone]
                what = "particles in front change the posterior: count dimensions from the end"
                require_close(found, torch.stack(each), subject.size.tolerance, what)


def targets_are_not_looked_at(subject: Router) -> None:
    _, guide = subject.build()
    tokens, targets = subject.size.text()
    others = subject.size.others(targets)

    def routes(*data: Tensor) -> list[Any]:
        reseed(3)
        trace = poutine.trace(guide).get_trace(*data)
        names = [name for name in trace.nodes if name.startswith(("route_", "depth_"))]
        return [trace.nodes[name]["value"] for name in names]

    with torch.no_grad():
        ours = routes(tokens, targets)
        for what, theirs in (("other", routes(tokens, others)), ("no", routes(tokens))):
            for mine, other in zip(ours, theirs, strict=True):
                require(torch.equal(mine, other), f"{what} targets give other routes")


def plain_svi_gives_the_same_loss(subject: Router) -> None:
    """The model replays the guide in Pyro's own objective as in ours, with routes soft and hard."""
    with default_dtype(subject.size.dtype):
        for threshold in (0.0, 1.0):
            model, guide = subject.build()
            guide.harden_below(threshold)
            model.temperature = 0.3
            reseed(1)
            data = subject.size.text()
            theirs = TraceMeanField_ELBO().differentiable_loss(model, guide, *data)
            reseed(1)
            tokens = data[0].numel() / model.temperature  # the likelihood counts 1 / w times
            ours = RouteELBO().terms(model, guide, *data).loss * tokens
            what = f"TraceMeanField_ELBO and RouteELBO differ at threshold {threshold:g}"
            require_close(ours.detach(), theirs.detach(), subject.size.tolerance, what)


def _pieces(tokens: Tensor) -> list[Tensor]:
    """A text in pieces, of several tokens and of one."""
    length = tokens.shape[1]
    cuts = sorted({0, min(9, length), min(10, length), min(11, length), length})
    return [tokens[:, start:end] for start, end in pairwise(cuts)]


def _walked(
    subject: Router, pair: Pair, tokens: Tensor, hard: bool = False
) -> tuple[Tensor, Tensor]:
    """Posterior means [L, B, T, ..] and log-probabilities [B, T, V] along the mean route."""
    posteriors, logits = subject.walk(*pair, tokens, hard)
    return torch.stack([dist.mean for dist in posteriors]), logits.log_softmax(-1)


def _means(subject: Router, pair: Pair, tokens: Tensor) -> Tensor:
    return _walked(subject, pair, tokens)[0]


def _require_same_past(
    subject: Router, found: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor], end: int, what: str
) -> None:
    __tracebackhide__ = True
    require_close(
        found[0][:, :, :end], whole[0][:, :, :end], subject.size.tolerance, what + "posteriors"
    )
    require_close(
        found[1][:, :end], whole[1][:, :end], subject.size.tolerance, what + "predictions"
    )


OF_GATES = (
    *distributions.CLAUSES,
    sequences_do_not_meet,
    later_tokens_move_nothing_earlier,
    cutting_the_text_moves_nothing_earlier,
    training_mixes_no_tokens,
    gradients_reach_no_later_token,
    mean_gates_are_valid,
    posterior_of_own_token_needs_no_other,
    particles_stand_in_front,
    targets_are_not_looked_at,
    plain_svi_gives_the_same_loss,
)
CLAUSES = (
    *distributions.CLAUSES,
    sequences_do_not_meet,
    later_tokens_move_nothing_earlier,
    cutting_the_text_moves_nothing_earlier,
    training_mixes_no_tokens,
    gradients_reach_no_later_token,
    mean_routes_are_valid,
    posterior_of_own_token_needs_no_other,
    particles_stand_in_front,
    targets_are_not_looked_at,
    plain_svi_gives_the_same_loss,
)
