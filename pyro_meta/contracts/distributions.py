"""The contract that priors and guides share: what a distribution of routes promises.

Shapes: B sequences, T tokens, K mechanisms, S draws.
"""

import tempfile
from functools import partial
from pathlib import Path

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_meta.contracts.checks import (
    STANDARD_ERRORS,
    Broken,
    default_dtype,
    require,
    require_close,
    require_finite,
    require_gradients,
    require_left_alone,
    require_registered,
    require_same_again,
    require_tensor,
    reseed,
)
from pyro_meta.contracts.subjects import (
    Router,
    still_distributions,
)
from pyro_meta.distributions.simplex import Point, divergence
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.inference.elbo import Objective
from pyro_meta.inference.optimiser import make_optimiser
from pyro_meta.inference.schedules import Optimisation
from pyro_meta.network.route import Features
from pyro_meta.own_classes import described
from pyro_meta.training.run import Run

DRAWS = 1024
PARTS = ("model", "guide")
MEAN_TOLERANCE = 0.01  # a distribution without a closed mean may approximate it
ON_SIMPLEX = 1e-5  # float32
KL_ROUNDING = 1e-6  # of a closed form, in float64


def distribution_has_one_weight_per_mechanism(subject: Router) -> None:
    """At any number of sequences and tokens: event [K], batch [B, T] or, of a prior, [T] or [].

    A distribution of depth gates has one number, event []. Its mean has numbers, in the precision
    and on the device of what it was asked with.
    """
    with default_dtype(subject.size.dtype):
        pair = subject.build()
        features = subject.size.features()
        with evaluating(*pair):
            for layer in subject.layers:
                dist = subject.distribution_at(*pair, layer, features)
                _require_distribution(subject, dist, layer, *features.tokens.shape)
                what = f"the mean of {type(dist).__name__}, of layer {layer},"
                shape = (*dist.batch_shape, *dist.event_shape)
                require_tensor(_mean_of(dist, layer), shape, features.normed, what)
            tokens = subject.size.text()[0]
            most = tokens.shape[1]
            for rows, length in (tokens.shape, (1, 1), (2, min(7, most))):
                found = subject.distributions(*pair, tokens[:rows, :length])
                for layer, dist in zip(subject.layers, found, strict=True):
                    _require_distribution(subject, dist, layer, rows, length)


def _require_distribution(
    subject: Router, dist: object, layer: int, rows: int, length: int
) -> None:
    __tracebackhide__ = True
    what = f"of layer {layer} for tokens [{rows}, {length}]"
    is_distribution = isinstance(dist, Distribution)
    needed = "a distribution of torch.distributions or pyro.distributions is needed"
    require(is_distribution, f"{subject.call} {what} gives {described(dist)}; {needed}")
    assert isinstance(dist, Distribution)
    allowed = [(rows, length)] if subject.is_of_text else [(length,), ()]
    batch, event = tuple(dist.batch_shape), tuple(dist.event_shape)
    either = " or ".join(str(list(shape)) for shape in allowed)
    got = f"{subject.call} {what} gives {described(dist)}"
    require(event == subject.event, f"{got}; its event must be {list(subject.event)}")
    require(batch in allowed, f"{got}; its batch must be {either}")


def _mean_of(dist: Distribution, layer: int) -> Tensor:
    __tracebackhide__ = True
    try:
        mean: Tensor = dist.mean
    except NotImplementedError as error:
        raise Broken(
            f"{type(dist).__name__}, of layer {layer}, has no mean, which routes follow"
        ) from error
    return mean


def distribution_follows_the_default_dtype(subject: Router) -> None:
    for dtype in (torch.float32, torch.float64):
        with default_dtype(dtype):
            for dist in still_distributions(subject, subject.build(), subject.size.text()[0]):
                for what, values in (("mean", dist.mean), ("draw", dist.sample())):
                    require(values.dtype == dtype, f"a {what} in {dtype} is {values.dtype}")


