"""The posterior of a handful of tokens by NUTS (Hoffman & Gelman 2014, JMLR 15).

The sampler moves in the unconstrained space of stick-breaking and follows the gradient of the
tempered log density. Where routes are hard the likelihood is flat between jumps: the gradient is
then that of the prior alone and the jumps are left to the acceptance step, which keeps the sampler
exact and makes it slow; its effective sample size says how slow.
"""

from dataclasses import dataclass

import pyro
import torch
from pyro.infer.mcmc import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_meta.posterior.exact import Handful, Moments

WARMUP, SAMPLES, DEPTH = 120, 200, 4


@dataclass(frozen=True)
class Chain:
    """What one chain found."""

    moments: Moments
    effective: float
    """Least effective sample size of a component of the routes."""
    split_r_hat: float
    """Greatest split R-hat of a component: above 1.05 the chain has not settled."""
    samples: int


def sample(
    handful: Handful,
    start: Tensor,
    warmup: int = WARMUP,
    samples: int = SAMPLES,
    depth: int = DEPTH,
    seed: int = 0,
) -> Chain:
    """One chain from routes `start` [L, n, K], which must lie inside the simplex."""
    to_simplex = biject_to(constraints.simplex)

    def potential(place: dict[str, Tensor]) -> Tensor:
        z = place["z"]
        routes = to_simplex(z).clamp(min=torch.finfo(torch.float64).tiny)[None]
        jacobian = to_simplex.log_abs_det_jacobian(z, routes[0]).sum()
        likelihood = handful.log_likelihood(routes)[0] / handful.kl_weight
        return -(handful.log_prior(routes)[0] + likelihood + jacobian)

    pyro.set_rng_seed(seed)
    kernel = NUTS(potential_fn=potential, max_tree_depth=depth, full_mass=False)
    inside = 0.98 * start.double() + 0.02 / start.shape[-1]
    chain = MCMC(
        kernel,
        num_samples=samples,
        warmup_steps=warmup,
        initial_params={"z": to_simplex.inv(inside)},
        disable_progbar=True,
    )
    with pyro.validation_enabled(False):
        chain.run()
    routes = to_simplex(chain.get_samples()["z"])  # [S, L, n, K]
    flat = routes.flatten(1)[None]  # one chain
    return Chain(
        Moments.of(routes),
        float(effective_sample_size(flat).nan_to_num(0.0).min()),
        float(split_gelman_rubin(flat).nan_to_num(torch.inf).max()),
        samples,
    )
