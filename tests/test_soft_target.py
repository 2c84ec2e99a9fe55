"""Tokens observed by the probabilities of all of them."""

import pyro
import pytest
import torch
from torch.distributions import Categorical

from pyro_meta.distributions.soft_target import SoftTarget


def test_it_scores_the_expected_log_likelihood() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.softmax(torch.randn(2, 3, 7, dtype=torch.float64), -1)
    scores = torch.stack([Categorical(logits=logits).log_prob(torch.tensor(v)) for v in range(7)])
    wanted = (targets * scores.permute(1, 2, 0)).sum(-1)
    found = SoftTarget(logits, validate_args=True).log_prob(targets)
    torch.testing.assert_close(found, wanted)
    (ours,), (theirs,) = (torch.autograd.grad(x.sum(), logits) for x in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_a_vertex_is_a_token() -> None:
    logits = torch.randn(4, 5)
    tokens = torch.tensor([0, 3, 4, 1])
    vertices = torch.nn.functional.one_hot(tokens, 5).float()
    found = SoftTarget(logits).log_prob(vertices)
    torch.testing.assert_close(found, Categorical(logits=logits).log_prob(tokens))
    draws = SoftTarget(logits).expand((2000, 4)).sample()
    assert draws.shape == (2000, 4, 5) and (draws.sum(-1) == 1).all()
    torch.testing.assert_close(draws.mean(0), SoftTarget(logits).mean, atol=0.05, rtol=0)


def test_a_large_vocabulary_passes_the_checks() -> None:
    """Whose probabilities do not sum to 1 within the checks of a simplex in single precision."""
    logits = 9 * torch.randn(2, 60_000)
    with pyro.validation_enabled(True):
        dist = SoftTarget(logits)
        assert torch.isfinite(dist.log_prob(torch.softmax(logits, -1))).all()


def test_what_is_no_probability_is_refused() -> None:
    dist = SoftTarget(torch.zeros(3), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        dist.log_prob(torch.tensor([2.0, -1.0, 0.0]))


def test_a_token_that_is_masked_costs_nothing_where_nobody_expects_it() -> None:
    logits = torch.tensor([1.0, 2.0, -torch.inf], requires_grad=True)
    found = SoftTarget(logits, validate_args=False).log_prob(torch.tensor([0.5, 0.5, 0.0]))
    wanted = torch.log_softmax(torch.tensor([1.0, 2.0]), -1).mean()
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found, logits)
    assert torch.isfinite(gradient).all()