def distribution_follows_the_device(subject: Router) -> None:
    """On the device `meta`, which holds no numbers: to read them is to wait for a GPU."""
    model, guide = subject.build()
    model, guide = model.to("meta"), guide.to("meta")
    tokens, state, normed, at = (one.to("meta") for one in subject.size.features().tensors)
    features = Features(tokens, state, normed, at)
    with pyro.validation_enabled(False):
        for layer in subject.layers:
            device = subject.distribution_at(model, guide, layer, features).mean.device.type
            require(
                device == "meta",
                f"the distribution of layer {layer} is on {device}, not on the device",
            )


def distribution_is_reparameterised(subject: Router) -> None:
    pair = subject.build()
    for dist in subject.distributions(*pair, subject.size.text()[0]):
        require(dist.has_rsample, f"{type(dist).__name__} has no rsample; routes need its gradient")
        draw = dist.rsample()
        if dist.mean.requires_grad:
            require(draw.requires_grad, "the mean carries a gradient and a draw does not")


def draws_lie_on_the_simplex(subject: Router) -> None:
    """Or, of a depth gate, between 0 and 1; and so the mean."""
    for dist in still_distributions(subject, subject.build(), subject.size.text()[0]):
        _require_on_simplex(dist.sample(torch.Size([64])), "draws", not subject.event)


def mean_lies_on_the_simplex(subject: Router) -> None:
    for dist in still_distributions(subject, subject.build(), subject.size.text()[0]):
        _require_on_simplex(dist.mean, "the mean", not subject.event)


def mean_is_that_of_the_draws(subject: Router) -> None:
    """Within 4 standard errors, and .01 for a mean that is an approximation."""
    for layer, dist in enumerate(
        still_distributions(subject, subject.build(), subject.size.text()[0])
    ):
        draws = dist.sample(torch.Size([DRAWS]))
        error = draws.std(0) / DRAWS**0.5
        gap = (draws.mean(0) - dist.mean).abs() - STANDARD_ERRORS * error
        require(
            bool((gap <= MEAN_TOLERANCE).all()),
            f"the mean of layer {layer} is up to {float(gap.max()):.2g} further from that of "
            f"{DRAWS} draws than {STANDARD_ERRORS:g} standard errors",
        )


