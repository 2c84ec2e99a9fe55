"""Softmax distributions: densities, closed-form and estimated divergences, means, underflow."""

import math

import pytest
import torch
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import (
    MultivariateNormal,
    RelaxedOneHotCategorical,
    kl_divergence,
)

from pyro_meta.distributions.simplex import divergence, entropy, expected_entropy
from pyro_meta.distributions.softmax import Concrete, LogisticNormal, SoftmaxDistribution
from pyro_meta.errors import UsageError

LOC = torch.tensor([[1.0, -0.5, 0.2], [0.0, 3.0, -2.0]], dtype=torch.float64)
SCALE = torch.tensor([[0.4, 1.3, 0.7], [2.0, 0.3, 0.9]], dtype=torch.float64)
DISTRIBUTIONS = [LogisticNormal(LOC, SCALE), Concrete(0.6, LOC)]


def log_ratios(dist: LogisticNormal, reference: int) -> MultivariateNormal:
    """The dist of log(alpha_k / alpha_reference), k != reference."""
    others = [k for k in range(dist.loc.shape[-1]) if k != reference]
    variance = dist.scale**2
    covariance = torch.diag_embed(variance[..., others]) + variance[..., reference, None, None]
    return MultivariateNormal(dist.loc[..., others] - dist.loc[..., [reference]], covariance)


def z_score(draws: Tensor, expected: Tensor) -> Tensor:
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


@pytest.mark.parametrize("reference", [0, 1, 2])
def test_logistic_normal_is_the_law_of_its_log_ratios(reference: int) -> None:
    """Whichever component is the reference: density with its Jacobian, and divergence."""
    q, p = LogisticNormal(LOC, SCALE), LogisticNormal(-LOC, SCALE.flip(-1))
    alpha = q.rsample()
    others = [k for k in range(3) if k != reference]
    ratios = (alpha[..., others] / alpha[..., [reference]]).log()
    expected = log_ratios(q, reference).log_prob(ratios) - alpha.log().sum(-1)
    torch.testing.assert_close(q.log_prob(alpha), expected, rtol=1e-10, atol=1e-10)
    kl = kl_divergence(log_ratios(q, reference), log_ratios(p, reference))
    torch.testing.assert_close(kl_divergence(q, p), kl, rtol=1e-10, atol=1e-10)


def test_concrete_has_the_density_of_torch() -> None:
    dist = Concrete(0.6, LOC)
    alpha = dist.rsample()
    temperature = torch.tensor(0.6, dtype=torch.float64)
    expected = RelaxedOneHotCategorical(temperature, logits=LOC).log_prob(alpha)
    torch.testing.assert_close(dist.log_prob(alpha), expected, rtol=1e-10, atol=1e-10)


def test_draws_of_a_logistic_normal_follow_its_density() -> None:
    q, p = LogisticNormal(LOC, SCALE), LogisticNormal(-LOC, SCALE.flip(-1))
    draws = q.sample((100_000,))
    assert (z_score(q.log_prob(draws) - p.log_prob(draws), kl_divergence(q, p)).abs() < 4).all()


def test_draws_of_a_concrete_follow_its_density() -> None:
    """The likeliest component of a draw is that of the relaxed choice."""
    draws = DISTRIBUTIONS[1].sample((100_000,))
    chosen = torch.nn.functional.one_hot(draws.argmax(-1), 3).double()
    assert (z_score(chosen, LOC.softmax(-1)).abs() < 4).all()


