"""Priors are the distributions that their docstrings say, and refuse what would make them none."""

from dataclasses import replace

import pytest
import torch
from conftest import DIRICHLETS
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from pyro_meta import (
    CostDirichlet,
    PaperDirichlet,
    Prior,
    Shape,
    SymmetricDirichlet,
    Transformer,
    UsageError,
)
from pyro_meta.guides.networks import FLOOR
from pyro_meta.network.costs import costs_at

SHAPE = Shape(vocabulary=7, context=32, width=16, layers=2, heads=2, window=4)


@pytest.fixture
def network() -> Transformer:
    return Transformer(SHAPE, ["full", "linear", "window"])


POSITIONS = torch.arange(32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("cost", ["nominal", "macs"])
def test_kl_from_the_cost_prior_is_cost_penalty_plus_entropy_bonus(
    network: Transformer, cost: str
) -> None:
    """KL(q || p) = lambda E_q[c] - H(q) + log sum_k exp(-lambda c_k), for categorical choices."""
    rate = 3.0
    prior = CostDirichlet(network, rate=rate, strength=10.0, floor=1e-300, cost=cost)
    p = Categorical(probs=prior(0, POSITIONS).mean)
    q = Categorical(logits=torch.randn(32, 3))
    costs = costs_at(network, cost, POSITIONS)
    by_hand = rate * (q.probs * costs).sum(-1) - q.entropy() + torch.logsumexp(-rate * costs, -1)
    torch.testing.assert_close(kl_divergence(q, p), by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("double")
def test_cost_dirichlet_has_the_stated_concentration(network: Transformer) -> None:
    prior = CostDirichlet(network, rate=2.0, strength=5.0, floor=0.1, cost=[1.0, 0.5, 0.2])
    weights = torch.tensor([-2.0, -1.0, -0.4]).exp()
    expected = 5.0 * weights / weights.sum() + 0.1
    torch.testing.assert_close(prior(1, POSITIONS).concentration, expected.expand(32, 3))


def test_paper_dirichlet_has_the_papers_concentration(network: Transformer) -> None:
    """In the order full, linear, window: [.01, .86, .71] (PAPERS, arXiv 2605.28384)."""
    concentration = PaperDirichlet(network)(0, POSITIONS).concentration[0]
    torch.testing.assert_close(concentration, torch.tensor([0.01, 0.86, 0.71]))


@pytest.mark.usefixtures("double")
def test_macs_average_to_one_for_full_attention(network: Transformer) -> None:
    full = costs_at(network, "macs", POSITIONS)[:, 0]
    torch.testing.assert_close(full.mean(), torch.tensor(1.0))
    assert full[0] < 0.1  # early on, full attention is nearly free
    window = costs_at(network, "macs", POSITIONS)[:, 2]
    torch.testing.assert_close(window[:4], full[:4])
    torch.testing.assert_close(window[4:], full[3].expand(28))


@pytest.mark.usefixtures("double")
def test_sinks_cost_what_as_many_tokens_of_a_window_do(network: Transformer) -> None:
    beside = Transformer(replace(SHAPE, sinks=3), ["full", "linear", "window"])
    wider = Transformer(replace(SHAPE, window=7), ["full", "linear", "window"])
    found = costs_at(beside, "macs", POSITIONS)
    torch.testing.assert_close(found, costs_at(wider, "macs", POSITIONS))
    assert (found[7:, 2] > costs_at(network, "macs", POSITIONS)[7:, 2]).all()


def test_a_strong_prior_makes_deciding_ten_times_as_dear(network: Transformer) -> None:
    """As docs/choosing.md says: the default guide at the corner `window`, s = 10 against s = 1."""
    decided = Dirichlet(FLOOR + 20.0 * torch.tensor([0.0, 0.0, 1.0]))
    kl = {
        s: kl_divergence(decided, CostDirichlet(network, strength=s)(0, POSITIONS[-1:])).item()
        for s in (1.0, 10.0)
    }
    assert 8 < kl[10.0] / kl[1.0] < 14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: CostDirichlet(n, strength=0.0), "strength: 0.0"),
        (lambda n: CostDirichlet(n, floor=-1.0), "floor: -1.0"),
        (lambda n: CostDirichlet(n, rate=-1.0), "rate: -1.0"),
        (lambda n: CostDirichlet(n, cost=[1.0, 0.5]), "2 costs given for 3 mechanisms"),
        (lambda n: CostDirichlet(n, cost=[1.0, 0.5, -0.1]), "at least 0"),
        (lambda n: CostDirichlet(n, cost="seconds"), "nominal, macs"),
        (lambda n: PaperDirichlet(n, cost=[1.02, 0.5, 0.3]), "costs below 1"),
        (lambda n: PaperDirichlet(n, cost="macs"), "costs below 1"),
        (lambda n: SymmetricDirichlet(n, concentration=0.0), "concentration: 0.0"),
        (
            lambda n: SymmetricDirichlet(n, concentration=float("nan")),
            "nan given; above 0 is allowed",
        ),
        (Prior, "does not define forward"),
    ],
)
def test_bad_arguments_are_refused_by_name(network: Transformer, make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        make(network)


@pytest.mark.parametrize("prior", DIRICHLETS)
def test_concentrations_are_finite_and_positive(network: Transformer, prior: type[Prior]) -> None:
    concentration: Tensor = prior(network)(0, POSITIONS).concentration
    assert torch.isfinite(concentration).all() and (concentration > 0).all()