def evaluation_is_deterministic(subject: Router) -> None:
    """The distribution itself, whatever was asked in between; only its draws are random."""
    pair = subject.build()
    tokens = subject.size.text()[0]
    others = subject.size.others(tokens)[:, : max(1, tokens.shape[1] // 2)]

    def means(tokens: Tensor) -> Tensor:
        return torch.stack([one.mean for one in still_distributions(subject, pair, tokens)])

    require_same_again(partial(means, tokens), partial(means, others), "the distribution")
    once, again = (still_distributions(subject, pair, tokens) for _ in range(2))
    _require_same(once, again, "two calls in evaluation mode give two distributions")


def what_is_given_is_left_as_it_is(subject: Router) -> None:
    model, guide = subject.build()
    with evaluating(model, guide):
        for layer in subject.layers:
            before, given = subject.size.features(), subject.size.features()
            subject.distribution_at(model, guide, layer, given)
            require_left_alone(before.tensors, given.tensors, f"{subject.call} of layer {layer}")


def what_is_learned_is_registered(subject: Router) -> None:
    """A parameter in a plain list or a plain tensor is neither trained nor saved."""
    model, guide = subject.build()
    require_registered(subject.module(model, guide), (model, guide))


def a_first_step_can_be_taken(subject: Router) -> None:
    """The objective is finite, and so are its gradients."""
    model, guide = subject.build()
    objective = Objective(model, guide).train()
    loss = objective(*subject.size.text()).loss
    require_finite(loss, "the loss")
    learned = {k: one for k, one in objective.named_parameters() if one.requires_grad}
    grads = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    for name, grad in zip(learned, grads, strict=True):
        if grad is not None:
            require_finite(grad, f"the gradient of {name}")


def gradients_are_finite_and_reach_every_parameter(subject: Router) -> None:
    """From one evaluation of the objective, with routes soft, partly hard and hard."""
    for threshold in (0.0, 0.9, 1.0):
        model, guide = subject.build()
        guide.harden_below(threshold)
        objective = Objective(model, guide)
        objective(*subject.size.text()).loss.backward()
        when = f"from the objective at threshold {threshold:g}"
        for name, parameter in objective.named_parameters():
            if parameter.grad is not None:
                require_finite(parameter.grad, f"the gradient of {name} {when}")
        require_gradients(dict(subject.module(model, guide).named_parameters()), when)


def kl_from_itself_is_zero(subject: Router) -> None:
    with default_dtype(subject.size.dtype):
        tokens = subject.size.text()[0]
        for dist in still_distributions(subject, subject.build(), tokens):
            kl = divergence(dist, dist)
            require(
                kl.shape == tokens.shape,
                f"KL(p || p) is {list(kl.shape)}, not {list(tokens.shape)}",
            )
            require_close(kl, torch.zeros_like(kl), KL_ROUNDING, "KL(p || p) is not 0")


def kl_is_not_negative(subject: Router) -> None:
    """Every token's where it is closed; where it is estimated, the mean over draws and tokens."""
    with default_dtype(subject.size.dtype):
        for layer, (q, p) in enumerate(_posteriors_and_priors(subject)):
            if _is_closed(q, p):
                least, allowed = float(divergence(q, p).min()), -KL_ROUNDING
            else:
                least, error = _mean(_many(q, p))
                allowed = -STANDARD_ERRORS * error
            require(least >= allowed, f"KL(q || p) of layer {layer} is {least:.3g}")


def closed_kl_is_the_mean_log_ratio(subject: Router) -> None:
    """KL(q || p) = E_q[log q - log p]; a point has no density, and its KL is 0 by convention."""
    with default_dtype(subject.size.dtype):
        for layer, (q, p) in enumerate(_posteriors_and_priors(subject)):
            if isinstance(q, Point) or isinstance(p, Point) or not _is_closed(q, p):
                continue
            draws = q.sample(torch.Size([DRAWS]))
            found, error = _mean(q.log_prob(draws) - p.log_prob(draws))
            claimed = float(divergence(q, p).mean())
            require(
                abs(found - claimed) <= STANDARD_ERRORS * error + KL_ROUNDING,
                f"KL(q || p) of layer {layer} is {claimed:.4g} in closed form, and "
                f"{found:.4g} +- {error:.2g} by {DRAWS} draws",
            )


def autocast_leaves_the_distribution_in_float32(subject: Router) -> None:
    """A step under bf16 autocast: the network in half precision, and nothing else."""
    model, guide = subject.build()
    objective = Objective(model, guide)
    with torch.autocast("cpu", torch.bfloat16):
        reseed(1)
        terms = objective(*subject.size.text())
    found = {
        "means": terms.means,
        "routes": terms.routes,
        "KL": terms.kl,
        "gates": terms.gates,
        "KL of the gates": terms.depth_kl,
    }
    for what, values in found.items():
        require(values.dtype == torch.float32, f"{what} under autocast: {values.dtype}")
        require_finite(values, f"{what} under autocast")
    terms.loss.backward()
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"the gradient of {name} under autocast")
    with torch.no_grad():
        reseed(1)
        gap = abs(float(objective(*subject.size.text()).nll - terms.nll))
    require(gap < 0.05, f"bf16 autocast moves the loss by {gap:.2g} nats")


def training_stays_finite(subject: Router) -> None:
    """Three steps of AdamW."""
    objective = Objective(*subject.build())
    for step in range(3):
        _step(subject, objective)
        for name, value in objective.state_dict().items():
            require_finite(value, f"{name} after {step + 1} steps of training")


def checkpoint_round_trip_changes_nothing(subject: Router) -> None:
    """Saved by a run after a step of training, loaded into one that was built from another seed."""
    saved, loaded = subject.build(seed=1), subject.build(seed=2)
    _step(subject, Objective(*saved))
    saved[1].harden_below(0.7)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        state = {"step": 1, "seconds": 0.0, "corpus": "", "processes": 1}
        run.save_checkpoint(dict(zip(PARTS, saved, strict=True)), None, state)
        run.load_checkpoint(dict(zip(PARTS, loaded, strict=True)))
    for ours, theirs in zip(saved, loaded, strict=True):
        values = theirs.state_dict()
        for name, value in ours.state_dict().items():
            require(torch.equal(value, values[name]), f"{name} is another after a round trip")
    _require_same(
        still_distributions(subject, saved, subject.size.text()[0]),
        still_distributions(subject, loaded, subject.size.text()[0]),
        "a loaded checkpoint gives another distribution: is a tensor neither parameter nor buffer?",
    )


def _require_on_simplex(points: Tensor, what: str, is_scalar: bool) -> None:
    __tracebackhide__ = True
    require_finite(points, what)
    require(bool((points >= 0).all()), f"{what} have negative weights: {float(points.min()):.3g}")
    if is_scalar:
        most = float(points.max())
        require(most <= 1, f"{what} are above 1: {most:.3g}")
        return
    sums = points.sum(-1)
    require_close(sums, torch.ones_like(sums), ON_SIMPLEX, f"weights of {what} do not sum to 1")


def _require_same(ours: list[Distribution], theirs: list[Distribution], what: str) -> None:
    __tracebackhide__ = True
    for layer, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        where = f"{what} (layer {layer})"
        require(torch.equal(one.mean, other.mean), where)
        draw = one.sample().clone()
        require(torch.equal(one.log_prob(draw), other.log_prob(draw)), where)


def _posteriors_and_priors(subject: Router) -> list[tuple[Distribution, Distribution]]:
    model, guide = subject.build()
    tokens = subject.size.text()[0]
    with evaluating(model, guide):
        return [
            (q, subject.prior_at(model, layer, torch.arange(tokens.shape[1])).expand(tokens.shape))
            for layer, q in zip(subject.layers, subject.walk(model, guide, tokens)[0], strict=True)
        ]


def _is_closed(q: Distribution, p: Distribution) -> bool:
    try:
        kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


def _many(q: Distribution, p: Distribution) -> Tensor:
    """The estimated KL of DRAWS draws, [S, B, T]."""
    shape = (DRAWS, *q.batch_shape)
    return divergence(q.expand(shape), p.expand(shape))


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over draws [S, ..] and everything else, and its standard error."""
    by_draw = values.flatten(1).mean(1)
    return float(by_draw.mean()), float(by_draw.std()) / len(by_draw) ** 0.5


def _step(subject: Router, objective: Objective) -> None:
    optimiser = make_optimiser(Optimisation(), objective)
    loss = objective(*subject.size.text()).loss
    require_finite(loss, "the loss")
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


CLAUSES = (
    distribution_has_one_weight_per_mechanism,
    what_is_given_is_left_as_it_is,
    what_is_learned_is_registered,
    distribution_follows_the_default_dtype,
    distribution_follows_the_device,
    distribution_is_reparameterised,
    draws_lie_on_the_simplex,
    mean_lies_on_the_simplex,
    mean_is_that_of_the_draws,
    evaluation_is_deterministic,
    gradients_are_finite_and_reach_every_parameter,
    kl_from_itself_is_zero,
    kl_is_not_negative,
    closed_kl_is_the_mean_log_ratio,
    autocast_leaves_the_distribution_in_float32,
    training_stays_finite,
    checkpoint_round_trip_changes_nothing,
)