@pytest.mark.parametrize("dist", DISTRIBUTIONS)
def test_mean_and_entropy_agree_with_draws(dist: SoftmaxDistribution) -> None:
    draws = dist.sample((200_000,))
    torch.testing.assert_close(dist.mean, draws.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(expected_entropy(dist), entropy(draws).mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(dist.mean.sum(-1), torch.ones(2).double())


@pytest.mark.parametrize(
    "make",
    [lambda z: LogisticNormal(z, torch.ones(())), lambda z: Concrete(0.5, z)],
    ids=["logistic normal", "concrete"],
)
def test_the_mean_is_deterministic_fair_and_differentiable(make) -> None:  # type: ignore[no-untyped-def]
    z = torch.zeros(4, 5, 3, requires_grad=True)
    dist = make(z)
    assert torch.equal(dist.mean, make(z).mean)
    torch.testing.assert_close(dist.mean, torch.full((4, 5, 3), 1 / 3))
    dist.mean[..., 0].sum().backward()
    assert z.grad is not None and (z.grad[..., 0] > 0).all() and (z.grad[..., 1:] < 0).all()
    order = torch.randn(50, 3)
    assert torch.equal(make(order).mean.argmax(-1), order.argmax(-1))


@pytest.mark.usefixtures("double")
def test_kl_of_logistic_normals_is_zero_at_home_and_positive_elsewhere() -> None:
    q = LogisticNormal(LOC, SCALE)
    torch.testing.assert_close(
        kl_divergence(q, LogisticNormal(LOC + 5, SCALE)), torch.zeros(2), rtol=0, atol=1e-12
    )
    assert (kl_divergence(q, LogisticNormal(LOC, 1.1 * SCALE)) > 0).all()


@pytest.mark.usefixtures("double")
def test_kl_of_a_dirichlet_to_a_logistic_normal_agrees_with_draws() -> None:
    q = Dirichlet(torch.tensor([[0.4, 1.5, 3.0], [20.0, 1.0, 5.0]]))
    p = LogisticNormal(LOC, SCALE)
    draws = q.sample((100_000,))
    assert (z_score(q.log_prob(draws) - p.log_prob(draws), kl_divergence(q, p)).abs() < 4).all()


@pytest.mark.usefixtures("double")
def test_closed_forms_have_the_gradients_of_finite_differences() -> None:
    def kl(loc: Tensor, scale: Tensor, a: Tensor) -> Tensor:
        q, p = LogisticNormal(loc, scale), LogisticNormal(scale, loc.exp())
        return kl_divergence(q, p) + kl_divergence(Dirichlet(a), q)

    inputs = [x.clone().requires_grad_() for x in (LOC, SCALE, SCALE + 1)]
    assert torch.autograd.gradcheck(kl, inputs)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("q", DISTRIBUTIONS)
def test_estimated_divergences_are_the_log_ratio_of_the_draw(q: SoftmaxDistribution) -> None:
    for p in (Dirichlet(torch.tensor([0.5, 1.0, 2.0])).expand([2]), Concrete(0.9, -LOC)):
        draw = q.rsample()
        ratio = q.log_prob(draw) - p.log_prob(draw)
        torch.testing.assert_close(divergence(q, p, draw), ratio, rtol=1e-9, atol=1e-9)


def test_a_concrete_diverges_from_itself_by_nothing() -> None:
    dist = Concrete(0.5, LOC)
    assert divergence(dist, dist.expand([2])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "other",
    [
        Dirichlet(torch.full((3,), 0.05)),
        LogisticNormal(LOC[0].float(), SCALE[0].float()),
        Concrete(0.9, LOC[0].float()),
    ],
)
def test_a_draw_that_underflows_keeps_a_finite_divergence_and_gradient(other) -> None:  # type: ignore[no-untyped-def]
    """Logits so far apart that float32 holds 0 for two components."""
    logits = torch.tensor([[0.0, 90.0, -90.0]], requires_grad=True)
    dist = Concrete(0.5, logits)
    draw = dist.rsample()
    assert draw.tolist() == [[0.0, 1.0, 0.0]]
    kl = divergence(dist, other.expand([1]), draw)
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert torch.isfinite(dist.log_prob(draw.clone())).all()


@pytest.mark.parametrize("dist", DISTRIBUTIONS)
def test_expanded_laws_draw_one_row_each(dist: SoftmaxDistribution) -> None:
    wide = dist.expand([4, 2])
    assert wide.batch_shape == (4, 2) and wide.rsample((5,)).shape == (5, 4, 2, 3)
    assert wide.rsample().unique(dim=0).shape[0] == 4
    torch.testing.assert_close(wide.mean[0], dist.mean)


def test_one_mechanism_leaves_nothing_to_choose() -> None:
    for dist in (
        LogisticNormal(torch.zeros(2, 1), torch.ones(2, 1)),
        Concrete(0.5, torch.ones(2, 1)),
    ):
        assert dist.mean.tolist() == dist.rsample().tolist() == [[1.0], [1.0]]
        torch.testing.assert_close(dist.log_prob(dist.rsample()), torch.zeros(2))
        kl = divergence(dist, Dirichlet(torch.ones(2, 1)))
        torch.testing.assert_close(kl, torch.zeros(2), rtol=0, atol=1e-6)


def test_values_off_the_simplex_and_low_temperatures_are_refused() -> None:
    with pytest.raises(ValueError, match="support"):
        Concrete(0.5, LOC).log_prob(torch.tensor([0.5, 0.6, 0.1]).double())
    with pytest.raises(ValueError, match="scale"):
        LogisticNormal(LOC, -SCALE)
    with pytest.raises(UsageError, match=r"temperature: 0\.1 given; at least 0\.3"):
        Concrete(0.1, LOC)
