"""What a straight-through gradient leaves out of a choice: the second order.

A draw of a choice is the vertex e_j, and its straight-through gradient is that of the loss
linearised there. Had the token run k instead, the loss would have changed by

    L(e_k) - L(e_j)  =  D_k + 1/2 F_k + ...

along the line from one vertex to the other: D_k is what straight through has, and F_k the curvature
along the line. Without F_k whatever is near an optimum seems to cost nothing to give up, and twice
of what it does to get back. For a loss that is a negative log-likelihood, F_k is (in expectation,
by Fisher's identity) the square of the slope of log p(y') for a y' that the model itself draws: one
backward pass more tells it for every layer, token and group (Gauss-Newton; the diagonal alone, as
in Theis et al. 2018, arXiv 1801.05787). What several tokens do together is in D_k.

Shapes: L layers, B sequences, T tokens, G groups of heads, K mechanisms.
"""

import torch
from torch import Tensor

from pyro_meta.attention.ops.precision import at_least_float32
from pyro_meta.guides.walk import Walked


def curvature(walked: Walked) -> list[Tensor]:
    """F by layer, [B, T, K] or [B, T, G, K], 0 for what was drawn; without gradients.

    The routes of `walked` are draws that ran, with the graph of the logits still there.
    """
    routes = [decision.route for decision in walked.decisions]
    log_p = torch.log_softmax(at_least_float32(walked.logits), -1)
    with torch.no_grad():
        drawn = torch.distributions.Categorical(logits=log_p, validate_args=False).sample()
    score = log_p.gather(-1, drawn[..., None]).sum()
    slopes = torch.autograd.grad(score, routes, retain_graph=True)
    return [
        (slope - (slope * route.detach()).sum(-1, keepdim=True)).square()
        for slope, route in zip(slopes, routes, strict=True)
    ]


def of_second_order(walked: Walked) -> Tensor:
    """0, with the gradient sum 1/2 F_k d q(k): to be added to what is minimised, nats over tokens.

    0 without a gradient where nothing learns from routes.
    """
    means = walked.means
    if not all(one.route.requires_grad for one in walked.decisions):
        return walked.logits.new_zeros(())
    parts = [
        (0.5 * found * (mean - mean.detach())).sum()
        for found, mean in zip(curvature(walked), means, strict=True)
    ]
    return torch.stack(parts).sum()
